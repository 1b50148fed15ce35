"""Where logins come from: countries, cities, and networks with addresses.

Networks have the AS numbers and countries of real ones, but addresses of our own making: every AS has a few /16 blocks.
"""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

# Latitude and longitude of where most people of a country are, in degrees.
CENTRES: Final[dict[str, tuple[float, float]]] = {
    "AE": (25.1, 55.2), "AR": (-34.6, -58.4), "AT": (48.2, 16.4), "AU": (-33.9, 151.2), "BE": (50.8, 4.4),
    "BG": (42.7, 23.3), "BR": (-23.5, -46.6), "CA": (43.7, -79.4), "CH": (47.4, 8.5), "CL": (-33.4, -70.7),
    "CN": (31.2, 121.5), "CO": (4.7, -74.1), "CY": (35.2, 33.4), "CZ": (50.1, 14.4), "DE": (51.2, 9.0),
    "DK": (55.7, 12.0), "EE": (59.4, 24.8), "EG": (30.0, 31.2), "ES": (40.4, -3.7), "FI": (60.2, 24.9),
    "FR": (48.9, 2.4), "GB": (52.0, -1.0), "GR": (38.0, 23.7), "HK": (22.3, 114.2), "HR": (45.8, 16.0),
    "HU": (47.5, 19.0), "ID": (-6.2, 106.8), "IE": (53.3, -6.3), "IL": (32.1, 34.8), "IN": (19.1, 72.9),
    "IR": (35.7, 51.4), "IS": (64.1, -21.9), "IT": (43.5, 11.5), "JP": (35.7, 139.7), "KE": (-1.3, 36.8),
    "KR": (37.6, 127.0), "LT": (54.7, 25.3), "LU": (49.6, 6.1), "LV": (56.9, 24.1), "MA": (33.6, -7.6),
    "MX": (19.4, -99.1), "MY": (3.1, 101.7), "NG": (6.5, 3.4), "NL": (52.2, 5.0), "NO": (59.9, 10.7),
    "NZ": (-36.8, 174.8), "PE": (-12.0, -77.0), "PH": (14.6, 121.0), "PK": (31.5, 74.3), "PL": (52.2, 20.0),
    "PT": (38.7, -9.1), "RO": (44.4, 26.1), "RS": (44.8, 20.5), "RU": (55.8, 37.6), "SA": (24.7, 46.7),
    "SE": (59.3, 17.5), "SG": (1.4, 103.8), "SI": (46.1, 14.5), "SK": (48.1, 17.1), "TH": (13.8, 100.5),
    "TR": (41.0, 29.0), "TW": (25.0, 121.6), "UA": (50.5, 30.5), "US": (39.0, -90.0), "VN": (10.8, 106.7),
    "ZA": (-26.2, 28.0),
}  # fmt: skip


class City(NamedTuple):
    """A city as address databases tell it."""

    country: str
    region: str
    name: str


class Network(NamedTuple):
    """An AS. `blocks`: how many /16 its addresses come from."""

    asn: int
    country: str
    blocks: int = 4


class Place(NamedTuple):
    """Where one login comes from. `city` is where the address is said to be, which need not be where the person is."""

    ip: str
    asn: int
    city: City


