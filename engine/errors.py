"""The root of Sidestep's error tree. Each package adds its branch; `front/` and `api/` map them to gRPC codes, once each."""

from __future__ import annotations


class SidestepError(Exception):
    """Any error Sidestep raises on purpose."""


class InvalidInputError(SidestepError):
    """Input that cannot be accepted. `field` names it as the user wrote it (`request.subject.id`, `spec.triggers[1].when`)."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
