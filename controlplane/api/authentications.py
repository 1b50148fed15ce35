"""What a reported authentication changes: the subject's last strong authentication, and what is known of the device.

Everything is merged so that reports may be repeated and overtake each other: the later time stays, and a device lists an
authentication once. A sidecar says which device it was; whether it happened, and when, the proof alone says.
"""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import report_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import Actor
from controlplane.api import validation
from controlplane.api.links import check_links, records
from controlplane.api.refusals import Refusals
from controlplane.api.resources import Checked, decode
from controlplane.audit import Note
from controlplane.errors import ConflictError, RefusedError
from controlplane.proofs import MAX_LATE_S, Proof, ProofError, Verifier
from controlplane.store import Store, Write
from engine.errors import InvalidInputError
from engine.facts import Subject
from engine.names import SINGLETON_ID, Collection, Name
from engine.registration import (
    MAX_REGISTER_LATE_S,
    NOT_STRONG,
    REGISTERED_BEFORE,
    TOO_OLD,
    VOIDED,
    counts_for_device,
    unfit_to_register,
)

REPORT = "authentication.report"
REGISTER = "device.register"
ATTEMPTS = 5
_UNFIT = {
    NOT_STRONG: "a device is registered after a strong authentication only, and this one is not",
    TOO_OLD: "the authentication was reported too long after it happened to register a device",
    VOIDED: "the authentication is not later than the subject's last recovery, SIM or authenticator change",
    REGISTERED_BEFORE: "the authentication is not later than the last one that registered a device of the subject",
}
M = TypeVar("M", bound=Message)


class Receipt(NamedTuple):
    """What became of one. `problem` empty: recorded."""

    problem: str = ""
    device_updated: bool = False


