"""Budgets from end to end: a control plane, a sidecar and the Python client, each as a service would have it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sidestep.client import AsyncClient, Basis, Client, Decision, InvalidQuestionError, Outcome, SettleError

from tests.chaos import world
from tests.chaos.pod import Plane, Pod
from tests.fakes.stock import RECORDS, exempted
from tests.processes import until


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    directory = tmp_path_factory.mktemp("budgets")
    with Plane(directory / "plane") as plane:
        for resource in world.resources():
            plane.put(resource)
        for number in (1, 2):
            action = f"payments.transfer{number}"
            body = RECORDS["grants/g1"] | {"actions": [action], "budget": {"max_count": 1}}
            plane.put(world.resource(f"grants/g{number}", body))
        (directory / "pod").mkdir()
        with Pod(directory / "pod" / "data", plane.address, SIDESTEP_WORKERS="2") as pod:
            yield pod


def question(number: int, **fields: Any) -> dict[str, Any]:
    """Alice's, as the client takes it."""
    asked = exempted()
    return {
        "subject": "alice",
        "action": f"payments.transfer{number}",
        "session_id": "s1",
        "token": asked.session.token,
        "device_id": "laptop",
        "fingerprint": dict(asked.device.fingerprint),
        "ip": "203.0.113.77",
        "timeout_s": 2.0,
        **fields,
    }


def allowed(client: Client, fields: dict[str, Any], what: str) -> Decision:
    """The first decision that lets the action go on."""
    found: list[Decision] = []

    def ask() -> bool:
        found.append(client.evaluate(**fields))
        return found[-1].allowed

    until(ask, what)
    return found[-1]


def test_cancelled_spend_comes_back_and_an_executed_one_does_not(pod: Pod) -> None:
    with Client(pod.address) as client:
        first = allowed(client, question(1), "the budget")
        assert first.basis is Basis.EXEMPTION_GRANT
        assert client.evaluate(**question(1)).outcome is Outcome.STEP_UP
        for _ in range(2):
            client.settle(first, executed=False)
        with pytest.raises(SettleError) as error:
            client.settle(first, executed=True)
        assert not error.value.retryable
        second = allowed(client, question(1), "the spend to come back")
        client.settle(second.decision_id, executed=True)
        with pytest.raises(SettleError):
            client.settle(second, executed=False)
        refused = client.evaluate(**question(1))
        assert refused.outcome is Outcome.STEP_UP
        with pytest.raises(SettleError, match="NOT_FOUND"):
            client.settle(refused, executed=True)


def test_repeats_of_one_request_spend_once_whichever_worker_they_come_to(pod: Pod) -> None:
    fields = question(2, request_id="order-7")
    with Client(pod.address) as client:
        first = allowed(client, fields, "the budget")
    for _ in range(6):
        with Client(pod.address) as client:
            assert client.evaluate(**fields).decision_id == first.decision_id
    with Client(pod.address) as client:
        assert client.evaluate(**question(2, request_id="order-8")).outcome is Outcome.STEP_UP
        with pytest.raises(InvalidQuestionError, match="request_id"):
            client.evaluate(**question(2, request_id="order-7", resource_id="another"))


def test_async_client_settles_too(pod: Pod) -> None:
    async def settle() -> None:
        async with AsyncClient(pod.address) as client:
            with pytest.raises(SettleError, match="NOT_FOUND"):
                await client.settle("019a0000-0000-7000-8000-000000000000", executed=True)
            with pytest.raises(ValueError, match="no id"):
                await client.settle("", executed=True)

    asyncio.run(settle())


def test_settling_where_nobody_answers_may_be_tried_again(tmp_path: Path) -> None:
    with Client(f"unix://{tmp_path}/nobody.sock") as client, pytest.raises(SettleError) as error:
        client.settle("019a0000-0000-7000-8000-000000000000", executed=True, timeout_s=0.5)
    assert error.value.retryable
