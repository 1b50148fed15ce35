from __future__ import annotations

import hashlib
import hmac

from engine.pseudonym import user_hash


def test_hash_is_the_half_of_a_keyed_sha_256() -> None:
    secret = bytes(range(32))
    whole = hmac.new(secret, b"user.hash\x00" + "zoë".encode(), hashlib.sha256).hexdigest()
    assert user_hash(secret, "zoë") == whole[:32]


def test_hash_does_not_change_from_one_version_to_the_next() -> None:
    assert user_hash(bytes(32), "alice") == "510a7c1e2f020bb3f92349da8ccbe177"


def test_hash_depends_on_secret_and_subject() -> None:
    hashes = {user_hash(secret, subject) for secret in (bytes(32), bytes(31) + b"1") for subject in ("alice", "alicf")}
    assert len(hashes) == 4
