"""Who may call the demo's sidecar: the payments service, with a token of its own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import NamedTuple

PAYMENTS = "payments"


class CallersFiles(NamedTuple):
    """`callers`: for SIDESTEP_CALLERS. `token`: what the payments service is given."""

    callers: Path
    token: Path


def write_callers(folder: Path) -> CallersFiles:
    """Makes a token, and the file that says what its holder may ask. Explanations are for the demo; leave them out of yours."""
    files = CallersFiles(folder / "callers.yaml", folder / "payments-token")
    files.token.touch(mode=0o600)
    files.token.write_text(f"{secrets.token_urlsafe(32)}\n")
    files.callers.write_text(
        "callers:\n"
        f"  - name: {PAYMENTS}\n"
        f"    tokens: [{files.token}]\n"
        '    actions: ["payments.*"]\n'
        "    diagnose: true\n"
    )
    return files
