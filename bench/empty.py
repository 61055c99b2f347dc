"""The baseline's servers, as a process: ``python -m bench.empty raw|parsed|door``.

The daemon's stack (grpc.aio on uvloop, its collector's thresholds) with nothing behind
it: ``raw`` gives bytes for bytes, ``parsed`` has gRPC parse the request and serialize the
answer as any generated servicer does, ``door`` is billaged's own door with an intake
that says yes to everything.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import time
from typing import Any

import grpc
import grpc.aio
import uvloop

from billaged.doors.connections import Connections
from billaged.doors.gate import Gate
from billaged.doors.grpc_server import GrpcDoor
from billaged.doors.rate import Limiter
from billaged.identity.policy import Policy
from billaged.model.records import Kind, Record
from billaged.settings import Grpc
from billaged.telemetry.audit import Audit
from billaged.wire.billing.v1 import billing_pb2 as pb

SERVICE = "billing.v1.BillingService"
METHOD = "SendMetricsBatch"
_ANSWER = pb.SendMetricsBatchResponse(success=True, message="processed 1 metrics")


class _YesIntake:
    def __init__(self) -> None:
        self.items_max = {Kind.METRICS: 100_000}

    async def submit(self, record: Record, payload: bytes, caller: str) -> None:
        return


class _NoFeed:
    def watch(self, customer_ids: object, vm_ids: object) -> Any:
        raise NotImplementedError("nobody watches a baseline")


def _open_gate() -> Gate:
    policy = Policy.everything()
    limiter = Limiter(0, 0, monotonic_nanos=time.monotonic_ns)
    connections = Connections(0, still_open=set, monotonic_nanos=time.monotonic_ns)
    owners: Any = None  # nobody asks where there are no limits
    return Gate(lambda: policy, limiter, connections, Audit(time.monotonic_ns), owners)


def _raw() -> Any:
    answer = _ANSWER.SerializeToString()

    async def handle(payload: bytes, context: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


def _parsed() -> Any:
    async def handle(request: pb.SendMetricsBatchRequest, context: Any) -> pb.SendMetricsBatchResponse:
        return _ANSWER

    return grpc.unary_unary_rpc_method_handler(
        handle, pb.SendMetricsBatchRequest.FromString, pb.SendMetricsBatchResponse.SerializeToString
    )


async def _serve(handler: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if handler == "door":
        door = GrpcDoor(_YesIntake(), _NoFeed(), Grpc(port=0, address="127.0.0.1"), _open_gate())
        port = await door.start()
        end: Any = door.stop
    else:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        methods = {METHOD: _raw() if handler == "raw" else _parsed()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        end = server.stop
        await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    print(json.dumps({"message": "serving", "port": port}), flush=True)
    await stop.wait()
    await end(1.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))
