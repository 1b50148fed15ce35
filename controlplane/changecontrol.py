"""Change control: which changes of which records need a second person. Pure; Settings.change_control says what is guarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from sidestep.v1 import resources_pb2 as pb

from controlplane.bounds import loosens_classes, reopens_class
from engine.names import Collection

DEFAULT_LIFETIME_S: Final = 7 * 86_400.0
MIN_LIFETIME_S: Final = 60.0
MAX_LIFETIME_S: Final = 30 * 86_400.0

RULES: Final = ("policies", "keys", "settings", "posture", "kill_switch", "blocks")
_PREFIX: Final = "change_control."
# Weakening change control itself: has no switch of its own, or that would be the one to turn off.
_ITSELF: Final = "change_control"
_ALWAYS: Final = {Collection.POLICIES: "policies", Collection.KEYS: "keys", Collection.SETTINGS: "settings"}
# Records that block, or that a block is found by.
_BLOCKS: Final = frozenset(
    {Collection.SUBJECTS, Collection.DEVICE_STATES, Collection.REVOKED_SESSIONS, Collection.DEVICES}
)


# Events of a subject that void what was proved before them.
_VOIDING: Final = tuple(
    name
    for name in ("recover_time", "sim_change_time", "authenticator_change_time")
    if name in pb.Subject.DESCRIPTOR.fields_by_name
)


class Change(NamedTuple):
    """One record before and after. None: there is none. `twin`: of a device, its standing; `owner`: the subject it is of."""

    collection: Collection
    before: Any | None
    after: Any | None
    twin: pb.DeviceState | None = None
    owner: pb.Subject | None = None


def guarded(control: pb.ChangeControl, change: Change, now: float) -> list[str]:
    """The rules by which a change needs a second person, as users write them; none: it needs none."""
    if change.before is None and change.after is None:
        return []
    found = [f"{_PREFIX}{rule}" for rule in _rules(change, now) if getattr(control, rule)]
    if change.collection is Collection.SETTINGS and _weakens(control, change.before, change.after):
        found.append(_ITSELF)
    return found


def finding_rules(control: pb.ChangeControl) -> list[str]:
    """The rules by which dismissing a finding needs a second person: it sheds the suspicion that the finding left."""
    return [f"{_PREFIX}blocks"] if control.blocks else []


def concerns(control: pb.ChangeControl, collection: Collection) -> bool:
    """Whether any change of such records may need a second person."""
    always = _ALWAYS.get(collection)
    if always is not None and getattr(control, always):
        return True
    if collection is Collection.SETTINGS:
        return is_on(control)
    if collection is Collection.POSTURES:
        return control.posture or control.kill_switch
    if collection is Collection.GRANT_CLASSES:
        return control.kill_switch
    return control.blocks and collection in _BLOCKS


def protects(collection: Collection, record: Any, now: float) -> bool:
    """Whether a change of this stored record may lift a block: of a device, its standing is asked instead."""
    if collection is Collection.SUBJECTS:
        voided = any(map(record.HasField, _VOIDING))
        return record.state != pb.SUBJECT_STATE_ACTIVE or voided or bool(suspected(record, now))
    if collection is Collection.DEVICE_STATES:
        return blocks(record) > 0
    return collection is Collection.REVOKED_SESSIONS and not _is_over(record, now)


def is_on(control: pb.ChangeControl) -> bool:
    """Whether anything is guarded."""
    return any(getattr(control, rule) for rule in RULES)


def lifetime_s(control: pb.ChangeControl) -> float:
    """How long a proposal waits, in seconds."""
    if not control.HasField("proposal_lifetime"):
        return DEFAULT_LIFETIME_S
    return control.proposal_lifetime.ToNanoseconds() / 1e9


def blocks(state: pb.DeviceState | None) -> int:
    """How strongly a standing blocks its device: 0 not at all, 2 for good. What is unknown blocks."""
    if state is None or state.trust == pb.DEVICE_TRUST_ACTIVE:
        return 0
    return 2 if state.trust == pb.DEVICE_TRUST_REVOKED else 1


def suspected(subject: pb.Subject | None, now: float) -> dict[tuple[str, str], int]:
    """The devices of a subject that are suspect, with the guard that says so, and until when (ns)."""
    marks = subject.suspects if subject is not None else ()
    # Without an end it has none.
    ends = {(mark.device, mark.guard): _at(mark, "expire_time") or 2**63 for mark in marks}
    return {pair: end for pair, end in ends.items() if end > now * 1e9}


def _rules(change: Change, now: float) -> Iterator[str]:
    """What a change is an instance of."""
    always = _ALWAYS.get(change.collection)
    if always is not None:
        yield always
    elif change.collection is Collection.POSTURES:
        if _level(change.after) < _level(change.before):
            yield "posture"
        if _is_off(change.before) and not _is_off(change.after):
            yield "kill_switch"
    elif change.collection is Collection.GRANT_CLASSES:
        if reopens_class(change.before, change.after):
            yield "kill_switch"
    else:
        lifts = _LIFTS.get(change.collection)
        # What a blocked device is known by is also changed by registering it at last.
        exists = change.before is not None or change.collection is Collection.DEVICES
        if exists and lifts is not None and lifts(change, now):
            yield "blocks"


def _weakens(control: pb.ChangeControl, before: pb.Settings | None, after: pb.Settings | None) -> bool:
    if not is_on(control):
        return False
    left = after.change_control if after is not None else pb.ChangeControl()
    if any(getattr(control, rule) and not getattr(left, rule) for rule in RULES):
        return True
    # What a grant may be, and how many people must approve it, is what one person may not do alone.
    if loosens_classes(before, after):
        return True
    # One who proposes must not be able to wait until nobody looks any more.
    return lifetime_s(left) > lifetime_s(control)


def _level(posture: pb.Posture | None) -> int:
    """No record means LOW, an unspecified or unknown level CRITICAL."""
    if posture is None:
        return pb.POSTURE_LEVEL_LOW
    known = pb.POSTURE_LEVEL_LOW <= posture.level <= pb.POSTURE_LEVEL_CRITICAL
    return posture.level if known else pb.POSTURE_LEVEL_CRITICAL


def _is_off(posture: pb.Posture | None) -> bool:
    return posture is not None and posture.exemptions_off


def _lifts_subject(change: Change, now: float) -> bool:
    before: Any = change.before
    # Whoever is disabled and then deleted is an unknown subject, whom nothing blocks.
    disabled = before.state != pb.SUBJECT_STATE_ACTIVE
    if disabled and (change.after is None or change.after.state == pb.SUBJECT_STATE_ACTIVE):
        return True
    # Whoever is deleted and put again has had no such event.
    after = change.after if change.after is not None else pb.Subject()
    if any(_at(before, field) > _at(after, field) for field in _VOIDING):
        return True
    # Of a put the control plane keeps the suspicion; a deletion would shed it.
    left = suspected(after, now)
    return any(left.get(pair, 0) < end for pair, end in suspected(before, now).items())


def _at(record: Any, field: str) -> int:
    """A time in ns; 0: never."""
    return int(getattr(record, field).ToNanoseconds()) if record.HasField(field) else 0


def _lifts_device_state(change: Change, now: float) -> bool:
    before, after = change.before, change.after
    if not blocks(before):
        return False
    # Of another subject, it no longer blocks the device for this one.
    return after is None or blocks(after) < blocks(before) or after.subject != before.subject  # type: ignore[union-attr]


def _lifts_session(change: Change, now: float) -> bool:
    before: Any = change.before
    if _is_over(before, now):
        return False
    return change.after is None or change.after.expire_time.ToNanoseconds() < before.expire_time.ToNanoseconds()


def _is_over(session: pb.RevokedSession, now: float) -> bool:
    return session.expire_time.ToNanoseconds() <= now * 1e9


def _lifts_device(change: Change, now: float) -> bool:
    # A blocked device is known by what is registered of it: without that, or with something else, it is another one.
    # So is one that is suspect of being somebody else.
    name = (change.before if change.before is not None else change.after).name  # type: ignore[union-attr]
    suspect = any(device == name.rpartition("/")[2] for device, _ in suspected(change.owner, now))
    return (suspect or bool(blocks(change.twin))) and change.before != change.after


_LIFTS: Final[dict[Collection, Callable[[Change, float], bool]]] = {
    Collection.SUBJECTS: _lifts_subject,
    Collection.DEVICE_STATES: _lifts_device_state,
    Collection.REVOKED_SESSIONS: _lifts_session,
    Collection.DEVICES: _lifts_device,
}
