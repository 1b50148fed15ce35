"""Six ways to pass for somebody else, with the truth about each.

Attackers know what they plausibly can: passwords from other sites, what a victim's browser shows, which country they live in.
None of them has a second factor. They do not know the guards' limits, and some stay low and slow by habit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, NamedTuple

from sidecar.simulate import places, software
from sidecar.simulate.life import DAY_S, START, login
from sidecar.simulate.people import DECOYS, Person, dice
from sidecar.simulate.places import City, Network, Place
from sidecar.simulate.rba import Login
from sidecar.simulate.software import Machine, Model, Seen


class Step(NamedTuple):
    """One login of an attack."""

    login: Login
    style: str
    episode: str


class Scene(NamedTuple):
    """What an attack finds: the people, when it begins, and chance."""

    people: Sequence[Person]
    day: int
    begin_at: float
    days: int
    own: Random

    def victims(self, count: int) -> list[Person]:
        """Different people who are active enough to be worth it."""
        active = [person for person in self.people if person.rate >= 0.3] or list(self.people)
        return self.own.sample(active, min(count, len(active)))


def stolen_fingerprint(scene: Scene) -> Iterator[Login]:
    """Password and browser profile of one victim, bought as a set, replayed from rented servers or a neighbour's line."""
    own = scene.own
    victim = scene.victims(1)[0]
    seen = victim.machines(scene.day)[0].seen(scene.day)
    if own.random() < 0.7:
        spots = [_rented(own) for _ in range(own.randrange(2, 5))]
    else:
        spots = [_neighbour(victim, own) for _ in range(own.randrange(2, 4))]
    at = scene.begin_at
    for _ in range(own.randrange(12, 30)):
        yield login(victim.user, seen, own.choice(spots), at, own, attack_ip=own.random() < 0.3, takeover=True)
        at += own.uniform(20.0, 120.0) * 60.0


def stuffing(scene: Scene) -> Iterator[Login]:
    """A list of leaked passwords tried on one machine; few fit, many names are not even known."""
    own = scene.own
    machine = software.machine(software.desktop(own) if own.random() < 0.6 else software.phone(own), own)
    seen = machine.seen(scene.day)
    spots = [_rented(own) for _ in range(own.randrange(1, 4))]
    names = [person.user for person in scene.victims(own.randrange(60, 120))]
    names += [str(own.getrandbits(63)) for _ in range(own.randrange(40, 90))]
    own.shuffle(names)
    known = {person.user for person in scene.people}
    at = scene.begin_at
    for name in names:
        fits = name in known and own.random() < 0.06
        yield login(
            name, seen, own.choice(spots), at, own, successful=fits, attack_ip=own.random() < 0.3, takeover=fits
        )
        at += own.expovariate(1 / 45.0)


def probing(scene: Scene) -> Iterator[Login]:
    """One account, a few tries a day for a week, each with a slightly different imitation of the victim's browser."""
    own = scene.own
    victim = scene.victims(1)[0]
    original = victim.machines(scene.day)[0]
    spot = _neighbour(victim, own)
    at = scene.begin_at
    for attempt in range(own.randrange(14, 30)):
        day = int((at - START) / DAY_S)
        yield login(victim.user, _imitation(original, day, attempt, own), spot, at, own, takeover=True)
        at += own.uniform(3.0, 9.0) * 3600.0


def drift(scene: Scene) -> Iterator[Login]:
    """A good imitation that over two weeks becomes the attacker's own machine, one small change after another."""
    own = scene.own
    victim = scene.victims(1)[0]
    original = victim.machines(scene.day)[0]
    target = software.desktop(own) if original.model.kind == "desktop" else software.phone(own)
    spot = _neighbour(victim, own)
    at = scene.begin_at
    steps = own.randrange(24, 40)
    for step in range(steps):
        day = int((at - START) / DAY_S)
        yield login(victim.user, _drifted(original, target, day, step / steps), spot, at, own, takeover=True)
        at += own.uniform(5.0, 13.0) * 3600.0


def canary(scene: Scene) -> Iterator[Login]:
    """A stolen user list, worked through by a script from ever new addresses; it meets traps: names that are nobody's, and it
    forgets to hide what it is."""
    own = scene.own
    names = [person.user for person in scene.victims(own.randrange(40, 70))]
    names += own.sample(DECOYS, 3)
    own.shuffle(names)
    at = scene.begin_at
    for name in names:
        model = software.desktop(own) if own.random() < 0.6 else software.phone(own)
        if own.random() < 0.2:
            model = Model("desktop", "Linux", "5", "HeadlessChrome", "Linux x86_64")
        fits = name not in DECOYS and own.random() < 0.05
        seen = software.machine(model, own).seen(scene.day)
        yield login(name, seen, _bot(own), at, own, successful=fits, attack_ip=own.random() < 0.4, takeover=fits)
        at += own.expovariate(1 / 240.0)


