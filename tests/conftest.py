"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is slow at anything, so no example has a time limit. Where a change is judged (`.ci/run` sets CI) examples are
# always the same ones: it must not fail by chance for what was there before. Everywhere else they are drawn anew each time.
settings.register_profile(
    "sidestep", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("sidestep")