# Weight, city.
CITIES: Final[tuple[tuple[int, City], ...]] = (
    (24, City("NO", "Oslo County", "Oslo")),
    (10, City("NO", "Vestland", "Bergen")),
    (8, City("NO", "Rogaland", "Stavanger")),
    (7, City("NO", "Trøndelag", "Trondheim")),
    (5, City("NO", "Troms og Finnmark", "Tromsø")),
    (4, City("NO", "Viken", "Drammen")),
    (6, City("SE", "Stockholm County", "Stockholm")),
    (4, City("DK", "Capital Region", "Copenhagen")),
    (6, City("DE", "Berlin", "Berlin")),
    (4, City("DE", "Bavaria", "Munich")),
    (5, City("GB", "England", "London")),
    (4, City("US", "Virginia", "Ashburn")),
    (4, City("US", "California", "San Francisco")),
    (2, City("PL", "Mazovia", "Warsaw")),
    (2, City("IN", "Maharashtra", "Mumbai")),
)
FIXED: Final[dict[str, tuple[Network, ...]]] = {
    "NO": (Network(2119, "NO", 8), Network(29695, "NO", 8), Network(15659, "NO"), Network(41164, "NO")),
    "SE": (Network(3301, "SE", 8), Network(8473, "SE")),
    "DK": (Network(3292, "DK", 6), Network(9158, "DK")),
    "DE": (Network(3320, "DE", 12), Network(3209, "DE", 8), Network(6805, "DE", 8)),
    "GB": (Network(2856, "GB", 10), Network(5607, "GB", 8)),
    "US": (Network(7922, "US", 20), Network(7018, "US", 16), Network(701, "US", 12)),
    "PL": (Network(5617, "PL", 8), Network(12741, "PL")),
    "IN": (Network(9829, "IN", 10), Network(24560, "IN", 10)),
}
MOBILE: Final[dict[str, tuple[Network, ...]]] = {
    "NO": (Network(2119 + 100000, "NO", 3), Network(12929, "NO", 2), Network(197943, "NO", 2)),
    "SE": (Network(44034, "SE", 2), Network(1257, "SE", 3)),
    "DK": (Network(31027, "DK", 2), Network(39554, "DK", 2)),
    "DE": (Network(3320 + 100000, "DE", 3), Network(3209 + 100000, "DE", 3)),
    "GB": (Network(12576, "GB", 3), Network(25135, "GB", 3)),
    "US": (Network(21928, "US", 5), Network(20057, "US", 5)),
    "PL": (Network(12912, "PL", 2), Network(39603, "PL", 2)),
    "IN": (Network(55836, "IN", 6), Network(45609, "IN", 5)),
}
VPNS: Final = (
    Network(9009, "SE", 2),
    Network(9009 + 100000, "NL", 2),
    Network(60068, "DE", 2),
    Network(212238, "GB", 2),
)
"""Exits of VPN providers."""
OFFICE: Final = Network(3399, "NO", 6)
# Where people go, with the networks they meet there.
ABROAD: Final = tuple(
    (city, Network(asn, city.country, 4))
    for asn, city in (
        (3352, City("ES", "Madrid", "Madrid")),
        (12479, City("ES", "Andalusia", "Málaga")),
        (1267, City("IT", "Lazio", "Rome")),
        (3215, City("FR", "Île-de-France", "Paris")),
        (6799, City("GR", "Attica", "Athens")),
        (9121, City("TR", "Istanbul", "Istanbul")),
        (7470, City("TH", "Bangkok", "Bangkok")),
        (12874, City("PT", "Lisbon", "Lisbon")),
        (6128, City("US", "New York", "New York")),
    )
)
HOSTERS: Final = tuple(
    (City(country, "-", "-"), Network(asn, country, 3))
    for asn, country in (
        (16276, "FR"), (24940, "DE"), (14061, "US"), (16509, "US"), (45102, "SG"), (197695, "RU"),
        (49505, "RU"), (36352, "US"), (135377, "HK"), (51167, "DE"), (9009, "RO"), (202425, "NL"),
    )
)  # fmt: skip
"""Where servers are rented."""
BOTNET: Final = tuple(
    (City(country, "-", "-"), Network(asn, country, 12))
    for asn, country in (
        (17974, "ID"), (45899, "VN"), (28573, "BR"), (8151, "MX"), (4134, "CN"), (9829, "IN"), (12389, "RU"),
        (8452, "EG"), (9299, "PH"), (3352, "ES"), (3215, "FR"), (7922, "US"), (6147, "PE"), (37457, "ZA"),
    )
)  # fmt: skip
"""Whose customers' routers and phones do what others tell them."""


def address(network: Network, dice: Random) -> str:
    """One of the network's addresses."""
    block = network.asn * 16 + dice.randrange(network.blocks)
    first = 11 + block * 7 % 115 if block % 2 else 128 + block * 11 % 62
    return f"{first}.{block * 131 // 16 % 256}.{dice.randrange(256)}.{1 + dice.randrange(254)}"


def city(dice: Random) -> City:
    """A home town."""
    return dice.choices([place for _, place in CITIES], [weight for weight, _ in CITIES])[0]