def burst(scene: Scene) -> Iterator[Login]:
    """Browser profiles of many victims, used at once through a botnet before anyone notices."""
    own = scene.own
    steps = []
    for victim in scene.victims(own.randrange(15, 35)):
        seen = own.choice(victim.machines(scene.day)).seen(scene.day)
        at = scene.begin_at + own.uniform(0.0, 600.0)
        for _ in range(own.randrange(6, 16)):
            flagged = own.random() < 0.4
            steps.append(login(victim.user, seen, _bot(own), at, own, attack_ip=flagged, takeover=True))
            at += own.expovariate(1 / 40.0)
    yield from sorted(steps, key=lambda step: (step.at, step.user))


class Style(NamedTuple):
    """A way of attacking. `lasts_days`: it needs about so many days."""

    name: str
    logins: Callable[[Scene], Iterator[Login]]
    lasts_days: int


STYLES: Final = (
    Style("stolen-fingerprint", stolen_fingerprint, 2),
    Style("credential-stuffing", stuffing, 1),
    Style("threshold-probing", probing, 8),
    Style("drift-poisoning", drift, 14),
    Style("canary-hits", canary, 1),
    Style("distributed-burst", burst, 1),
)


def plan(people: Sequence[Person], seed: int, days: int, each: int) -> list[Step]:
    """All logins of `each` attacks of every style, in the order of time. They begin when the victims have a history, as far as
    there are days enough."""
    steps: list[Step] = []
    for style in STYLES:
        for number in range(each):
            own = dice(seed, "attack", style.name, number)
            latest = max(0, days - style.lasts_days - 1)
            day = own.randint(min(days // 3, latest), latest)
            begin_at = START + (day + own.uniform(0.2, 0.9)) * DAY_S
            scene = Scene(people, day, begin_at, days, own)
            steps += [
                Step(attempt, style.name, f"{style.name}-{number + 1}")
                for attempt in style.logins(scene)
                if attempt.at < START + days * DAY_S
            ]
    steps.sort(key=lambda step: (step.login.at, step.episode))
    return steps


def _rented(own: Random) -> Place:
    city, network = own.choice(places.HOSTERS)
    return Place(places.address(network, own), network.asn, city)


def _bot(own: Random) -> Place:
    city, network = own.choice(places.BOTNET)
    return Place(places.address(network, own), network.asn, city)


def _neighbour(victim: Person, own: Random) -> Place:
    """Someone's line in the victim's country, rented out as a residential proxy."""
    country = victim.home.city.country
    network: Network = own.choice(places.FIXED[country])
    return Place(places.address(network, own), network.asn, City(country, "", ""))


def _imitation(original: Machine, day: int, attempt: int, own: Random) -> Seen:
    """The victim's browser with one thing not quite right: the version far off, now and then the rest of the user agent."""
    model = original.model
    version = software.current(model.browser, day) if model.browser in software.RELEASES else "1.0"
    system = software.current(model.os, day) if model.os in software.RELEASES else model.os_version
    major = int(version.split(".")[0])
    if attempt % 4 == 3:
        return software.shown(model._replace(maker=f"{model.maker}; WOW64".lstrip("; ")), version, _bumped(system, 3))
    return software.shown(model, f"{max(1, major + own.choice((-9, -6, -4, 9, 12)))}.0.1", system)


def _drifted(original: Machine, target: Model, day: int, progress: float) -> Seen:
    """First the version climbs, then the system's, then the rest of the user agent changes, last the browser itself."""
    seen = original.seen(day)
    version = seen.browser.rsplit(" ", 1)[1]
    system = seen.os.rsplit(" ", 1)[1]
    model = original.model
    version = _bumped(version, round(progress * 12))
    if progress > 0.4:
        system = _bumped(system, 1 + round((progress - 0.4) * 4))
    if progress > 0.55:
        model = model._replace(maker=target.maker or f"{model.maker} ")
    if progress > 0.75:
        model = model._replace(browser=target.browser if target.browser != model.browser else "Opera")
    return software.shown(model, version, system)


def _bumped(version: str, by: int) -> str:
    major, dot, rest = version.partition(".")
    return f"{int(major) + by}{dot}{rest}" if major.isdecimal() else version
