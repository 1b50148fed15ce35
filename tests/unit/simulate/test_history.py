"""Made-up life: the same for the same seed, in order, and with the oddities real life has."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice, pairwise

import pytest

from sidecar.simulate.attacks import STYLES
from sidecar.simulate.history import Told, tell
from sidecar.simulate.life import DAY_S, START
from sidecar.simulate.people import DECOYS, population


@pytest.fixture(scope="module")
def story() -> list[Told]:
    return list(tell(users=300, days=12, seed=4, each=2))


def test_equal_seeds_tell_the_same_and_others_do_not(story: list[Told]) -> None:
    assert list(tell(300, 12, 4, 2)) == story
    assert [told.login for told in islice(tell(300, 12, 5, 2), 50)] != [told.login for told in story[:50]]


def test_logins_come_in_the_order_of_time(story: list[Told]) -> None:
    assert all(before.login.at <= after.login.at for before, after in pairwise(story))
    assert all(START <= told.login.at < START + 13 * DAY_S for told in story)


def test_the_truth_names_rows_and_every_style_is_there(story: list[Told]) -> None:
    assert all(told.truth is None or told.truth.row == row for row, told in enumerate(story))
    episodes = {(told.truth.style, told.truth.episode) for told in story if told.truth is not None}
    assert Counter(style for style, _ in episodes) == {style.name: 2 for style in STYLES}


def test_only_attackers_take_over_and_only_they_meet_decoys(story: list[Told]) -> None:
    assert not any(told.login.takeover for told in story if told.truth is None)
    assert not any(told.login.successful and not told.login.takeover for told in story if told.truth is not None)
    assert {told.truth.style for told in story if told.truth and told.login.user in DECOYS} == {"canary-hits"}
    assert not any(told.login.user in DECOYS for told in story if told.truth is None)


def test_life_has_its_oddities(story: list[Told]) -> None:
    honest = [told.login for told in story if told.truth is None]
    users_of, places_of, agents_of = defaultdict(set), defaultdict(set), defaultdict(set)
    for login in honest:
        users_of[login.ip].add(login.user)
        places_of[login.user].add(login.country)
        agents_of[login.user].add(login.agent)
    assert max(len(users) for users in users_of.values()) >= 10, "an office behind one address"
    assert any(len(countries) > 1 for countries in places_of.values()), "travellers"
    assert any(len(agents) > 3 for agents in agents_of.values()), "several devices and updates"
    assert any(not login.successful for login in honest), "mistyped passwords"
    logins = sorted((count for count in Counter(login.user for login in honest).values()), reverse=True)
    assert sum(logins[:30]) > 0.25 * sum(logins), "few people log in most"
    hours = Counter(int((login.at - START) % DAY_S // 3600) for login in honest)
    assert set(hours) == set(range(24)), "shift workers"


def test_households_share_a_computer() -> None:
    shared = Counter(person.shared for person in population(1, 400, 30) if person.shared is not None)
    assert shared
    assert all(2 <= count <= 4 or count >= 2 for count in shared.values())
