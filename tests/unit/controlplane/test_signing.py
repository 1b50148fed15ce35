"""Signing what sidecars are sent: by files, and by a service that keeps its keys to itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from sidestep.v1 import sync_pb2

from controlplane.changes import Changes
from controlplane.cli.main import cli
from controlplane.errors import SettingsError, SigningError
from controlplane.signing import KeyFiles, Signatures, new_key, public_pem
from controlplane.store import Store, Write
from engine.names import Collection, Lane
from engine.statement import Kind, statement


def put(path: Path, pem: bytes | None = None) -> str:
    """A key in a file; its id."""
    pem = pem or new_key()
    path.write_bytes(pem)
    path.chmod(0o600)
    return public_pem(pem, "test")[0]


def test_current_signs_else_the_last_name(tmp_path: Path) -> None:
    older, newer = put(tmp_path / "2026-11.pem"), put(tmp_path / "2026-12.pem")
    put(tmp_path / "2027-01.pem.next")
    assert KeyFiles(str(tmp_path)).key_id == newer
    assert KeyFiles(f"{tmp_path / '2026-12.pem'}, {tmp_path / '2026-11.pem'}").key_id == newer
    (tmp_path / "current.pem").symlink_to("2026-11.pem")
    files = KeyFiles(str(tmp_path))
    assert files.key_id == older
    assert files.describe() == {"signing_key": older, "signing_keys": 2, "signing_keys_unusable": False}


def test_keys_are_read_again_when_they_change_and_kept_when_they_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = put(tmp_path / "a.pem")
    files = KeyFiles(str(tmp_path))
    second = put(tmp_path / "b.pem")
    asyncio.run(files.look())
    assert files.key_id == second
    (tmp_path / "b.pem").write_bytes(b"half a")
    asyncio.run(files.look())
    assert (files.key_id, files.describe()["signing_keys_unusable"]) == (second, True)
    assert "b.pem" in caplog.text
    (tmp_path / "b.pem").unlink()
    asyncio.run(files.look())
    assert (files.key_id, files.describe()["signing_keys_unusable"]) == (first, False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        (b"", "not a private key in PEM"),
        (
            ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "not an Ed25519 key",
        ),
        (
            load_pem_private_key(new_key(), None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            ),
            "is protected by a password",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as refused:
        KeyFiles(str(path))
    assert f"SIDESTEP_CP_SIGNING_KEYS: {path}" in str(refused.value)


def test_a_folder_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no key"):
        KeyFiles(str(tmp_path))


def test_a_key_others_may_read_is_used_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o644)
    KeyFiles(str(tmp_path))
    assert "every user of this machine may read or write it" in caplog.text


def verified(public: bytes, kind: Kind, raw: bytes) -> bytes:
    response = sync_pb2.SignedResponse.FromString(raw)
    content: bytes = getattr(response, kind.value)
    key = load_pem_public_key(public)
    assert isinstance(key, Ed25519PublicKey)
    key.verify(response.signature.signature, statement(kind, content))
    return content


class Vault:
    """A signer in a process of its own: what a key management service is, without a network."""

    def __init__(self) -> None:
        program = (
            "import sys\n"
            "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
            "from engine.statement import key_id\n"
            "key = Ed25519PrivateKey.generate()\n"
            "print(key_id(key.public_key().public_bytes_raw()), key.public_key().public_bytes_raw().hex(), flush=True)\n"
            "for line in sys.stdin:\n"
            "    print(key.sign(bytes.fromhex(line)).hex(), flush=True)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.key_id, public = self.process.stdout.readline().split()
        self.public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        self.asked = 0
        self._turn = asyncio.Lock()

    async def sign(self, statement: bytes) -> tuple[str, bytes]:
        async with self._turn:
            self.asked += 1
            return self.key_id, bytes.fromhex(await asyncio.to_thread(self._ask, statement))

    def _ask(self, statement: bytes) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(statement.hex(), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            raise SigningError("the vault does not answer")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


async def published(store: Store, changes: Changes, count: int) -> list[bytes]:
    """Commits, and what streams are sent of the lane."""
    for _ in range(count):
        key = len(await store.changes("acme", Lane.URGENT, 0, limit=1000)) if changes.heads else 0
        await store.commit("acme", [Write(Collection.GRANTS, f"g{key}", b"x")])
        await changes.refresh()
    return [frame.message for frame in await changes.read(("acme", Lane.URGENT), 0, 1000)]


def test_a_service_outside_signs_each_commit_once_for_all_streams_and_its_loss_is_no_unsigned_one(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        vault = Vault()
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
        changes = Changes(store, Signatures(vault), poll_s=10)
        try:
            await changes.start()
            await published(store, changes, 3)
            asked = vault.asked
            for _ in range(50):
                frames = await changes.read(("acme", Lane.URGENT), 0, 1000)
            # Also what a stream far behind reads from the log.
            assert vault.asked - asked <= 1
            assert len(frames) == 3
            for frame in frames:
                response = sync_pb2.SignedResponse.FromString(frame.message)
                vault.public.verify(response.signature.signature, statement(Kind.DELTA, response.delta))
            vault.close()
            await store.commit("acme", [Write(Collection.GRANTS, "late", b"x")])
            with pytest.raises(SigningError):
                await changes.refresh()
            assert changes.heads[("acme", Lane.URGENT)].revision == 3
        finally:
            vault.close()
            await changes.stop()
            await store.close()

    asyncio.run(scenario())


def test_after_a_change_of_key_old_commits_bear_the_new_signature(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "keys").mkdir()
        first, second = new_key(), new_key()
        put(tmp_path / "keys" / "a.pem", first)
        files = KeyFiles(str(tmp_path / "keys"))
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
        changes = Changes(store, Signatures(files), poll_s=10)
        try:
            await changes.start()
            before = await published(store, changes, 2)
            contents = [verified(public_pem(first, "test")[1], Kind.DELTA, raw) for raw in before]
            put(tmp_path / "keys" / "b.pem", second)
            await files.look()
            after = await published(store, changes, 0)
            assert [verified(public_pem(second, "test")[1], Kind.DELTA, raw) for raw in after] == contents
        finally:
            await changes.stop()
            await store.close()

    asyncio.run(scenario())


def test_the_command_makes_a_key_and_prints_what_to_pin(tmp_path: Path) -> None:
    path = tmp_path / "2026-11.pem"
    made = CliRunner().invoke(cli, ["signing-key", "new", str(path)])
    assert made.exit_code == 0, made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyFiles(str(path)).key_id == made.stdout.strip()
    public = CliRunner().invoke(cli, ["signing-key", "public", str(path)])
    assert public.stdout.startswith(f"# {made.stdout}-----BEGIN PUBLIC KEY-----\n")
    again = CliRunner().invoke(cli, ["signing-key", "new", str(path)])
    assert (again.exit_code, again.stderr) == (2, f"error: {path}: File exists\n")
    wrong = CliRunner().invoke(cli, ["signing-key", "public", __file__])
    assert wrong.exit_code == 2
    assert "not a private key in PEM" in wrong.stderr
