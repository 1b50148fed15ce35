"""The command line over TLS: it sends tokens only where they are hidden, and says why a handshake failed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.certificates import Authority
from tests.fakes.guarded import Guarded
from tests.fakes.operators import TOKENS
from tests.processes import environment

SIDESTEP = str(Path(sys.executable).with_name("sidestep"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with Guarded(tmp_path_factory.mktemp("plane")) as running:
        running.put("ann")
        yield running


def run(plane: Guarded, *options: str, server: str = "", **env: str) -> tuple[int, str]:
    command = [SIDESTEP, "-s", server or plane.admin, "-t", "acme", "--deadline", "20s", *options, "subject", "list"]
    token = ["--operator-token-file", plane.operators.token_file("alice")]
    done = subprocess.run(
        [*command, *token], env=environment(**env), capture_output=True, text=True, timeout=60, check=False
    )
    assert TOKENS["alice"] not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_token_goes_over_tls(plane: Guarded) -> None:
    code, said = run(plane, "--ca", str(plane.authority.certificate))
    assert (code, "ann" in said) == (0, True), said
    code, said = run(plane, SIDESTEP_SERVER_CA=str(plane.authority.certificate))
    assert (code, "ann" in said) == (0, True), said
    operator = plane.authority.issue("operator")
    pair = ("--cert", str(operator.certificate), "--key", str(operator.key))
    code, said = run(plane, "--ca", str(plane.authority.certificate), *pair, server=plane.grpc)
    assert (code, "ann" in said) == (0, True), said


def test_a_token_does_not_go_to_another_host_in_plain_text(plane: Guarded) -> None:
    code, said = run(plane, server="cp.example.org:9190")
    assert (code, "nothing would hide the token on the way" in said) == (2, True), said


def test_a_handshake_that_fails_says_which_file_and_why(plane: Guarded) -> None:
    foreign = Authority(plane.folder, "nobody").certificate
    code, said = run(plane, "--ca", str(foreign))
    assert (code, "not signed by an authority in --ca" in said) == (3, True), said
    code, said = run(plane, "--ca", str(plane.authority.certificate), server=plane.grpc)
    assert (code, "a certificate it accepts in --cert and --key" in said) == (3, True), said
    code, said = run(plane, "--ca", "/nowhere/ca.pem")
    assert (code, said) == (2, "error: --ca: /nowhere/ca.pem: No such file or directory\n")
    code, said = run(plane, "--ca", str(plane.server.key))
    assert (code, "holds no certificate in PEM" in said) == (2, True), said
    code, said = run(plane, "--ca", str(plane.authority.certificate), "--cert", str(plane.server.certificate))
    assert (code, said) == (2, "error: --cert: goes together with --key\n")
