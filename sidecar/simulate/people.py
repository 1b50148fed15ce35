"""Who logs in: people with homes, jobs, machines and habits. Everything about one person comes from the seed and their number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

from sidecar.simulate import places, software
from sidecar.simulate.places import City, Network
from sidecar.simulate.software import Machine

DECOYS: Final = tuple(f"{9000000000000000000 + number * 7919}" for number in range(1, 6))
"""User ids that belong to nobody and are kept as traps: no person has one."""
OFFICE_SHARE: Final = 0.45
HOUSEHOLD_SHARE: Final = 0.15
VPN_SHARE: Final = 0.05
TRAVEL_PER_DAY: Final = 0.004
OFFICE_SIZE: Final = 30


class Home(NamedTuple):
    """Where a household lives. `lease_days`: how long its provider leaves it an address."""

    city: City
    network: Network
    lease_days: int
    key: str


class Office(NamedTuple):
    """A workplace: everyone in it has the same address and the same kind of machine, set up by one department."""

    ip: str
    network: Network
    city: City
    machine: Machine


class Trip(NamedTuple):
    """Days away, both ends included."""

    first_day: int
    last_day: int
    city: City
    network: Network


class Person(NamedTuple):
    """One account's owner. `rate`: logins per usual day. `shift`: when they are awake: day, evening or night."""

    user: str
    home: Home
    carrier: Network
    office: Office | None
    own: tuple[Machine, ...]
    shared: Machine | None
    # A phone that takes the place of the first machine from a day on.
    replacement: tuple[int, Machine] | None
    rate: float
    shift: str
    trips: tuple[Trip, ...]
    vpn: Network | None
    clumsy: float

    def machines(self, day: int) -> tuple[Machine, ...]:
        """Their own machines on a day, the one they use most first."""
        if self.replacement is not None and day >= self.replacement[0]:
            return (self.replacement[1], *self.own[1:])
        return self.own

    def away(self, day: int) -> Trip | None:
        """The trip they are on."""
        return next((trip for trip in self.trips if trip.first_day <= day <= trip.last_day), None)


def dice(seed: int, *names: object) -> Random:
    """Randomness of its own for everything that has a name: adding one thing does not change the others."""
    return Random("/".join(map(str, (seed, *names))))  # noqa: S311  # nothing secret is made of it


def population(seed: int, users: int, days: int) -> list[Person]:
    """Everyone, in a fixed order; whoever is the n-th of more people is the same, but for the office they work in."""
    offices = [_office(seed, number) for number in range(max(1, round(users * OFFICE_SHARE / OFFICE_SIZE)))]
    return [_person(seed, number, days, offices) for number in range(users)]


def user_id(seed: int, number: int) -> str:
    """Ids look like those of the data set: signed 64-bit numbers."""
    digest = hashlib.blake2b(f"{seed}/user/{number}".encode(), digest_size=8).digest()
    return str(int.from_bytes(digest, "big", signed=True))


def _person(seed: int, number: int, days: int, offices: Sequence[Office]) -> Person:
    own = dice(seed, "person", number)
    household, shared = _household(seed, number)
    home = _home(seed, household)
    machines = [software.machine(software.phone(own), own)]
    if own.random() < 0.62:
        machines.append(software.machine(software.desktop(own), own))
    if own.random() < 0.16:
        machines.append(software.machine(software.tablet(own), own))
    if own.random() < 0.35:
        own.shuffle(machines)
    replaced = own.random() < 0.03 * days / 30
    mobile = places.MOBILE.get(home.city.country, places.MOBILE["NO"])
    return Person(
        user=user_id(seed, number),
        home=home,
        carrier=own.choice(mobile),
        office=own.choice(offices) if own.random() < OFFICE_SHARE and home.city.country == "NO" else None,
        own=tuple(machines),
        shared=shared,
        replacement=(own.randrange(1, max(2, days)), software.machine(software.phone(own), own)) if replaced else None,
        # Half log in less than every other day, one in a hundred more than five times a day.
        rate=min(own.lognormvariate(-0.75, 1.15), 9.0),
        shift=own.choices(("day", "evening", "night"), (80, 13, 7))[0],
        trips=_trips(own, days, home.city.country),
        vpn=own.choice(places.VPNS) if own.random() < VPN_SHARE else None,
        clumsy=min(own.lognormvariate(-3.0, 0.8), 0.4),
    )


def _household(seed: int, number: int) -> tuple[str, Machine | None]:
    """People are numbered so that neighbours in number may live together, with one computer between them."""
    group, place = divmod(number, 4)
    together = dice(seed, "household", group)
    size = together.choice((2, 3, 4)) if together.random() < HOUSEHOLD_SHARE * 4 / 3 else 1
    if place >= size or size == 1:
        return f"{number}", None
    return f"group {group}", software.machine(software.desktop(together), together)


def _home(seed: int, household: str) -> Home:
    own = dice(seed, "home", household)
    city = places.city(own)
    return Home(city, own.choice(places.FIXED[city.country]), own.choice((1, 7, 14, 90, 90)), f"{seed}/{household}")


def home_address(home: Home, day: int) -> str:
    """The address the household has on a day."""
    return places.address(home.network, dice(0, home.key, "address", day // home.lease_days))


def _office(seed: int, number: int) -> Office:
    own = dice(seed, "office", number)
    city = own.choice([city for _, city in places.CITIES if city.country == "NO"])
    model = software.Model("desktop", "Windows", "10", own.choice(("Edge", "Chrome", "Chrome")), "Win64; x64")
    machine = Machine(model, own.randrange(5, 25), 10_000)
    return Office(places.address(places.OFFICE, own), places.OFFICE, city, machine)


def _trips(own: Random, days: int, country: str) -> tuple[Trip, ...]:
    trips = []
    day = 0
    while day < days:
        if own.random() < TRAVEL_PER_DAY:
            city, network = own.choice([place for place in places.ABROAD if place[0].country != country])
            last = day + own.randrange(2, 11)
            trips.append(Trip(day, last, city, network))
            day = last + 1
        day += 1
    return tuple(trips)
