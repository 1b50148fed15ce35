from __future__ import annotations

import pytest

from engine.acr import AcrOrder
from engine.errors import InvalidInputError


@pytest.mark.parametrize(
    ("held", "demanded", "met"),
    [
        ("nist-aal3", "nist-aal1", True),
        ("nist-aal2", "nist-aal2", True),
        ("nist-aal1", "nist-aal2", False),
        ("phrh", "phr", True),
        ("phr", "phrh", False),
        ("phr", "nist-aal1", False),
        ("unheard-of", "nist-aal1", False),
        ("unheard-of", "unheard-of", True),
        ("", "nist-aal1", False),
    ],
)
def test_presets(held: str, demanded: str, met: bool) -> None:
    assert AcrOrder().implies(held, demanded) is met


def test_a_tenants_edges_join_the_presets_across_steps() -> None:
    order = AcrOrder([("gold", "phrh"), ("phr", "nist-aal2")])
    assert order.implies("gold", "nist-aal1")
    assert not order.implies("nist-aal3", "phr")
    assert order.implies_all("gold", ["phr", "nist-aal2"])
    assert not order.implies_all("phr", ["phr", "nist-aal3"])
    assert order.implies_all("", [])
    assert {"gold", "nist-aal1", "phrh"} <= order.known()


@pytest.mark.parametrize(
    "edges",
    [[("a", "a")], [("a", "b"), ("b", "a")], [("a", "b"), ("b", "c"), ("c", "a")], [("nist-aal1", "nist-aal3")]],
)
def test_cycles_are_refused(edges: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInputError, match="acr_edges"):
        AcrOrder(edges)
