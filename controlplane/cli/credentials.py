"""A bearer token from a file, on its way to a server on this machine, or over TLS: elsewhere nothing would hide it on the way."""

from __future__ import annotations

import re
from typing import TextIO

from controlplane.cli.failures import Failure
from controlplane.cli.values import label
from engine.addresses import is_loopback

_MAX_LINE = 65536
_TOKEN = re.compile(r"[\x21-\x7e]+")


def authorization(
    file: TextIO, option: str, address: str, address_option: str, *, encrypted: bool = False
) -> tuple[str, str]:
    """The token in a file's first line as metadata. Raises Failure, which does not repeat the token.

    `option` and `address_option` are how the command line names the file and the address.
    """
    if not encrypted and not is_loopback(address):
        raise Failure(
            f"{address_option}: {address} is not on this machine, and nothing would hide the token on the way"
        )
    try:
        token = file.readline(_MAX_LINE).strip()
    except UnicodeDecodeError:
        token = ""
    if not _TOKEN.fullmatch(token):
        raise Failure(f"{option}: {label(file)}: the first line is no token (printable ASCII without spaces)")
    return ("authorization", f"Bearer {token}")
