"""The whole story: honest life and attacks together, in the order of time, one day in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sidecar.simulate import attacks
from sidecar.simulate.life import DAY_S, START, honest_day
from sidecar.simulate.people import population
from sidecar.simulate.rba import Login, Truth


class Told(NamedTuple):
    """A login, and the attack it belongs to, if any."""

    login: Login
    truth: Truth | None


def tell(
    users: int, days: int, seed: int, each: int, at_day: Callable[[int], None] = lambda day: None
) -> Iterator[Told]:
    """Logins of `users` people over `days` days with `each` attacks of every style. Equal arguments, equal logins.

    `at_day` is called when a day is done, with how many are.
    """
    people = population(seed, users, days)
    steps = iter(attacks.plan(people, seed, days, each))
    step = next(steps, None)
    index = 0
    late: list[Login] = []
    for day in range(days):
        end_at = START + (day + 1) * DAY_S
        found = late
        for person in people:
            found += honest_day(person, seed, day)
        found.sort(key=lambda login: (login.at, login.user))
        late = [login for login in found if login.at >= end_at]
        today: Iterator[Login] = iter(found[: len(found) - len(late)])
        login = next(today, None)
        while login is not None or (step is not None and step.login.at < end_at):
            if step is not None and (login is None or step.login.at <= login.at):
                yield Told(step.login, Truth(index, step.style, step.episode))
                step = next(steps, None)
            else:
                assert login is not None
                yield Told(login, None)
                login = next(today, None)
            index += 1
        at_day(day + 1)
