"""`sidestep class`, and what of classes and breakers the control plane refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Sidestep

SETTINGS = """apiVersion: sidestep.dev/v1
kind: Settings
metadata: {tenant: acme}
spec:
  breakers:
    - {max_rate: 0.05, min_samples: 30, window: 604800s, reopen_after: 3600s, steps: [0.5, 0.1]}
"""


def state(sidestep: Sidestep, class_id: str = "default") -> dict[str, object]:
    found: dict[str, object] = sidestep.json("class", "get", class_id)
    return found


def test_a_person_suspends_a_class_and_it_reopens_in_steps(sidestep: Sidestep) -> None:
    sidestep("settings", "put", sidestep.file("settings.yaml", SETTINGS))
    assert state(sidestep)["state"] == "CLASS_STATE_ACTIVE"
    assert "written" in sidestep("class", "suspend", "default", "--reason", "stolen laptops")
    held = state(sidestep)
    assert (held["state"], held["held"], held["reason"]) == ("CLASS_STATE_SUSPENDED", True, "stolen laptops")
    sidestep("class", "resume", "default", "--reason", "replaced")
    reopening = state(sidestep)
    assert (reopening["state"], reopening["spotCheckRate"], reopening["held"]) == (
        "CLASS_STATE_REOPENING",
        0.5,
        False,
    )


def test_without_a_breaker_it_is_active_again_at_once(sidestep: Sidestep) -> None:
    sidestep("class", "suspend", "staff", "--reason", "x")
    sidestep("class", "resume", "staff", "--reason", "y")
    assert state(sidestep, "staff")["state"] == "CLASS_STATE_ACTIVE"


def test_two_people_resume_a_class_where_one_may_not_undo_the_kill_switch(sidestep: Sidestep) -> None:
    controlled = SETTINGS + "  changeControl: {killSwitch: true}\n"
    sidestep("settings", "put", sidestep.file("settings.yaml", controlled))
    sidestep("class", "suspend", "default", "--reason", "x")
    assert "propose it" in sidestep("class", "resume", "default", "--reason", "y", code=1)
    proposed = sidestep.json("--actor", "ann", "class", "resume", "default", "--reason", "y", "--propose")["proposal"]
    assert (proposed["reason"], proposed["rules"]) == ("y", ["change_control.kill_switch"])
    sidestep("--actor", "ben", "proposal", "approve", proposed["name"].rpartition("/")[2])
    # Nobody was verified, and that is said.
    assert "only said" in sidestep.stderr
    assert state(sidestep)["state"] == "CLASS_STATE_REOPENING"


def test_what_is_not_suspended_is_not_resumed(sidestep: Sidestep) -> None:
    assert "is not suspended" in sidestep("class", "resume", "default", "--reason", "y", code=1)


def test_the_list_has_every_class(sidestep: Sidestep) -> None:
    assert [each["name"] for each in sidestep.json("class", "list")] == ["tenants/acme/grantClasses/default"]
    sidestep("class", "suspend", "staff", "--reason", "x")
    shown = sidestep("classes", "list")
    assert "default" in shown
    assert "SUSPENDED" in shown


def test_suspending_leaves_an_entry_in_the_audit_log(sidestep: Sidestep) -> None:
    sidestep("class", "suspend", "staff", "--reason", "stolen laptops")
    assert "tenants/acme/grantClasses/staff" in sidestep("audit", "list")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("max_rate: 0.05", "max_rate: 1.5"), "breakers[0].max_rate"),
        (("max_rate: 0.05", "max_rate: NaN"), "breakers[0].max_rate"),
        (("min_samples: 30", "min_samples: 1"), "breakers[0].min_samples"),
        (("window: 604800s", "window: 1s"), "breakers[0].window"),
        (("window: 604800s, ", ""), "breakers[0].window"),
        (("reopen_after: 3600s", "reopen_after: 1s"), "breakers[0].reopen_after"),
        (("[0.5, 0.1]", "[0.1, 0.5]"), "breakers[0].steps[1]"),
        (("[0.5, 0.1]", "[0.0]"), "breakers[0].steps[0]"),
        (("{max_rate", "{grant_class: Bad_, max_rate"), "breakers[0].grant_class"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1] or "absent",
)
def test_impossible_limits_are_refused(sidestep: Sidestep, change: tuple[str, str], field: str) -> None:
    path = sidestep.file("settings.yaml", SETTINGS.replace(*change))
    assert field in sidestep("settings", "put", path, code=1)


def test_two_breakers_of_one_class_are_refused(sidestep: Sidestep) -> None:
    line = SETTINGS.splitlines(keepends=True)[-1]
    path = sidestep.file("settings.yaml", SETTINGS + line.replace("{max_rate", "{grant_class: default, max_rate"))
    assert "breakers[1].grant_class" in sidestep("settings", "put", path, code=1)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("{since_time: '2026-01-01T00:00:00Z'}", "grant_class_state.state"),
        ("{state: CLASS_STATE_ACTIVE}", "grant_class_state.since_time"),
        (
            "{state: CLASS_STATE_REOPENING, since_time: '2026-01-01T00:00:00Z'}",
            "grant_class_state.spot_check_rate",
        ),
        (
            "{state: CLASS_STATE_ACTIVE, held: true, since_time: '2026-01-01T00:00:00Z'}",
            "grant_class_state.held",
        ),
    ],
    ids=["no state", "no time", "no rate", "held"],
)
def test_impossible_states_are_refused(sidestep: Sidestep, spec: str, field: str) -> None:
    text = (
        f"apiVersion: sidestep.dev/v1\nkind: GrantClassState\nmetadata: {{name: staff, tenant: acme}}\nspec: {spec}\n"
    )
    assert field in sidestep("apply", "-f", sidestep.file("state.yaml", text), code=1)
