"""What the demo's control plane knows: the tenant acme, its users, devices and grants."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.client import Revision
from sidestep.v1 import admin_pb2, admin_pb2_grpc, resources_pb2

from examples.identity import AUDIENCE, ISSUER, DeviceKey, IdentityProvider

TENANT = "acme"
LAPTOP = {
    "os": "macOS",
    "platform": "arm64",
    "browser": "Firefox",
    "os_version": "15",
    "browser_version": "140",
    "canvas": "c-4f1b",
    "webgl": "Apple M3",
    "audio": "a-77",
    "fonts": "f-213",
    "screen": "1728x1117",
    "timezone": "Europe/Berlin",
    "language": "de-DE",
    "hardware": "8/16",
}
TABLET = LAPTOP | {
    "os": "Android",
    "platform": "aarch64",
    "browser": "Chrome",
    "canvas": "c-90aa",
    "webgl": "Adreno 740",
}
PHONE = TABLET | {"os": "iOS", "browser": "Safari", "canvas": "c-1d07", "webgl": "Apple A18", "screen": "393x852"}
CONVERGENCE_TIMEOUT_S = 20.0


def at(age: timedelta) -> Timestamp:
    """The moment that long ago."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) - age)
    return stamp


class Admin:
    """The control plane's admin API, as far as the demo needs it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def put(self, **record: object) -> Revision:
        """Writes one record: `put(grant=Grant(...))`. Returns the revision it has from then on."""
        resource = resources_pb2.Resource(**record)  # type: ignore[arg-type]
        answer = self._stub.PutResource(admin_pb2.PutResourceRequest(resource=resource), timeout=10)
        return Revision(answer.revision.epoch, answer.revision.revision)

    def wait_until_everywhere(self, timeout_s: float = CONVERGENCE_TIMEOUT_S) -> None:
        """Waits until every connected sidecar has acknowledged the present heads. Raises TimeoutError."""
        parent = f"tenants/{TENANT}"
        heads = self._stub.GetRevisions(admin_pb2.GetRevisionsRequest(parent=parent), timeout=10).heads
        wanted = {(head.lane, head.epoch): head.revision for head in heads}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            sidecars = self._stub.ListSidecars(admin_pb2.ListSidecarsRequest(parent=parent), timeout=10).sidecars
            connected = [sidecar for sidecar in sidecars if sidecar.connected]
            if connected and all(_current(sidecar, wanted) for sidecar in connected):
                return
            time.sleep(0.02)
        raise TimeoutError("the sidecar did not catch up with the control plane")

    def close(self) -> None:
        """Hangs up."""
        self._channel.close()


def _current(sidecar: admin_pb2.SidecarStatus, wanted: dict[tuple[int, int], int]) -> bool:
    reached: dict[tuple[int, int], int] = {(c.lane, c.epoch): c.revision for c in sidecar.cursors if c.tenant == TENANT}
    return all(reached.get(lane, -1) >= revision for lane, revision in wanted.items())


class World:
    """Writes the records, and keeps what only the users' side knows: keys of devices, the identity provider."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self.idp = IdentityProvider()
        self.alice_key = DeviceKey()
        self.dora_key = DeviceKey()

    def build(self) -> None:
        """Everything but policies and the feed."""
        put = self._admin.put
        put(settings=self._settings())
        put(
            key=resources_pb2.Key(
                name=_name("keys", self.idp.kid), kind="KEY_KIND_ISSUER", issuer=ISSUER, jwk=self.idp.jwk
            )
        )
        put(key=resources_pb2.Key(name=_name("keys", "devices-1"), kind="KEY_KIND_FINGERPRINT"))
        put(key=resources_pb2.Key(name=_name("keys", "tenant-1"), kind="KEY_KIND_TENANT"))
        for subject, roles in (("alice", []), ("bob", []), ("dora", ["treasury"])):
            self._subject(subject, roles)
        self.device("alice-laptop", "alice", LAPTOP, self.alice_key.jkt)
        self.device("bob-tablet", "bob", TABLET)
        self.device("dora-laptop", "dora", LAPTOP | {"canvas": "c-d0"}, self.dora_key.jkt)

    def device(self, device_id: str, subject: str, fingerprint: dict[str, str], jkt: str = "") -> Revision:
        """Registers a device, as after a strong login on it yesterday."""
        login = resources_pb2.Authentication(acr="phr", amr=["pop"], auth_time=at(timedelta(days=1)), issuer=ISSUER)
        return self._admin.put(
            device=resources_pb2.Device(
                name=_name("devices", device_id),
                subject=subject,
                fingerprint=fingerprint,
                jkt=jkt,
                create_time=at(timedelta(days=90)),
                validate_time=at(timedelta(days=1)),
                authentications=[login],
            )
        )

    def device_state(self, device_id: str, subject: str, trust: str) -> Revision:
        """ACTIVE, QUARANTINED or REVOKED."""
        state = resources_pb2.DeviceState(
            name=_name("deviceStates", device_id), subject=subject, trust=f"DEVICE_TRUST_{trust}", reason="demo"
        )
        return self._admin.put(device_state=state)

    def grant(self, grant_id: str, state: str = "ACTIVE", **scope: str) -> Revision:
        """An exemption for a day, up to nist-aal2."""
        record = resources_pb2.Grant(
            name=_name("grants", grant_id),
            state=f"GRANT_STATE_{state}",
            actions=["payments.*"],
            start_time=at(timedelta(hours=1)),
            expire_time=at(timedelta(days=-1)),
            ceiling=resources_pb2.Requirement(acr="nist-aal2", max_age=Duration(seconds=3600)),
            reason="demo",
            owner="payments-team",
            **scope,  # type: ignore[arg-type]
        )
        return self._admin.put(grant=record)

    def posture(self, level: str, *, exemptions_off: bool = False) -> Revision:
        """The threat level and the kill switch."""
        record = resources_pb2.Posture(
            name=_name("postures", "default"),
            level=f"POSTURE_LEVEL_{level}",
            exemptions_off=exemptions_off,
            reason="demo",
        )
        return self._admin.put(posture=record)

    def _subject(self, subject: str, roles: list[str]) -> None:
        record = resources_pb2.Subject(
            name=_name("subjects", subject), state="SUBJECT_STATE_ACTIVE", roles=roles, methods=["webauthn", "totp"]
        )
        self._admin.put(subject=record)

    def _settings(self) -> resources_pb2.Settings:
        issuer = resources_pb2.Issuer(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["phr", "nist-aal2"])
        edge = resources_pb2.AcrEdge(higher="phr", lower="nist-aal2")
        return resources_pb2.Settings(name=_name("settings", "default"), acr_edges=[edge], issuers=[issuer])


def _name(collection: str, record_id: str) -> str:
    return f"tenants/{TENANT}/{collection}/{record_id}"
