"""`make demo`: plays a payments story on a real control plane, sidecar and OTLP receiver, and checks every answer and span."""

from __future__ import annotations

import sys
import time

from examples.callers import PAYMENTS
from examples.stack import Stack
from examples.story import PARENT_ID, TRACE_ID, Story
from examples.world import Admin, World

SPAN_TIMEOUT_S = 30.0


def main() -> int:
    """Returns 0 if every decision was as expected and every one was traced."""
    started = time.monotonic()
    print("Sidestep demo: a control plane, a sidecar and an OTLP receiver, started in a temporary folder.")
    with Stack(soft_stale="6s", callers=True) as stack:
        try:
            return _play(stack, started)
        except Exception as error:
            print(f"\ndemo: broken off: {error}\n{stack.logs()}", file=sys.stderr)
            raise


def _play(stack: Stack, started: float) -> int:
    admin = Admin(stack.admin_address)
    world = World(admin)
    story = Story(stack, world, admin)
    try:
        print("\n 0. The tenant acme: settings, keys, users, devices; then policies and a real threat feed")
        world.build()
        story.load()
        story.play()
    finally:
        admin.close()
        story.client.close()
    stack.stop_sidecar()
    return _account(stack, story, started)


def _account(stack: Stack, story: Story, started: float) -> int:
    """Compares what was answered with what the receiver holds."""
    answered = {decision.decision_id: decision for decision in story.decisions if decision.decision_id}
    missing = stack.receiver.wait_for(set(answered), SPAN_TIMEOUT_S)
    spans = stack.receiver.spans()
    for decision_id, decision in answered.items():
        span = spans.get(decision_id)
        if span is None:
            continue
        if span.get("sidestep.outcome") != decision.outcome.value:
            story.unexpected.append(
                f"span of {decision_id} says {span.get('sidestep.outcome')}, not {decision.outcome.value}"
            )
        if span.get("sidestep.caller") != PAYMENTS:
            story.unexpected.append(f"span of {decision_id} names {span.get('sidestep.caller')} as its caller")
        if (span["trace_id"], span["parent_id"]) != (TRACE_ID, PARENT_ID):
            story.unexpected.append(f"span of {decision_id} is not a child of the caller's span")
    total = len(story.decisions)
    failed = min(total, len(story.unexpected))
    for line in story.unexpected:
        print(f"unexpected: {line}", file=sys.stderr)
    print(f"\n({time.monotonic() - started:.0f} s)")
    lost = total - len(answered) + len(missing)
    print(f"demo: {total} decisions, {total - failed} as expected, {len(answered) - len(missing)} traced, {lost} lost")
    return 1 if story.unexpected or lost else 0


if __name__ == "__main__":
    sys.exit(main())
