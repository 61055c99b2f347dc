"""The gate by itself: what callers are counted by, and what it costs those who come too often."""

from __future__ import annotations

import time

import pytest
from door_fixtures import KnownOwners

from billaged.doors.connections import Connections
from billaged.doors.gate import Gate, _host
from billaged.doors.rate import Limiter
from billaged.identity.names import PLAINTEXT
from billaged.identity.policy import Policy
from billaged.identity.policy_file import parse
from billaged.model.errors import Forbidden, NotServing, Overloaded, Unauthenticated
from billaged.model.records import Heartbeat, Tick, VmStopped
from billaged.telemetry.audit import Audit

REMOTE = "ipv4:192.0.2.1:41234"
LIMITED = parse(
    """
    [[allow]]
    identity = "spiffe://example.org/a"
    roles = ["ingest"]
    customers = ["acme"]

    [[allow]]
    identity = "spiffe://example.org/a"
    roles = ["ingest"]
    vms = ["shared-*"]
    """,
    "policy",
)
A = "spiffe://example.org/a"


class Door:
    """A gate with little room, and what it noted."""

    def __init__(self, policy: Policy, *, requests: int = 0, samples: int = 0, **owners: str) -> None:
        self.now_ns = 0
        self.audit = Audit(lambda: self.now_ns)
        self.unusable: str | None = None
        self.gate = Gate(
            lambda: policy,
            Limiter(requests, samples, 1, monotonic_nanos=lambda: self.now_ns),
            Connections(0, still_open=set, monotonic_nanos=time.monotonic_ns),
            self.audit,
            KnownOwners(**owners),
            lambda: self.unusable,
        )

    def admit(self, identity: str, remote: str = REMOTE) -> None:
        self.gate.admit("SendHeartbeat", lambda: identity, remote)


@pytest.mark.parametrize(
    ("remote", "host"),
    [
        ("ipv4:192.0.2.1:41234", "ipv4:192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:2001:db8::/64"),
        ("ipv6:%5B2001:db8::ffff:1%5D:2", "ipv6:2001:db8::/64"),
        ("ipv6:%5B2001:db8:0:1::1%5D:3", "ipv6:2001:db8:0:1::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4", "ipv6:fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5", "ipv4:192.0.2.1"),
        ("unix:/run/x.sock", "unix"),
        ("unknown", "unknown"),
    ],
)
def test_who_proves_nothing_is_counted_by_where_he_comes_from(remote: str, host: str) -> None:
    assert _host(remote) == host


def test_the_unproved_share_their_address_and_the_proved_their_name() -> None:
    door = Door(Policy.everything(), requests=2)
    for _ in range(2):
        door.admit(PLAINTEXT)
        door.admit(A)
    for identity in (PLAINTEXT, A):
        with pytest.raises(Overloaded):
            door.admit(identity)
    door.admit(PLAINTEXT, "ipv4:192.0.2.2:1")
    with pytest.raises(Overloaded):
        door.admit(A, "ipv4:192.0.2.2:1")


def test_who_is_denied_uses_up_his_requests_too() -> None:
    door = Door(Policy.nothing(), requests=2)
    for _ in range(2):
        with pytest.raises(Forbidden):
            door.admit(A)
    with pytest.raises(Overloaded):
        door.admit(A)
    assert door.audit.denied["forbidden"] == 2


def test_who_pretends_uses_up_those_of_his_address_not_of_the_name() -> None:
    door = Door(Policy.everything(), requests=1)

    def pretend() -> str:
        raise Unauthenticated("expired", A)

    with pytest.raises(Unauthenticated):
        door.gate.admit("SendHeartbeat", pretend, REMOTE)
    with pytest.raises(Overloaded):
        door.gate.admit("SendHeartbeat", pretend, REMOTE)
    door.admit(A)


def test_nothing_is_admitted_while_the_daemon_cannot_prove_itself() -> None:
    door = Door(Policy.everything())
    door.unusable = "billaged's own certificate has expired"
    with pytest.raises(NotServing, match="expired"):
        door.admit(A)


@pytest.mark.parametrize("method", ["DropTables", ""])
def test_a_method_that_the_policy_does_not_know_is_nobodys(method: str) -> None:
    with pytest.raises(KeyError):
        Door(Policy.everything()).gate.admit(method, lambda: A, REMOTE)


async def test_one_grant_must_cover_all_of_a_request() -> None:
    """The one gives customer acme, the other VMs shared-*: no heartbeat that needs both halves passes."""
    door = Door(LIMITED, **{"shared-1": "globex", "acme-1": "acme"})
    admission = door.gate.admit("SendHeartbeat", lambda: A, REMOTE)
    await admission.check(Heartbeat("host-1", ("shared-1",)))
    await admission.check(Heartbeat("host-1", ("acme-1",)))
    with pytest.raises(Forbidden):
        await admission.check(Heartbeat("host-1", ("acme-1", "shared-1")))


async def test_a_long_list_is_checked_like_a_short_one() -> None:
    door = Door(LIMITED, **{"shared-1": "globex", "acme-1": "acme"})
    admission = door.gate.admit("SendHeartbeat", lambda: A, REMOTE)
    many = tuple(f"shared-{number}" for number in range(10_000))
    await admission.check(Heartbeat("host-1", many))
    with pytest.raises(Forbidden):
        await admission.check(Heartbeat("host-1", (*many, "acme-1")))


async def test_what_is_the_daemons_own_comes_from_no_caller() -> None:
    admission = Door(LIMITED).gate.admit("SendHeartbeat", lambda: A, REMOTE)
    with pytest.raises(TypeError):
        await admission.check(Tick(0, 0, closes_interval=False))


async def test_the_end_of_a_vm_that_nobody_knows_takes_a_grant_for_all_customers() -> None:
    door = Door(LIMITED)
    admission = door.gate.admit("NotifyVmStopped", lambda: A, REMOTE)
    with pytest.raises(Forbidden):
        await admission.check(VmStopped("unheard-of", 1))
    await admission.check(VmStopped("shared-9", 1))
