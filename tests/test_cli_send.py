"""`billaged send` and the command line around it, against a real server on a loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result
from client_fixtures import BillingServer, TlsFolder, billing_server, sample_times
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2

from billaged import __version__
from billaged.cli.main import COMMANDS, billaged
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb


@pytest.fixture
def server() -> Iterator[BillingServer]:
    with billing_server() as running:
        yield running


def send(server: BillingServer, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(billaged, ["send", *arguments, "--address", server.address], input=stdin)


def taken(server: BillingServer) -> Message:
    (message,) = server.taken
    return message


def test_metrics_from_flags(server: BillingServer) -> None:
    values = {
        "cpu_time_nanos": 10**18,
        "memory_usage_bytes": 2**30,
        "disk_read_bytes": 3,
        "disk_write_bytes": 4,
        "network_rx_bytes": 5,
        "network_tx_bytes": 6,
    }
    flags = [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), str(value))]
    when = ["--timestamp", "2026-11-21T12:00:00.000000007+02:00"]
    result = send(server, "metrics", "--vm-id", "vm-1", "--customer-id", "acme", *flags, *when)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"success": True, "message": "processed 1 metrics"}
    request = taken(server)
    assert isinstance(request, pb.SendMetricsBatchRequest)
    assert (request.vm_id, request.customer_id) == ("vm-1", "acme")
    assert {name: getattr(request.metrics[0], name) for name in values} == values
    assert sample_times([request], "vm-1") == [1_795_255_200 * NANOS + 7]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "heartbeat --instance-id host-1 --active-vm b --active-vm a",
            pb.SendHeartbeatRequest(instance_id="host-1", active_vms=["b", "a"]),
        ),
        ("heartbeat --instance-id host-1", pb.SendHeartbeatRequest(instance_id="host-1")),
        (
            "started --vm-id v --customer-id c --start-time 1795255200000000007",
            pb.NotifyVmStartedRequest(vm_id="v", customer_id="c", start_time=1_795_255_200 * NANOS + 7),
        ),
        (
            "stopped --vm-id v --stop-time 2026-11-21T10:00:00Z",
            pb.NotifyVmStoppedRequest(vm_id="v", stop_time=1_795_255_200 * NANOS),
        ),
        (
            "gap --vm-id v --last-sent 2026-11-21T10:00:00Z --resume-time 2026-11-21T10:00:01Z",
            pb.NotifyPossibleGapRequest(vm_id="v", last_sent=1_795_255_200 * NANOS, resume_time=1_795_255_201 * NANOS),
        ),
    ],
)
def test_the_other_requests_from_flags(server: BillingServer, arguments: str, expected: Message) -> None:
    result = send(server, *arguments.split())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["success"] is True
    assert taken(server) == expected


def test_now_is_now(server: BillingServer) -> None:
    before = time.time_ns()
    assert send(server, "stopped", "--vm-id", "v").exit_code == 0
    assert before <= getattr(taken(server), "stop_time") <= time.time_ns()  # noqa: B009 - any message


def test_json_from_standard_input_and_from_a_file(server: BillingServer, tmp_path: Path) -> None:
    text = '{"vmId": "v", "customer_id": "c", "metrics": [{"timestamp": "2026-11-21T10:00:00Z", "cpuTimeNanos": "5"}]}'
    (tmp_path / "request.json").write_text(text)
    assert send(server, "metrics", "--json", "-", stdin=text).exit_code == 0
    assert send(server, "metrics", "--json", str(tmp_path / "request.json")).exit_code == 0
    first, second = server.taken
    assert isinstance(first, pb.SendMetricsBatchRequest)
    assert first == second
    assert first.metrics[0].cpu_time_nanos == 5


def test_json_lines_stop_at_the_first_that_fails(server: BillingServer) -> None:
    def judge(request: Message) -> tuple[grpc.StatusCode, str] | None:
        refused = getattr(request, "vm_id", "") == "bad"
        return (grpc.StatusCode.FAILED_PRECONDITION, "no such thing") if refused else None

    server.judge = judge
    lines = "".join(f'{{"vmId": "{vm}", "stopTime": "1"}}\n' for vm in ("a", "b", "bad", "never"))
    result = send(server, "stopped", "--json", "-", "--lines", stdin="\n" + lines)
    assert result.exit_code == 1
    assert result.stderr == "billaged: error: line 4: FAILED_PRECONDITION: no such thing\n"
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"success": True}] * 2
    assert [getattr(message, "vm_id", "") for message in server.taken] == ["a", "b"]


def test_a_refusal_is_one_line_and_exit_code_1(server: BillingServer) -> None:
    server.judge = lambda _: (grpc.StatusCode.INVALID_ARGUMENT, "vm_id: must not be empty")
    result = send(server, "stopped", "--vm-id", "")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "billaged: error: INVALID_ARGUMENT: vm_id: must not be empty\n"


def test_a_server_that_is_away_is_exit_code_1(server: BillingServer) -> None:
    server.stop()
    result = send(server, "stopped", "--vm-id", "v", "--timeout", "5s")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("billaged: error: UNAVAILABLE: ")
    assert second == "billaged: error: Nothing listens there: is billaged running, and is --address right?"


def test_a_refusals_text_is_shown_harmless(server: BillingServer) -> None:
    server.judge = lambda _: (grpc.StatusCode.INVALID_ARGUMENT, "\x1b]0;pwned\x07 line\nfake: OK" + "A" * 2_000)
    result = send(server, "stopped", "--vm-id", "v")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(r"billaged: error: INVALID_ARGUMENT: \x1b]0;pwned\x07 line\nfake: OKAAA")
    assert line.isprintable()
    assert len(line) < 700


def test_details_that_are_garbage_end_it_with_the_plain_failure(server: BillingServer) -> None:
    info = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    status = status_pb2.Status(code=8, message="no room", details=[info]).SerializeToString()
    for details in (b"\xff\xff\xff\xff", status):
        server.trailing = (("grpc-status-details-bin", details),)
        server.judge = lambda _: (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        result = send(server, "stopped", "--vm-id", "v")
        assert (result.exit_code, result.stderr) == (1, "billaged: error: RESOURCE_EXHAUSTED: no room\n")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", ""),
        (
            pb.SendMetricsBatchResponse(message="\x1b[2J\u202e" + "A" * 3_000_000).SerializeToString(),
            r"\x1b[2J\u202e" + "A" * 494 + "…",
        ),
        (b"\xff\xff\xff", None),
    ],
    ids=["empty", "hostile", "garbage"],
)
def test_an_answer_that_is_none_is_exit_code_1(answer: bytes, message: str | None) -> None:
    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    running = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    arguments = ["--vm-id", "v", "--customer-id", "c", "--address", f"127.0.0.1:{port}"]
    result = CliRunner().invoke(billaged, ["send", "metrics", *arguments])
    running.stop(0).wait()
    assert result.exit_code == 1
    if message is None:
        assert result.stderr == "billaged: error: INTERNAL: the answer is no SendMetricsBatchResponse\n"
    else:
        assert json.loads(result.stdout) == {"success": False, "message": message}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["stopped"], "--vm-id"),
        (["gap", "--vm-id", "v"], "--last-sent"),
        (["stopped", "--vm-id", "v", "--stop-time", "noon"], "'noon' is not a time"),
        (["stopped", "--vm-id", "v", "--stop-time", "--5"], "'--5' is not a time"),
        (["stopped", "--vm-id", "v", "--stop-time", "9223372036854775808"], "does not fit 64 bits"),
        (["stopped", "--vm-id", "v", "--stop-time", "9999-01-01"], "does not fit 64 bits"),
        (["metrics", "--vm-id", "v", "--customer-id", "c", "--disk-read-bytes", "1.5"], "'1.5' is not a whole number"),
        (["stopped", "--vm-id", "v", "--timeout", "60"], "write it like 60s"),
        (["stopped", "--vm-id", "v", "--timeout", "0s"], "longer than nothing"),
        (["stopped", "--vm-id", "v", "--json", "-"], "leave out --vm-id"),
        (["heartbeat", "--active-vm", "v", "--json", "-"], "leave out --active-vm"),
        (["stopped", "--vm-id", "v", "--lines"], "--lines"),
        (["stopped", "--json", "-"], "not a NotifyVmStoppedRequest in JSON"),
        (["stopped", "--json", "/does/not/exist"], "No such file"),
        (["stopped", "--vm-id", "v", "--tls-cert", __file__], "--tls-cert and --tls-key belong together"),
        (["stopped", "--vm-id", "v", "--tls-ca", "/does/not/exist"], "does not exist"),
        (
            ["stopped", "--vm-id", "v", "--spiffe-socket", "/run/a.sock", "--tls-ca", __file__],
            "--spiffe-socket and --tls-ca exclude each other",
        ),
        (["stopped", "--vm-id", "v", "--spiffe-trust-domain", "example.org"], "needs --spiffe-socket"),
        (
            ["stopped", "--vm-id", "v", "--spiffe-socket", "/a", "--spiffe-trust-domain", "spiffe://a/b"],
            "is not a trust domain",
        ),
        (["stopped", "--vm-id", "v", "--spiffe-socket", "unix://"], "must not be empty"),
        (["stopped", "--vm-id", "\udcff"], "surrogates not allowed"),
    ],
)
def test_a_wrong_argument_is_exit_code_2(server: BillingServer, arguments: list[str], problem: str) -> None:
    result = send(server, *arguments, stdin='{"vmIdd": "typo"}')
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert server.attempts == 0


def test_mutual_tls(tmp_path: Path) -> None:
    files = TlsFolder(tmp_path)
    with billing_server(files.server_credentials) as server:
        plain = send(server, "stopped", "--vm-id", "plain", "--timeout", "5s")
        assert plain.exit_code == 1
        assert plain.stderr.splitlines()[1].startswith(
            "billaged: error: It took the connection and closed it, as a server does that wants TLS: give"
        )
        nobody = send(server, "stopped", "--vm-id", "nobody", "--timeout", "5s", *files.trust_options)
        assert nobody.exit_code == 1
        assert "asks for a certificate: give --tls-cert and --tls-key" in nobody.stderr
        result = send(server, "stopped", "--vm-id", "known", "--timeout", "5s", *files.options)
        assert result.exit_code == 0, result.output
        assert getattr(taken(server), "vm_id") == "known"  # noqa: B009 - any message


def test_the_environment_says_where_to_send_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = TlsFolder(tmp_path)
    with billing_server(files.server_credentials) as server:
        for name, value in {
            "ADDRESS": server.address,
            "TLS_CA": files.ca,
            "TLS_CERT": files.cert,
            "TLS_KEY": files.key,
            "TLS_SERVER_NAME": "billaged.test",
            "SPIFFE_SOCKET": "",  # as an environment file leaves it
        }.items():
            monkeypatch.setenv(f"BILLAGED_{name}", str(value))
        result = CliRunner().invoke(billaged, ["send", "stopped", "--vm-id", "v"])
        assert result.exit_code == 0, result.output
        assert getattr(taken(server), "vm_id") == "v"  # noqa: B009 - any message


def test_a_spiffe_socket_and_files_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = TlsFolder(tmp_path)
    monkeypatch.setenv("BILLAGED_TLS_CA", str(files.ca))
    result = CliRunner().invoke(billaged, ["send", "stopped", "--vm-id", "v", "--spiffe-socket", "/run/a.sock"])
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "--spiffe-socket and --tls-ca (from BILLAGED_TLS_CA) exclude each other" in said


@pytest.mark.parametrize("name", ["agent", "send metrics"])
def test_the_help_shows_the_variables(name: str) -> None:
    output = " ".join(CliRunner().invoke(billaged, [*name.split(), "--help"], terminal_width=200).stdout.split())
    for variable in ("ADDRESS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME", "SPIFFE_SOCKET", "TIMEOUT"):
        assert f"env var: BILLAGED_{variable}" in output
    assert "UNKEY_" not in output


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_the_version_in_words_and_as_json() -> None:
    assert CliRunner().invoke(billaged, ["version"]).stdout == f"billaged {__version__}\n"
    details = json.loads(CliRunner().invoke(billaged, ["version", "--json"]).stdout)
    assert details["version"] == __version__
    assert details["libraries"]["grpcio"] == grpc.__version__


def test_the_help_lists_every_command_and_the_exit_codes() -> None:
    output = " ".join(CliRunner().invoke(billaged, ["--help"]).stdout.split())
    for name, (_, help_line) in COMMANDS.items():
        assert f"{name} {help_line}" in output
    assert "Exit codes: 0 it worked; 1 it failed" in output


@pytest.mark.parametrize("arguments", ["'version'", "'--help'", "'completion', 'zsh'"])
def test_the_light_commands_import_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys; from billaged.cli.main import billaged\n"
        f"billaged.main([{arguments}], standalone_mode=False)\n"
        "heavy = {'grpc', 'numpy', 'sqlalchemy', 'google.protobuf', 'psutil', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["agent", "send", "version", "completion"])
def test_each_command_is_where_the_table_says(name: str) -> None:
    command = billaged.get_command(click.Context(billaged), name)
    assert command is not None
    assert command.name == name
    assert CliRunner().invoke(billaged, [name, "--help"]).exit_code == 0


def test_an_unknown_command_is_exit_code_2() -> None:
    result = run("-m", "billaged", "sned")
    assert result.returncode == 2
    assert "No such command 'sned'" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_says_how_to_install_it(shell: str) -> None:
    script = CliRunner().invoke(billaged, ["completion", shell]).stdout
    assert f"# Install: billaged completion {shell} > " in script
    assert f"_BILLAGED_COMPLETE={shell}_complete" in script
    assert not script.startswith("\n")


def test_completion_knows_the_commands() -> None:
    environment = {"_BILLAGED_COMPLETE": "bash_complete", "COMP_WORDS": "billaged ve", "COMP_CWORD": "1"}
    result = run("-m", "billaged", environment=environment)
    # `python -m billaged` is run under the command's own name, as the console script is.
    assert result.stdout == "plain,verify\nplain,version\n"


# --- never plaintext by mistake --------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.1:8081", "billing.example.org:8081", "[2001:db8::1]:8081", "dns:///x:1"])
def test_plaintext_stays_on_this_machine_unless_it_is_meant(address: str) -> None:
    arguments = ["send", "stopped", "--vm-id", "v", "--address", address, "--timeout", "200ms"]
    refused = CliRunner().invoke(billaged, arguments)
    assert refused.exit_code == 2
    assert "--allow-plaintext" in refused.stderr and "--spiffe-socket" in refused.stderr


def test_plaintext_that_is_meant_is_tried() -> None:
    arguments = ["send", "stopped", "--vm-id", "v", "--address", "192.0.2.1:8081", "--timeout", "200ms"]
    assert CliRunner().invoke(billaged, [*arguments, "--allow-plaintext"]).exit_code == 1


@pytest.mark.parametrize("place", ["127.0.0.1", "[::1]", "localhost", "127.8.9.1"])
def test_on_this_machine_plaintext_needs_no_consent(place: str) -> None:
    arguments = ["send", "stopped", "--vm-id", "v", "--address", f"{place}:1", "--timeout", "200ms"]
    assert CliRunner().invoke(billaged, arguments).exit_code == 1


def test_a_slip_in_a_variables_name_is_no_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLAGED_TLS_CAFILE", "/etc/ca.pem")
    result = CliRunner().invoke(billaged, ["send", "stopped", "--vm-id", "v"])
    assert result.exit_code == 2
    assert "BILLAGED_TLS_CAFILE: unknown variable; did you mean BILLAGED_TLS_CA?" in " ".join(result.stderr.split())
