"""What browsers say of themselves: user agents and how they change as people update."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

# Day of release, counted from the first day, may be negative; version.
Releases = tuple[tuple[int, str], ...]
RELEASES: Final[dict[str, Releases]] = {
    "Chrome": ((-160, "80.0.3987"), (-130, "81.0.4044"), (-95, "83.0.4103"), (-60, "84.0.4147"), (-25, "85.0.4183"),
               (-3, "85.0.4184"), (9, "86.0.4240"), (20, "86.0.4241"), (28, "86.0.4242"), (51, "87.0.4280")),
    "Firefox": ((-120, "76.0.0"), (-90, "77.0.0"), (-60, "78.0.0"), (-28, "80.0.0"), (1, "81.0.0"), (15, "81.0.1"),
                (25, "82.0.0"), (55, "83.0.0")),
    "Edge": ((-95, "83.0.478"), (-60, "84.0.522"), (-24, "85.0.564"), (12, "86.0.622"), (56, "87.0.664")),
    "Safari": ((-180, "13.1.0"), (-60, "13.1.2"), (2, "14.0.0"), (45, "14.0.1")),
    "Samsung": ((-120, "11.2.2"), (-40, "12.0.1"), (14, "12.1.4"), (58, "13.0.1")),
    "iOS": ((-100, "13.5.1"), (-60, "13.6.1"), (-20, "13.7"), (4, "14.0.1"), (24, "14.1"), (52, "14.2")),
    "Mac OS X": ((-150, "10.15.4"), (-100, "10.15.6"), (3, "10.15.7")),
}  # fmt: skip
ANDROIDS: Final = (
    ("SM-G973F", "10"), ("SM-G960F", "10"), ("SM-A505FN", "10"), ("SM-G950F", "9"), ("SM-A515F", "10"), ("SM-G980F", "10"),
    ("SM-N975F", "10"), ("SM-A405FN", "10"), ("SM-J330F", "9"), ("ELE-L29", "10"), ("VOG-L29", "10"), ("MAR-LX1A", "10"),
    ("LYA-L29", "10"), ("CLT-L29", "10"), ("Pixel 3a", "11"), ("Pixel 4", "11"), ("Pixel 2", "10"), ("ONEPLUS A6013", "10"),
    ("HD1913", "10"), ("IN2023", "10"), ("Redmi Note 8 Pro", "10"), ("Mi 9T", "10"), ("Mi A2", "10"), ("Redmi 7", "9"),
    ("moto g(7) power", "10"), ("moto g(6)", "9"), ("Nokia 7.2", "10"), ("Nokia 5.1", "10"), ("H8324", "10"), ("I4113", "9"),
)  # fmt: skip


class Model(NamedTuple):
    """A kind of machine with its browser. `maker`: what the user agent says of it beside versions."""

    kind: str
    os: str
    os_version: str
    browser: str
    maker: str


class Seen(NamedTuple):
    """What a login shows of it."""

    agent: str
    browser: str
    os: str
    device: str


class Machine(NamedTuple):
    """One machine. `lag_days`: how long after their release updates are installed. `frozen_day`: after it none are."""

    model: Model
    lag_days: int
    frozen_day: int

    def seen(self, day: int) -> Seen:
        """What it shows on this day."""
        model = self.model
        until = min(day, self.frozen_day) - self.lag_days
        browser_version = current(model.browser, until) if model.browser in RELEASES else "1.0"
        os_version = current(model.os, until) if model.os in RELEASES else model.os_version
        return shown(model, browser_version, os_version)


def current(product: str, day: int) -> str:
    """The version of a product that was out on a day."""
    versions = RELEASES[product]
    return next((version for released, version in reversed(versions) if released <= day), versions[0][1])


def shown(model: Model, browser_version: str, os_version: str) -> Seen:
    """A user agent and what the usual parsers make of it."""
    named = _NAMES.get((model.browser, model.kind == "mobile" and model.os != "Windows"), model.browser)
    return Seen(
        _agent(model, browser_version, os_version),
        f"{named} {browser_version}",
        f"{model.os} {os_version}",
        model.kind,
    )


_NAMES = {("Chrome", True): "Chrome Mobile", ("Safari", True): "Mobile Safari", ("Samsung", True): "Samsung Internet"}


def _agent(model: Model, browser_version: str, os_version: str) -> str:
    if model.os == "iOS":
        tag = f"CriOS/{browser_version}" if model.browser == "Chrome" else f"Version/{browser_version}"
        system = f"{model.maker}; CPU {'' if model.maker == 'iPad' else 'iPhone '}OS {os_version.replace('.', '_')} like Mac OS X"
        return f"Mozilla/5.0 ({system}) AppleWebKit/605.1.15 (KHTML, like Gecko) {tag} Mobile/15E148 Safari/604.1"
    system = {
        "Android": f"Linux; Android {os_version}; {model.maker}",
        "Windows": f"Windows NT {os_version}.0; {model.maker}",
        "Mac OS X": f"Macintosh; Intel Mac OS X {os_version.replace('.', '_')}",
        "Linux": f"X11; {model.maker}",
        "Chrome OS": f"X11; CrOS {model.maker} {os_version}",
    }[model.os]
    if model.browser == "Firefox":
        return f"Mozilla/5.0 ({system}; rv:{browser_version}) Gecko/20100101 Firefox/{browser_version}"
    if model.browser == "Safari":
        return (
            f"Mozilla/5.0 ({system}) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/{browser_version} Safari/605.1.15"
        )
    mobile = " Mobile" if model.kind == "mobile" else ""
    engine = {"Edge": f"Chrome/{browser_version} Safari/537.36 Edg/{browser_version}"}.get(
        model.browser, f"Chrome/{browser_version}{mobile} Safari/537.36"
    )
    if model.browser == "Samsung":
        engine = f"SamsungBrowser/{browser_version} Chrome/79.0.3945{mobile} Safari/537.36"
    elif model.browser == "HeadlessChrome":
        engine = f"HeadlessChrome/{browser_version} Safari/537.36"
    return f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) {engine}"


def phone(dice: Random) -> Model:
    """A phone as people have them."""
    if dice.random() < 0.55:
        return Model("mobile", "iOS", "13.7", "Safari" if dice.random() < 0.85 else "Chrome", "iPhone")
    maker, version = dice.choice(ANDROIDS)
    samsung = maker.startswith("SM-") and dice.random() < 0.35
    return Model("mobile", "Android", version, "Samsung" if samsung else "Chrome", maker)


def desktop(dice: Random) -> Model:
    """A computer as people have them."""
    draw = dice.random()
    if draw < 0.62:
        browser = dice.choices(("Chrome", "Edge", "Firefox"), (58, 25, 17))[0]
        return Model("desktop", "Windows", dice.choices(("10", "8", "7"), (88, 4, 8))[0], browser, _WIN64)
    if draw < 0.92:
        return Model(
            "desktop", "Mac OS X", "10.15.6", dice.choices(("Safari", "Chrome", "Firefox"), (50, 38, 12))[0], ""
        )
    if draw < 0.96:
        return Model("desktop", "Chrome OS", "13310.76.0", "Chrome", dice.choice(("x86_64", "aarch64")))
    maker = dice.choice(("Linux x86_64", "Ubuntu; Linux x86_64", "Fedora; Linux x86_64"))
    return Model("desktop", "Linux", "5", dice.choice(("Firefox", "Chrome")), maker)


def tablet(dice: Random) -> Model:
    """A tablet as people have them."""
    if dice.random() < 0.75:
        return Model("tablet", "iOS", "13.7", "Safari", "iPad")
    return Model("tablet", "Android", "9", "Chrome", dice.choice(("SM-T510", "SM-T590", "SM-T720", "AGS2-L09")))


_WIN64 = "Win64; x64"


def machine(model: Model, dice: Random) -> Machine:
    """One of these, kept up to date as people do: most soon, some late, a few from a certain day no more."""
    lag_days = min(round(dice.expovariate(1 / 4.0)), 45)
    return Machine(model, lag_days, dice.randrange(-120, 20) if dice.random() < 0.04 else 10_000)
