"""The floor: a server on the sidecar's native transport that answers every Evaluate with the same bytes, without reading it."""

from __future__ import annotations

import signal
import sys

from sidestep.v1 import decision_pb2

from sidecar.front.native import NativeTransport
from sidecar.front.transport import Method
from sidecar.listeners import parse_listeners

PATH = "/sidestep.v1.DecisionService/Evaluate"


def main() -> int:
    """Serves until SIGTERM."""
    answer = decision_pb2.EvaluateResponse(
        decision_id="0" * 36, outcome=decision_pb2.OUTCOME_ALLOW, basis=decision_pb2.BASIS_ASSURANCE_SATISFIED
    ).SerializeToString()
    transport = NativeTransport(parse_listeners("127.0.0.1:0")[0], [Method(PATH, 1 << 16)])
    transport.start()
    signal.signal(signal.SIGTERM, lambda *_: transport.drain(0.0))
    print(f"ready grpc=127.0.0.1:{transport.port}", flush=True)
    while (calls := transport.receive(64, 0.25)) is not None:
        for call in calls:
            transport.answer(call, answer)
    transport.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
