"""What is believed of a stream, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep.v1 import resources_pb2, sync_pb2

from engine.statement import Kind, key_id, statement
from sidecar.page import UNVERIFIED
from sidecar.sync.errors import ProtocolError
from sidecar.sync.trust import Fault, TrustedKeys, TrustedKeysError, UnverifiedError

URGENT = resources_pb2.LANE_URGENT
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
CURSOR = sync_pb2.Cursor(tenant="acme", lane=URGENT, epoch=1, revision=7, digest=bytes(32))
MESSAGES = {
    Kind.HEARTBEAT: sync_pb2.Heartbeat(heads=[CURSOR], nonce=99).SerializeToString(),
    Kind.DELTA: sync_pb2.Delta(tenant="acme", lane=URGENT, epoch=1, revision=8).SerializeToString(),
    Kind.SNAPSHOT_OFFER: sync_pb2.SnapshotOffer(cursor=CURSOR, records=3, digest_key=bytes(32)).SerializeToString(),
    Kind.SCOPE: sync_pb2.Scope(tenants=["acme"], nonce=5, number=1).SerializeToString(),
}


def name(key: Ed25519PrivateKey) -> str:
    return key_id(key.public_key().public_bytes_raw())


def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(kind: Kind, content: bytes, key: Ed25519PrivateKey = PRIVATE, as_kind: Kind | None = None) -> bytes:
    signature = sync_pb2.Signature(key_id=name(key), signature=key.sign(statement(as_kind or kind, content)))
    return sync_pb2.SignedResponse(**{kind.value: content}, signature=signature).SerializeToString()


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> TrustedKeys:
    path = tmp_path_factory.mktemp("trust") / "trusted.pem"
    path.write_bytes(b"# the control plane's\n" + pem(PRIVATE))
    return TrustedKeys(str(path))


def fault(trust: TrustedKeys, raw: bytes) -> Fault:
    with pytest.raises(UnverifiedError) as refused:
        trust.open(raw)
    return refused.value.fault


def test_the_page_counts_by_the_same_names() -> None:
    assert tuple(Fault) == UNVERIFIED


@pytest.mark.parametrize("kind", Kind)
def test_what_is_signed_by_a_pinned_key_is_believed(trust: TrustedKeys, kind: Kind) -> None:
    opened = trust.open(signed(kind, MESSAGES[kind]))
    assert opened.WhichOneof("message") == kind.value
    content = getattr(opened, kind.value)
    assert (content if kind is Kind.DELTA else content.SerializeToString()) == MESSAGES[kind]


@pytest.mark.parametrize("kind", Kind)
def test_a_message_without_a_signature_is_refused(trust: TrustedKeys, kind: Kind) -> None:
    bare = sync_pb2.SignedResponse(**{kind.value: MESSAGES[kind]}).SerializeToString()
    assert fault(trust, bare) is Fault.UNSIGNED


@pytest.mark.parametrize("kind", Kind)
def test_anothers_signature_is_refused_also_under_our_keys_name(trust: TrustedKeys, kind: Kind) -> None:
    assert fault(trust, signed(kind, MESSAGES[kind], OTHER)) is Fault.UNKNOWN_KEY
    response = sync_pb2.SignedResponse.FromString(signed(kind, MESSAGES[kind], OTHER))
    response.signature.key_id = name(PRIVATE)
    assert fault(trust, response.SerializeToString()) is Fault.BAD_SIGNATURE


@pytest.mark.parametrize("kind", Kind)
def test_a_signature_of_one_kind_is_none_of_another(trust: TrustedKeys, kind: Kind) -> None:
    for other in set(Kind) - {kind}:
        assert fault(trust, signed(kind, MESSAGES[kind], as_kind=other)) is Fault.BAD_SIGNATURE


def test_an_unasked_heartbeat_says_no_more_than_that_the_other_side_lives(trust: TrustedKeys) -> None:
    raw = sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat(heads=[CURSOR])).SerializeToString()
    assert trust.open(raw) == sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat())


def test_of_a_message_that_says_two_things_only_the_signed_one_counts(trust: TrustedKeys) -> None:
    evil = sync_pb2.SyncResponse(delta=b"evil").SerializeToString()
    assert fault(trust, signed(Kind.SCOPE, MESSAGES[Kind.SCOPE]) + evil) is Fault.BAD_SIGNATURE
    both = evil + signed(Kind.SCOPE, MESSAGES[Kind.SCOPE])
    assert trust.open(both).WhichOneof("message") == "scope"
    # Messages in two parts would be merged by who parses them naively: the signature is over the last part alone.
    twice = sync_pb2.SignedResponse(scope=sync_pb2.Scope(tenants=["evil"]).SerializeToString()).SerializeToString()
    assert list(trust.open(twice + signed(Kind.SCOPE, MESSAGES[Kind.SCOPE])).scope.tenants) == ["acme"]


@settings(max_examples=300)
@given(kind=st.sampled_from(Kind), data=st.data())
def test_no_flipped_bit_is_believed(trust: TrustedKeys, kind: Kind, data: st.DataObject) -> None:
    raw = bytearray(signed(kind, MESSAGES[kind]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        opened = trust.open(bytes(raw))
    except (UnverifiedError, ProtocolError):
        return
    # What is left may be what was signed, or a message that needs no signature because it changes nothing.
    found = opened.WhichOneof("message")
    if found in {each.value for each in Kind} and opened != sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat()):
        assert found == kind.value
        content = getattr(opened, found)
        assert (content if kind is Kind.DELTA else content.SerializeToString()) == MESSAGES[kind]


@settings(max_examples=500)
@given(raw=st.binary(max_size=300))
def test_garbage_is_refused_by_name(trust: TrustedKeys, raw: bytes) -> None:
    try:
        opened = trust.open(raw)
    except (UnverifiedError, ProtocolError):
        return
    assert opened.WhichOneof("message") not in ("delta", "snapshot_offer", "scope")
    assert not opened.heartbeat.heads


PRIVATE_PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds 0 public keys"),
        (b"-----BEGIN PUBLIC KEY-----\nno\n-----END PUBLIC KEY-----\n", "block 1 is not a public key"),
        (pem(PRIVATE) + PRIVATE_PEM, "block 2 is not a public key"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "block 1 is not an Ed25519 key"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "trusted.pem"
    path.write_bytes(content)
    with pytest.raises(TrustedKeysError, match=problem) as refused:
        TrustedKeys(str(path))
    assert "SIDESTEP_TRUSTED_KEYS" in str(refused.value)
    assert "PRIVATE" not in str(refused.value)


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "trusted.pem"
    path.write_bytes(pem(PRIVATE))
    trust = TrustedKeys(str(path))
    theirs = signed(Kind.SCOPE, MESSAGES[Kind.SCOPE], OTHER)
    assert fault(trust, theirs) is Fault.UNKNOWN_KEY
    path.write_bytes(pem(PRIVATE) + pem(OTHER))
    trust.look()
    assert trust.open(theirs).HasField("scope")
    for spoil in (lambda: path.write_bytes(b"half a fi"), path.unlink):
        act: Callable[[], object] = spoil
        act()
        trust.look()
        assert trust.problem
        assert len(trust) == 2
    path.write_bytes(pem(OTHER))
    trust.look()
    assert (len(trust), trust.problem) == (1, "")
    assert fault(trust, signed(Kind.SCOPE, MESSAGES[Kind.SCOPE])) is Fault.UNKNOWN_KEY