class Authentications:
    """Records reported authentications of one request: settings and keys of a tenant are read once for all of them."""

    def __init__(self, store: Store, refusals: Refusals, sidecar: str, *, verified: bool = False) -> None:
        """`verified`: a certificate proves which sidecar it is."""
        self._store = store
        self._refusals = refusals
        self._actor = Actor(f"sidecar:{sidecar}", verified=verified, tenants=None, permissions=frozenset())
        self._verifiers: dict[str, Verifier] = {}

    async def record(self, reported: report_pb2.ReportedAuthentication) -> Receipt:
        """Verifies and records one. What is refused is entered in the audit log. Raises StoreError."""
        note = self._note(reported.tenant, reported.subject, REPORT)
        try:
            return Receipt(device_updated=await self._record(reported))
        except ProofError as error:
            problem = f"the proof {error}"
        except (RefusedError, InvalidInputError) as error:
            problem = str(error)
        await self._refusals.record(reported.tenant, note, problem)
        return Receipt(problem)

    async def refuse(self, refused: report_pb2.RefusedAuthentication) -> None:
        """Enters what the sidecar refused by itself in the audit log. Raises StoreError."""
        caller = f" by {refused.caller}" if refused.caller else ""
        note = self._note(refused.tenant, refused.subject, REPORT)
        await self._refusals.record(
            refused.tenant, note, f"reported{caller}, refused by the sidecar: {refused.problem}"
        )

    def _note(self, tenant: str, subject: str, action: str, detail: str = "") -> Note:
        return Note(self._actor, action, str(Name(tenant, Collection.SUBJECTS, subject)), detail)

    async def _record(self, reported: report_pb2.ReportedAuthentication) -> bool:
        """Whether the device was made or changed. Raises ProofError, RefusedError, InvalidInputError."""
        now = time.time()
        verifier = await self._verifier(reported.tenant)
        proof = verifier.verify(reported.token, _reported_at(reported), now)
        if proof.subject != reported.subject:
            raise ProofError("is about another subject")
        forget_at = proof.expires_at + verifier.clock_skew_s + MAX_LATE_S
        if not await self._store.proofs.claim(
            reported.tenant, proof.issuer, proof.jti, _digest(reported), min(forget_at, now + 10 * 366 * 86400.0)
        ):
            raise ProofError("was used before, for another report: a jti counts once")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._write(reported, proof, verifier, now)
            except ConflictError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _write(
        self, reported: report_pb2.ReportedAuthentication, proof: Proof, verifier: Verifier, now: float
    ) -> bool:
        tenant = reported.tenant
        expect: dict[tuple[int, str], bytes | None] = {}
        writes: list[Write] = []
        subject = await self._read(tenant, Collection.SUBJECTS, reported.subject, pb.Subject, expect)
        if subject is not None and subject.state != pb.SUBJECT_STATE_ACTIVE:
            raise RefusedError("the subject is disabled")
        strong = verifier.strong(proof, _as_facts(subject), now)
        note: Note | None = None
        device, registered = None, False
        if reported.device:
            device, registered = await self._device(reported, proof, verifier, subject, expect, now, strong=strong)
            if registered:
                told = f"device {reported.device} after {proof.acr} by {proof.issuer}"
                note = self._note(tenant, reported.subject, REGISTER, told)
        if (
            subject is not None
            and strong
            and _prove(subject, _timestamp(proof.authenticated_at), registered=registered)
        ):
            writes.append(_write_of(Collection.SUBJECTS, reported.subject, subject))
        if device is not None:
            writes.append(_write_of(Collection.DEVICES, reported.device, device))
        if writes:
            await self._store.commit(tenant, writes, expect=expect, audit=note)
        if strong:
            # Budgets count anew from here. If this fails the sidecar reports again, and all of it is repeated.
            await self._store.budgets.begin_period(tenant, reported.subject, proof.authenticated_at)
        return device is not None

    async def _device(
        self,
        reported: report_pb2.ReportedAuthentication,
        proof: Proof,
        verifier: Verifier,
        subject: pb.Subject | None,
        expect: dict[tuple[int, str], bytes | None],
        now: float,
        *,
        strong: bool,
    ) -> tuple[pb.Device | None, bool]:
        """The device with the authentication added, None if nothing of it changes; and whether it is newly registered.

        Raises RefusedError, InvalidInputError.
        """
        state = await self._read(reported.tenant, Collection.DEVICE_STATES, reported.device, pb.DeviceState, expect)
        device = await self._read(reported.tenant, Collection.DEVICES, reported.device, pb.Device, expect)
        if state is not None and state.trust != pb.DEVICE_TRUST_ACTIVE:
            # A blocked device stays as it is until a person lifts the block; what was proved for the subject counts.
            return None, False
        registered = device is None
        if device is None:
            if not reported.register:
                return None, False
            device = await self._register(reported, proof, verifier, subject, now, strong=strong)
        elif device.subject != reported.subject:
            raise RefusedError("the device is registered for another subject")
        elif reported.register and not _same(device, reported):
            raise RefusedError("a device of this id is registered, and looks otherwise")
        elif not counts_for_device(proof.authenticated_at, _reported_at(reported), verifier.register_within_s):
            # The sidecar would not have named the device; what an old proof shows of it is nothing.
            raise RefusedError("the authentication was reported too long after it happened to count for a device")
        before = device.SerializeToString(deterministic=True)
        _add(device, proof, strong=strong)
        changed = registered or device.SerializeToString(deterministic=True) != before
        return (device if changed else None), registered

    async def _register(
        self,
        reported: report_pb2.ReportedAuthentication,
        proof: Proof,
        verifier: Verifier,
        subject: pb.Subject | None,
        now: float,
        *,
        strong: bool,
    ) -> pb.Device:
        """A new device. Raises RefusedError, InvalidInputError."""
        if subject is None:
            raise RefusedError("a device is registered for a known subject only")
        problem = unfit_to_register(
            proof.authenticated_at,
            _reported_at(reported),
            verifier.register_within_s,
            _as_facts(subject),
            _moment(subject, "device_register_time"),
            is_strong=strong,
        )
        if problem:
            raise RefusedError(_UNFIT[problem])
        if now - proof.authenticated_at > verifier.register_within_s + MAX_REGISTER_LATE_S:
            # When it was reported is the sidecar's word; how long it may have waited is ours.
            raise RefusedError("the authentication arrived too late to register a device")
        if reported.jkt and reported.jkt != proof.jkt:
            raise RefusedError("the proof is not bound to the device's key (cnf.jkt)")
        if not (reported.components or reported.versions or reported.jkt):
            raise RefusedError("the device shows nothing to know it by: neither components nor a key")
        name = Name(reported.tenant, Collection.DEVICES, reported.device)
        device = pb.Device(
            name=str(name),
            subject=reported.subject,
            components=reported.components,
            versions=reported.versions,
            key_id=reported.key_id,
            jkt=reported.jkt,
        )
        device.create_time.CopyFrom(_timestamp(time.time()))
        validation.check(device, name, "device")
        await check_links(self._store, Checked(name, device))
        return device

    async def _read(
        self,
        tenant: str,
        collection: Collection,
        record_id: str,
        kind: type[M],
        expect: dict[tuple[int, str], bytes | None],
    ) -> M | None:
        value = await self._store.get(tenant, collection, record_id)
        expect[(collection, record_id)] = value
        if value is None:
            return None
        record = kind()
        record.ParseFromString(value)
        return record

    async def _verifier(self, tenant: str) -> Verifier:
        verifier = self._verifiers.get(tenant)
        if verifier is None:
            value = await self._store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
            settings = pb.Settings() if value is None else decode(Collection.SETTINGS, value)
            keys = {
                key_id: decode(Collection.KEYS, stored)
                async for key_id, stored in records(self._store, tenant, Collection.KEYS)
            }
            verifier = self._verifiers[tenant] = Verifier(settings, keys)
        return verifier


