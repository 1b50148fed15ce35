"""An honest day: when people log in, on what, from where, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from sidecar.simulate import places
from sidecar.simulate.people import Person, dice, home_address
from sidecar.simulate.places import City, Network, Place
from sidecar.simulate.rba import Login
from sidecar.simulate.software import Machine, Seen

DAY_S: Final = 86400.0
START: Final = 1_600_560_000.0
"""2020-09-20, a Sunday: just after a browser update, with the next ones to come."""
_PEAKS = {
    "day": ((8.0, 1.6), (12.5, 2.5), (20.0, 2.0)),
    "evening": ((15.0, 2.5), (22.0, 2.0)),
    "night": ((2.0, 2.5), (21.0, 2.0)),
}
_OFFICE_HOURS = range(8, 17)
# Whoever flies is not heard of for so long on either side of it.
_FLIGHT_HOURS: Final = 12.0
_ATTACKED_BEFORE: Final = 0.004


def honest_day(person: Person, seed: int, day: int) -> Iterator[Login]:
    """The person's logins on a day, not in order; the last ones may end a few minutes into the next."""
    own = dice(seed, "day", person.user, day)
    weekend = day % 7 in (0, 6)
    busy = person.rate * (0.7 if weekend else 1.12)
    for _ in range(_poisson(busy, own)):
        hour = _hour(person.shift, own)
        if person.away(day) is not person.away(day - 1) and hour < _FLIGHT_HOURS:
            continue  # packing, flying
        machine, place = _circumstances(person, day, hour, weekend, own)
        at = START + day * DAY_S + hour * 3600.0
        yield from _attempts(person, machine.seen(day), place, at, own)
        if own.random() < 0.03:  # cookies cleared, another browser tab, a crash: once more
            yield login(person.user, machine.seen(day), place, at + own.uniform(60.0, 900.0), own)


def _attempts(person: Person, seen: Seen, place: Place, at: float, own: Random) -> Iterator[Login]:
    """Mistyped passwords, forgotten ones, and in the end the right one."""
    flagged = own.random() < _ATTACKED_BEFORE
    if own.random() < person.clumsy:
        forgotten = own.random() < 0.08
        for _ in range(own.randrange(3, 7) if forgotten else own.choice((1, 1, 2))):
            yield login(person.user, seen, place, at, own, successful=False, attack_ip=flagged)
            at += own.uniform(6.0, 40.0)
        if forgotten:
            at += own.uniform(90.0, 400.0)  # a new one is set by mail
    yield login(person.user, seen, place, at, own, attack_ip=flagged)


def _circumstances(person: Person, day: int, hour: float, weekend: bool, own: Random) -> tuple[Machine, Place]:
    """Which machine, and where."""
    machines = person.machines(day)
    machine = own.choices(machines, [4.0 / (1 + 2 * index) for index in range(len(machines))])[0]
    mobile = machine.model.kind == "mobile"
    trip = person.away(day)
    if trip is not None:
        machine = next((one for one in machines if one.model.kind == "mobile"), machines[0])
        if machine.model.kind == "mobile" and own.random() < 0.5:
            return machine, _on(person.carrier, person.home.city, own)  # roaming goes through the carrier at home
        return machine, _on(trip.network, trip.city, dice(0, person.user, "hotel", day // 3))
    if person.office is not None and not weekend and person.shift == "day" and int(hour) in _OFFICE_HOURS:
        office = person.office
        if own.random() < 0.7:
            return office.machine, Place(office.ip, office.network.asn, office.city)
        if mobile and own.random() < 0.6:
            return machine, Place(office.ip, office.network.asn, office.city)
    if mobile and own.random() < 0.4:
        return machine, _on(person.carrier, person.home.city, own)
    if person.vpn is not None and own.random() < 0.3:
        country = person.vpn.country
        return machine, _on(person.vpn, City(country, "", ""), dice(0, person.user, "vpn", own.randrange(4)))
    if person.shared is not None and own.random() < 0.35:
        machine = person.shared
    home = person.home
    return machine, Place(home_address(home, day), home.network.asn, home.city)


def _on(network: Network, city: City, own: Random) -> Place:
    return Place(places.address(network, own), network.asn, city)


def login(
    user: str,
    seen: Seen,
    place: Place,
    at: float,
    own: Random,
    *,
    successful: bool = True,
    attack_ip: bool = False,
    takeover: bool = False,
) -> Login:
    """One attempt."""
    # Most providers cannot measure it, as in the data set.
    rtt_ms = round(own.lognormvariate(5.8, 0.7)) + 0.0 if own.random() < 0.05 else None
    city = place.city
    return Login(
        round(at, 3), user, rtt_ms, place.ip, city.country, city.region, city.name, place.asn,
        seen.agent, seen.browser, seen.os, seen.device, successful, attack_ip, takeover,
    )  # fmt: skip


def _hour(shift: str, own: Random) -> float:
    middle, spread = own.choice(_PEAKS[shift])
    return own.gauss(middle, spread) % 24.0


def _poisson(mean: float, own: Random) -> int:
    """How many of something that happens `mean` times on average; for small means."""
    count = -1
    reached = 0.0
    while reached < mean:
        reached += own.expovariate(1.0)
        count += 1
    return max(count, 0)
