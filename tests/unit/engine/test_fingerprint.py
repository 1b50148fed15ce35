from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fingerprint import DEFAULT_CATALOGUE, Catalogue, Component, Kind, Observed

COMPONENTS = {c.id: c.id.encode() for c in DEFAULT_CATALOGUE if c.kind is Kind.EXACT}
VERSIONS = {"os_version": 14, "browser_version": 126}
REGISTERED = Observed(COMPONENTS, VERSIONS)
CATALOGUE = Catalogue()


def seen(drop: tuple[str, ...] = (), **changes: object) -> Observed:
    components = {k: v for k, v in COMPONENTS.items() if k not in drop}
    versions = {k: v for k, v in VERSIONS.items() if k not in drop}
    for name, value in changes.items():
        if isinstance(value, int):
            versions[name] = value
        else:
            components[name] = str(value).encode()
    return Observed(components, versions)


def test_the_same_again() -> None:
    assert CATALOGUE.compare(REGISTERED, REGISTERED) == (1.0, False)


@pytest.mark.parametrize(("version", "matches"), [(125, False), (126, True), (138, True), (139, False)])
def test_a_browser_may_rise_by_its_bound_and_never_fall(version: int, matches: bool) -> None:
    comparison = CATALOGUE.compare(REGISTERED, seen(browser_version=version))
    assert comparison.similarity == (1.0 if matches else 0.95)
    assert not comparison.excluded


def test_an_operating_system_may_not_change() -> None:
    assert CATALOGUE.compare(REGISTERED, seen(os="other")) == (0.0, True)


def test_an_operating_system_that_is_not_shown_recognises_nothing_and_excludes_nothing() -> None:
    assert CATALOGUE.compare(REGISTERED, seen(drop=("os",))) == (0.0, False)


def test_missing_and_differing_cost_the_same_similarity_but_only_differing_excludes() -> None:
    names = ("canvas", "webgl")  # 25 of 100
    missing = CATALOGUE.compare(REGISTERED, seen(drop=names))
    differing = CATALOGUE.compare(REGISTERED, seen(canvas="x", webgl="y"))
    assert missing == (0.75, False)
    assert differing == (0.75, True)


def test_exactly_the_tolerated_difference_does_not_exclude() -> None:
    catalogue = Catalogue((Component("a", Kind.EXACT, 3), Component("b", Kind.EXACT, 1)), min_similarity=0.75)
    registered = Observed({"a": b"1", "b": b"1"}, {})
    assert catalogue.compare(registered, Observed({"a": b"1", "b": b"2"}, {})) == (0.75, False)


def test_a_thin_profile_recognises_nothing() -> None:
    # 15 + 10 of 100 is below the least share.
    thin = Observed({"os": b"os", "platform": b"platform"}, {})
    assert CATALOGUE.compare(thin, REGISTERED) == (0.0, False)
    assert CATALOGUE.compare(thin, seen(os="x")).excluded
    enough = Observed({"os": b"os", "platform": b"platform", "browser": b"browser"}, {})
    assert CATALOGUE.compare(enough, REGISTERED).similarity == 1.0


def test_nothing_comparable_says_nothing() -> None:
    assert CATALOGUE.compare(Observed({"unheard": b"x"}, {}), REGISTERED) == (0.0, False)
    assert CATALOGUE.compare(REGISTERED, Observed({}, {})) == (0.0, False)


@given(
    st.dictionaries(st.sampled_from(sorted(COMPONENTS)), st.sampled_from([b"x", *COMPONENTS.values()])),
    st.dictionaries(st.sampled_from(sorted(VERSIONS)), st.integers(0, 200)),
    st.data(),
)
def test_leaving_something_out_never_recognises_better_nor_excludes(
    components: dict[str, bytes], versions: dict[str, int], data: st.DataObject
) -> None:
    keys = [*components, *versions]
    gone = set(data.draw(st.lists(st.sampled_from(keys)))) if keys else set()
    full = CATALOGUE.compare(REGISTERED, Observed(components, versions))
    less = CATALOGUE.compare(
        REGISTERED,
        Observed(
            {k: v for k, v in components.items() if k not in gone}, {k: v for k, v in versions.items() if k not in gone}
        ),
    )
    assert less.similarity <= full.similarity
    assert full.excluded or not less.excluded
