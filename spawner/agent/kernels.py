"""All kernels of a node: reality made to match what the manager wants, fenced by epochs.

Nothing here is remembered across a restart of the agent but what the engine itself still has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from spawner.agent.engines.base import EngineError, EngineState, Identity
from spawner.agent.protocol import KernelReport, KernelSpec, Share, Wanted
from spawner.agent.runner import KernelRunner, Surroundings

REMEMBERED = 10_000
"""Kernels that are gone and whose epochs are known, in case that an older word of them comes late."""
log = logging.getLogger(__name__)


class Kernels:
    """Runners by kernel id; at most one run of a kernel is alive."""

    def __init__(self, around: Surroundings, orphan_grace: float) -> None:
        self._around = around
        self._orphan_grace = orphan_grace
        self._runners: dict[str, KernelRunner] = {}
        self._highest: dict[str, int] = {}
        self._next: dict[str, KernelSpec] = {}
        self._unknown_since: dict[str, float] = {}
        self._strays: set[Identity] = set()
        self._nobodys: set[Identity] = set()
        self._never_start: dict[str, tuple[str, int]] = {}
        """Sessions and epochs that were drained before an older run of the kernel was gone."""

    async def adopt(self, fenced: Mapping[str, int] | None = None) -> None:
        """Take over everything of ours that the engine has. Raises ``EngineError``.

        ``fenced`` are runs (kernel id, epoch) that an earlier agent ended because their lease was over.
        """
        newest: dict[str, EngineState] = {}
        for state in await self._around.engine.list():
            other = newest.get(state.identity.kernel_id)
            if other is None or other.identity.epoch < state.identity.epoch:
                if other is not None:
                    self._strays.add(other.identity)
                newest[state.identity.kernel_id] = state
            else:
                self._strays.add(state.identity)
        for kernel_id, state in newest.items():
            log.info(
                "adopted kernel %s epoch %d (%s)", kernel_id, state.identity.epoch, state.phase
            )
            runner = KernelRunner(self._around, state.identity)
            self._runners[kernel_id] = runner
            self._highest[kernel_id] = state.identity.epoch
            runner.adopt(state, fenced=(fenced or {}).get(kernel_id) == state.identity.epoch)

    def reports(self) -> tuple[KernelReport, ...]:
        """What is seen of every kernel now."""
        return tuple(runner.report for runner in self._runners.values())

    def held(self, but: Identity) -> tuple[Share, ...]:
        """What all runs but one hold of the node's devices."""
        others = (each for each in self._runners.values() if each.identity != but)
        return tuple(share for each in others for share in each.held)

    def apply(self, wanted: Wanted, now: float) -> list[KernelReport]:
        """Make reality match; reports of kernels that are asked about but are not here."""
        answers = []
        named = {spec.kernel_id for spec in wanted.kernels} | {kernel for kernel, _ in wanted.drain}
        for spec in wanted.kernels:
            self._want(spec)
        for kernel_id, epoch in wanted.drain:
            answer = self._drain(kernel_id, epoch)
            if answer is not None:
                answers.append(answer)
        for kernel_id in self._runners:
            if kernel_id in named:
                self._unknown_since.pop(kernel_id, None)
            else:
                self._unknown_since.setdefault(kernel_id, now)
        gone = [each for each in self._highest if each not in named and each not in self._runners]
        for kernel_id in gone[: max(0, len(gone) - REMEMBERED)]:
            del self._highest[kernel_id]
        return answers

    def look(self, kernel_id: str | None = None) -> None:
        """Let one runner (or all) ask the engine again."""
        for runner in self._chosen(kernel_id):
            runner.look()

    def fence(self, kernel_id: str) -> int | None:
        """End a run whose lease is over, and do not start a newer one that waits for its end.

        Returns its epoch; None where nothing runs any more.
        """
        self._next.pop(kernel_id, None)
        runner = self._runners.get(kernel_id)
        if runner is None or not runner.fence():
            return None
        return runner.identity.epoch

    async def acknowledge(self, reports: Iterable[KernelReport]) -> None:
        """The manager recorded these: ended kernels can be removed, and their next epoch may start."""
        for report in reports:
            runner = self._runners.get(report.kernel_id)
            if runner is None or not runner.ended or runner.identity.epoch != report.epoch:
                continue
            if report.status == "TERMINATED":
                # A word of the manager that was on its way must not start the same run again.
                self._highest[report.kernel_id] = max(
                    self._highest.get(report.kernel_id, 0), report.epoch + 1
                )
                await self._forget(runner)

    async def sweep(self, now: float) -> None:
        """End orphans whose grace is over; look at what changed; remove strays.

        Strays are older epochs found beside newer ones, and what the engine has though nobody here
        knows of it. Raises ``EngineError``.
        """
        for kernel_id, since in list(self._unknown_since.items()):
            runner = self._runners.get(kernel_id)
            if runner is None:
                del self._unknown_since[kernel_id]
            elif now - since >= self._orphan_grace:
                if runner.ended:
                    await self._forget(runner)
                else:
                    log.warning("kernel %s is not known to the manager: ending it", kernel_id)
                    runner.drain()
        phases = await self._around.engine.phases()
        for runner in self._runners.values():
            runner.compare(phases.get(runner.identity))
        nobodys = {each for each in phases if not self._is_driven(each)}
        for identity in (
            nobodys & self._nobodys
        ):  # twice in a row: none is just being made or removed
            log.warning("%s is known to nobody here: removing it", identity)
            self._strays.add(identity)
        self._nobodys = nobodys
        for identity in list(self._strays):
            try:
                await self._around.engine.stop(identity, self._around.stop_grace)
                await self._around.engine.remove(identity)
            except (EngineError, OSError) as error:
                log.warning("%s cannot be removed yet: %s", identity, error)
                await self._around.engine.ping()  # the others need not stay, if the engine is well
            else:
                self._strays.discard(identity)

    def _is_driven(self, identity: Identity) -> bool:
        runner = self._runners.get(identity.kernel_id)
        return runner is not None and runner.identity == identity

    async def close(self) -> None:
        """Stop watching; kernels go on."""
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))
        self._around.mounting.shutdown(wait=False, cancel_futures=True)

    def _want(self, spec: KernelSpec) -> None:
        if spec.epoch < self._highest.get(spec.kernel_id, 0):
            log.warning("kernel %s: epoch %d is stale", spec.kernel_id, spec.epoch)
            return
        self._highest[spec.kernel_id] = spec.epoch
        runner = self._runners.get(spec.kernel_id)
        if runner is None:
            identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
            runner = self._runners[spec.kernel_id] = KernelRunner(self._around, identity)
            runner.want(spec)
        elif runner.identity.epoch == spec.epoch:
            runner.want(spec)
        else:  # the older run must be gone before the newer one starts
            self._next[spec.kernel_id] = spec
            runner.drain()

    def _drain(self, kernel_id: str, epoch: int) -> KernelReport | None:
        following = self._next.get(kernel_id)
        if following is not None and following.epoch <= epoch:
            del self._next[kernel_id]
        runner = self._runners.get(kernel_id)
        if runner is not None and runner.identity.epoch <= epoch:
            if runner.identity.epoch < epoch:
                self._never_start[kernel_id] = (runner.identity.session_id, epoch)
            runner.drain()
            if runner.identity.epoch < epoch:
                return None  # of the run that was meant nothing can be said before the older one is gone
            return runner.report if runner.ended else None
        if runner is None:
            # Fence: a start of this epoch that is still on its way must not be obeyed any more.
            self._highest[kernel_id] = max(self._highest.get(kernel_id, 0), epoch + 1)
            return KernelReport(kernel_id, "", epoch, "TERMINATED", progress="ended")
        return None

    async def _forget(self, runner: KernelRunner) -> None:
        kernel_id = runner.identity.kernel_id
        try:
            await runner.forget()
        except (EngineError, OSError) as error:
            log.warning("kernel %s cannot be removed yet: %s", kernel_id, error)
            self._strays.add(runner.identity)
        if self._runners.get(kernel_id) is not runner:
            return  # it was forgotten twice, and is not any more what is here
        del self._runners[kernel_id]
        self._unknown_since.pop(kernel_id, None)
        fenced = self._never_start.pop(kernel_id, None)
        if fenced is not None:
            session_id, epoch = fenced
            self._highest[kernel_id] = max(self._highest.get(kernel_id, 0), epoch + 1)
            self._around.changed(
                KernelReport(kernel_id, session_id, epoch, "TERMINATED", progress="ended")
            )
        following = self._next.pop(kernel_id, None)
        if following is not None:
            self._want(following)

    def _chosen(self, kernel_id: str | None) -> Iterable[KernelRunner]:
        if kernel_id is None:
            return tuple(self._runners.values())
        runner = self._runners.get(kernel_id)
        return () if runner is None else (runner,)
