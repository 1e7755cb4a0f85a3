"""How many examples the properties run: few by default, many with ``--hypothesis-profile=deep``.

``EXAMPLES`` in the environment says how many those are.
"""

import os

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "quick",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=SLOW,
)
settings.register_profile(
    "deep",
    max_examples=int(os.environ.get("EXAMPLES", "100000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW,
)
if settings.get_current_profile_name() == "default":
    settings.load_profile("quick")
