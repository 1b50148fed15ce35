"""How long a sidecar stays away from a control plane."""

from __future__ import annotations

import pytest

from sidecar.sync.backoff import LONGEST_ASKED_S, Backoff


def test_the_bound_doubles_up_to_its_limit_and_starts_over() -> None:
    backoff = Backoff(first_s=1.0, limit_s=4.0)
    for bound in (1.0, 2.0, 4.0, 4.0):
        assert 0.0 <= backoff.next_s() <= bound
    backoff.reset()
    assert backoff.next_s() <= 1.0


@pytest.mark.parametrize(("asked", "least"), [(5.0, 5.0), (86_400.0, LONGEST_ASKED_S), (-7.0, 0.0)])
def test_what_the_server_asks_for_is_kept_within_reason(asked: float, least: float) -> None:
    assert least <= Backoff(first_s=1.0).next_s(asked) <= least + 1.0