def _prove(subject: pb.Subject, at: Timestamp, *, registered: bool) -> bool:
    """Notes a strong authentication of the subject; whether that changes it."""
    changed = False
    for field in ("strong_authentication_time", *(("device_register_time",) if registered else ())):
        if at.ToNanoseconds() > getattr(subject, field).ToNanoseconds():
            getattr(subject, field).CopyFrom(at)
            changed = True
    return changed


def _as_facts(subject: pb.Subject | None) -> Subject:
    """What voids and doubts need to know of a subject."""
    if subject is None:
        return Subject()
    return Subject(
        recovered_at=_moment(subject, "recover_time"),
        sim_changed_at=_moment(subject, "sim_change_time"),
        authenticator_changed_at=_moment(subject, "authenticator_change_time"),
    )


def _moment(subject: pb.Subject, field: str) -> float | None:
    return getattr(subject, field).ToNanoseconds() / 1e9 if subject.HasField(field) else None


def _reported_at(reported: report_pb2.ReportedAuthentication) -> float:
    return reported.report_time.ToNanoseconds() / 1e9


def _add(device: pb.Device, proof: Proof, *, strong: bool) -> None:
    """Adds what was proved to the device, newest first; a strong authentication validates it."""
    event = pb.Authentication(acr=proof.acr, amr=proof.amr, issuer=proof.issuer)
    event.auth_time.CopyFrom(_timestamp(proof.authenticated_at))
    if proof.acr and event not in device.authentications:
        known = sorted((*device.authentications, event), key=lambda past: past.auth_time.ToNanoseconds(), reverse=True)
        del device.authentications[:]
        device.authentications.extend(known[: validation.MAX_AUTHENTICATIONS])
    if strong and event.auth_time.ToNanoseconds() > device.validate_time.ToNanoseconds():
        device.validate_time.CopyFrom(event.auth_time)


def _same(device: pb.Device, reported: report_pb2.ReportedAuthentication) -> bool:
    """Whether a device is registered just as it is reported."""
    return (
        dict(device.components) == dict(reported.components)
        and dict(device.versions) == dict(reported.versions)
        and (device.key_id, device.jkt) == (reported.key_id, reported.jkt)
    )


def _write_of(collection: Collection, record_id: str, record: Any) -> Write:
    if "update_time" in record.DESCRIPTOR.fields_by_name:
        record.update_time.CopyFrom(_timestamp(time.time()))
    return Write(collection, record_id, record.SerializeToString(deterministic=True))


def _timestamp(at: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(at * 1e9))
    return stamp


def _digest(reported: report_pb2.ReportedAuthentication) -> bytes:
    """Of all that a report says but when: a service may report once more, through another sidecar."""
    copy = report_pb2.ReportedAuthentication()
    copy.CopyFrom(reported)
    copy.ClearField("report_time")
    return sha256(copy.SerializeToString(deterministic=True)).digest()
