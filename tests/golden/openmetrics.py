"""A strict reader of OpenMetrics text 1.0: anything the specification does not allow fails."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_LABELS = rf"\{{(?:{_LABEL}(?:,{_LABEL})*)?\}}"
_NUMBER = r"[+-]?(?:Inf|NaN|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
_SAMPLE = re.compile(
    rf"(?P<name>{_NAME})(?P<labels>{_LABELS})? (?P<value>{_NUMBER})(?: (?P<at>{_NUMBER}))?"
    rf"(?: # (?P<exemplar>{_LABELS}) (?P<exemplar_value>{_NUMBER})(?: (?P<exemplar_at>{_NUMBER}))?)?"
)
_META = re.compile(rf"# (?P<what>TYPE|UNIT|HELP) (?P<name>{_NAME}) (?P<text>.+)")
_SUFFIXES = {"counter": ("_total", "_created"), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum", "_created")}
_MAX_EXEMPLAR_CHARS = 128


class Exemplar(NamedTuple):
    labels: dict[str, str]
    value: float
    at: float


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float
    exemplar: Exemplar | None


@dataclass
class Family:
    name: str
    kind: str = ""
    unit: str = ""
    help: str = ""
    samples: list[Sample] = field(default_factory=list)


def parse(text: str) -> dict[str, Family]:
    """The metric families by name. Raises AssertionError naming the line at fault."""
    assert text.endswith("# EOF\n"), "must end with # EOF"
    families: dict[str, Family] = {}
    current: Family | None = None
    for number, line in enumerate(text.removesuffix("# EOF\n").splitlines(), 1):
        where = f"line {number}: {line}"
        meta = _META.fullmatch(line)
        if meta is not None:
            if current is None or current.name != meta["name"]:
                assert meta["name"] not in families, f"families may not be interleaved; {where}"
                current = families[meta["name"]] = Family(meta["name"])
            assert not current.samples, f"metadata must come first; {where}"
            attribute = {"TYPE": "kind", "UNIT": "unit", "HELP": "help"}[meta["what"]]
            assert not getattr(current, attribute), f"told twice; {where}"
            setattr(current, attribute, meta["text"])
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, f"neither metadata nor a sample; {where}"
        assert current is not None, f"a sample without a family; {where}"
        sample = _sample(match)
        suffix = sample.name.removeprefix(current.name)
        assert sample.name.startswith(current.name), where
        assert suffix in _SUFFIXES[current.kind], where
        assert sample.exemplar is None or suffix in ("_total", "_bucket"), f"no place for an exemplar; {where}"
        assert (sample.name, sample.labels) not in [(s.name, s.labels) for s in current.samples], f"twice; {where}"
        current.samples.append(sample)
    for family in families.values():
        _check(family)
    return families


def _sample(match: re.Match[str]) -> Sample:
    exemplar = None
    if match["exemplar"] is not None:
        labels = _labels(match["exemplar"])
        assert sum(len(name) + len(value) for name, value in labels.items()) <= _MAX_EXEMPLAR_CHARS
        exemplar = Exemplar(labels, float(match["exemplar_value"]), float(match["exemplar_at"]))
    return Sample(match["name"], _labels(match["labels"] or "{}"), float(match["value"]), exemplar)


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in re.findall(_LABEL, text)]
    labels = {name: value[1:-1] for name, value in pairs}
    assert len(labels) == len(pairs), f"a label twice: {text}"
    return labels


def _check(family: Family) -> None:
    assert family.kind in _SUFFIXES, family
    assert family.help
    assert not family.unit or family.name.endswith(f"_{family.unit}"), family.name
    if family.kind in ("counter", "histogram"):
        assert all(sample.value >= 0 for sample in family.samples), family.name
    if family.kind == "histogram":
        _check_histogram(family)


def _check_histogram(family: Family) -> None:
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == float("inf")
    assert all(one.value <= other.value for one, other in pairwise(buckets))
    (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
    assert count == buckets[-1].value
    for low, sample, bound in zip([float("-inf"), *bounds], buckets, bounds, strict=False):
        assert sample.labels["le"] in ("+Inf", repr(bound)), "bounds are written as floating-point numbers"
        assert sample.exemplar is None or low < sample.exemplar.value <= bound
