"""What the client raises. A sidecar that cannot be reached is no error: it is a Decision made by the fail mode."""

from __future__ import annotations


class SidestepClientError(Exception):
    """Any error this client raises on purpose."""


class InvalidQuestionError(SidestepClientError, ValueError):
    """The question cannot be asked like this; asking again will not help. Nothing was decided: do not go on.

    The message names the field. `index` is the question's place in a batch, None for a single one.
    """

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem if index is None else f"question {index}: {problem}")
        self.problem = problem
        self.index = index


class ClosedClientError(SidestepClientError):
    """The client was closed."""


class OutcomeError(SidestepClientError):
    """The outcome of a challenge could not be reported. `retryable`: the sidecar did not answer, and trying again may help.
    Otherwise another outcome was reported."""

    def __init__(self, problem: str, *, retryable: bool) -> None:
        super().__init__(problem)
        self.retryable = retryable


class SettleError(SidestepClientError):
    """The decision could not be settled; it counts as spent. `retryable`: the sidecar did not answer, and trying again may help.
    Otherwise it does not know the decision (any more), did not permit it to this caller, or it was settled the other way."""

    def __init__(self, problem: str, *, retryable: bool) -> None:
        super().__init__(problem)
        self.retryable = retryable


class ReportError(SidestepClientError):
    """The step-up does not count. The message names the field, and for the token what is wrong with it.

    `retryable`: the sidecar did not answer, and trying again may help. `already_used`: the proof's `jti` was used; after a try
    that got no answer that means it had succeeded.
    """

    def __init__(self, problem: str, *, retryable: bool, already_used: bool = False) -> None:
        super().__init__(problem)
        self.retryable = retryable
        self.already_used = already_used
