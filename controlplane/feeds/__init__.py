"""Threat feeds: text from elsewhere, read line by line into signals. A bad line never stops the rest."""

from __future__ import annotations

from controlplane.feeds.formats import FORMATS, FeedSignal, Problem, check_value, detect, parse
from controlplane.feeds.merge import expiry_on_grid, merge, to_signal

__all__ = ["FORMATS", "FeedSignal", "Problem", "check_value", "detect", "expiry_on_grid", "merge", "parse", "to_signal"]
