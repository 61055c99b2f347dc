"""The commands in docs/api.md, run as they stand there against both doors (with the ports changed)."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
from door_fixtures import RecordingIntake, open_admission, open_gate

from billaged.doors.connect import ConnectDoor
from billaged.doors.grpc_server import GrpcDoor
from billaged.doors.methods import METHODS
from billaged.doors.status import _CODES
from billaged.settings import Grpc, Http
from billaged.web.app import http_app
from billaged.web.server import HttpServer
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "api.md").read_text()
COMMAND = re.compile(r"^(?:grpcurl|curl|printf) .*?(?=\n(?:grpcurl|curl|printf) |\n\n|\Z)", re.DOTALL | re.MULTILINE)
COMMANDS = [
    command
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for command in COMMAND.findall(block.rstrip())
]


class OneSummary:
    """A feed with one summary for everyone."""

    async def watch(self, customer_ids: Collection[str], vm_ids: Collection[str]) -> AsyncIterator[UsageSummary]:
        yield UsageSummary(vm_id="vm-1")


def test_every_rpc_has_an_example_for_both_tools() -> None:
    for name in (*(method.name for method in METHODS), "WatchSummaries"):
        for tool in ("grpcurl", "curl -"):
            assert any(tool in command and f"/{name}" in command for command in COMMANDS), (name, tool)


def test_every_status_is_in_the_table() -> None:
    for grpc_code, connect_code in _CODES.values():
        assert re.search(rf"\| `{grpc_code.name}` \| `{connect_code.value}` \|", PAGE)


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{number}" for number in range(len(COMMANDS))])
async def test_the_command_works(command: str) -> None:
    tool = "grpcurl" if command.startswith("grpcurl") else "curl"
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    intake = RecordingIntake()
    settings = Grpc(port=0, address="127.0.0.1")
    door, connect = (
        GrpcDoor(intake, OneSummary(), settings, open_gate()),
        ConnectDoor(intake, OneSummary(), settings, open_admission()),
    )
    server = HttpServer(
        http_app(connect, lambda: "ok", lambda: {"active_vms": 0}, open_admission()), Http(port=0, address="127.0.0.1")
    )
    grpc_port, http_port = await door.start(), await server.start()
    try:
        text = command.replace("127.0.0.1:8081", f"127.0.0.1:{grpc_port}").replace(
            "127.0.0.1:8082", f"127.0.0.1:{http_port}"
        )
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        connect.stop()
        await server.stop(1)
        await door.stop(0)
        connect.close()
    assert process.returncode == 0, errors.decode()
    if "BillingService/" in command:
        assert json.loads(output)["success"] is True
        assert len(intake.taken) == 1
    elif "WatchSummaries" in command:
        assert b"vm-1" in output
    else:
        assert output
