"""The numbers of the simulations as tables of Markdown, between marks in a page.

``<!-- simulation NAME -->`` begins the table of an experiment, ``<!-- end -->`` ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MARKED = re.compile(r"(<!-- simulation (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, experiments: Mapping[str, Any]) -> str:
    """``page`` with the tables of ``experiments``; raises ``KeyError`` for a mark of another name."""
    return MARKED.sub(lambda mark: mark[1] + table(experiments[mark[2]]) + mark[3], page)


def table(experiment: Mapping[str, Any]) -> str:
    """One row for each contender."""
    policies: Mapping[str, Any] = experiment["policies"]
    kinds = list(next(iter(policies.values()))["waits_hours"])
    preempts = any("preemption" in numbers for numbers in policies.values())
    bounded = any(numbers.get("longest_of_bound") for numbers in policies.values())
    head = ["policy", *(f"{kind}: median, p95, max hours" for kind in kinds), "Jain", "CPUs busy"]
    if bounded:
        head.append("longest wait of the bound")
    if preempts:
        head.append("preempted, CPU hours lost")
    rows = [head, ["---"] * len(head)]
    for name, numbers in policies.items():
        row = [name, *(_waits(numbers["waits_hours"][kind]) for kind in kinds)]
        row += [f"{numbers['fairness']:.2f}", f"{numbers['utilisation']:.0%}".replace("%", " %")]
        if bounded:
            part = numbers.get("longest_of_bound")
            row.append("no bound" if part is None else f"{part:.1%}".replace("%", " %"))
        if preempts:
            cost = numbers.get("preemption")
            row.append(_cost(cost) if cost else "none")
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _waits(hours: Mapping[str, float]) -> str:
    numbers = [hours[each] for each in ("median", "p95", "max")]
    text = ", ".join(f"{each:.1f}" if each >= 1 else f"{each:.2f}" for each in numbers)
    return f"{text} ({hours['waiting']} still wait)" if hours["waiting"] else text


def _cost(cost: Mapping[str, float]) -> str:
    return f"{cost['preemptions']}, {cost['cpu_hours_lost']:.0f} ({cost['part_lost']:.1%})".replace(
        "%", " %"
    )
