"""Patterns of certificate names, and what they take out of one: `spiffe://example.org/ns/{namespace}/sa/{account}`.

A placeholder stands for one segment (of a URI: between slashes; of a DNS name: between dots) of letters, digits, `.`,
`_` and `-`; in a DNS name without dots. Everything else is compared as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_MAX_LENGTH: Final = 2048
DNS: Final = "dns:"


class Pattern:
    """One pattern. `placeholders`: the names of those in it."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for what is no pattern."""
        if len(text) > _MAX_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("is not the name of a certificate")
        dns = text.startswith(DNS)
        if not dns and not re.match(r"[a-z][a-z0-9+.-]*://[^/{}]+", text):
            raise ValueError("must begin with `dns:`, or with a scheme and a host such as `spiffe://example.org`")
        segment = "[A-Za-z0-9_-]+" if dns else "[A-Za-z0-9._-]+"
        parts: list[str] = []
        names: list[str] = []
        at = 0
        for found in _PLACEHOLDER.finditer(text):
            parts += [re.escape(text[at : found.start()]), f"(?P<{found[1]}>{segment})"]
            names.append(found[1])
            at = found.end()
        parts.append(re.escape(text[at:].lower() if dns else text[at:]))
        if len(set(names)) < len(names):
            raise ValueError("names a placeholder twice")
        if any(mark in _PLACEHOLDER.sub("", text) for mark in "{}*"):
            raise ValueError("placeholders are written {name}, and there is no `*`")
        self.text = text
        self.placeholders = frozenset(names)
        self._match = re.compile("".join(parts)).fullmatch

    def read(self, name: str) -> Mapping[str, str] | None:
        """What the placeholders stand for in a name; None: it is another name."""
        found = self._match(name)
        return None if found is None else found.groupdict()


def placeholders_of(template: str) -> frozenset[str]:
    """The placeholders of a template, such as the tenant `{namespace}` of a mapping."""
    return frozenset(_PLACEHOLDER.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with what they stand for."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)
