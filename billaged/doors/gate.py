"""The gate: every request passes it before anything else is done for its caller.

First who calls (``Gate.admit``: proved now, not too often, with a role for this method), then, once
the request is decoded, whether what it names is within the limits of that role
(``Admission.check``). A caller hears that it is not allowed; why is in the audit log.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, Protocol, Self
from urllib.parse import unquote

from billaged.doors.connections import Connections
from billaged.doors.rate import Limiter
from billaged.identity.names import UNPROVED
from billaged.identity.policy import Grant, Policy, needs_of
from billaged.model.errors import Forbidden, NotServing, Overloaded, Unauthenticated
from billaged.model.records import Heartbeat, MetricsBatch, PossibleGap, Record, VmStarted, VmStopped


class Owners(Protocol):
    """Who pays for a VM."""

    def running_customer(self, vm_id: str) -> str | None:
        """The customer of its running session, as far as is known at this moment."""

    async def customer_of(self, vm_id: str) -> str | None:
        """The customer of its newest session, once all that came before is folded; None for a VM never seen."""


class Denials(Protocol):
    """Where denials are noted: ``telemetry.audit.Audit``."""

    def deny(self, outcome: str, identity: str, method: str, reason: str, remote: str) -> None: ...


# Matching this many ids takes about a millisecond; more are not for the loop, which all other callers share.
_LONG_LIST: Final = 500
_SAMPLES_PER_LISTED_VM: Final = 10


class Gate:
    """One for each door; doors share policy, limiter, audit and owners, and each has its connections."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        limiter: Limiter,
        connections: Connections,
        audit: Denials,
        owners: Owners,
        unusable: Callable[[], str | None] = lambda: None,
        running_max: int = 0,
    ) -> None:
        """``policy`` gives the one in force. ``unusable`` says why nothing is served now, None where it is.

        ``running_max`` is how many requests one caller may have in flight here; 0 for no limit.
        """
        self._policy = policy
        self._limiter = limiter
        self._connections = connections
        self._audit = audit
        self.owners = owners
        self._unusable = unusable
        self._running_max = running_max
        self._running: dict[str, int] = {}  # requests in flight, by what limits count by

    def admit(self, method: str, who: Callable[[], str], remote: str) -> Admission:
        """Let a request in that needs the role of ``method``.

        ``who`` tells the identity or raises Unauthenticated; ``remote`` is the connection's
        other end, as ``ipv4:192.0.2.1:41234``.

        Raises:
            Unauthenticated, Forbidden, Overloaded, NotServing: it does not come in; nothing was looked at.
        """
        if (reason := self._unusable()) is not None:
            raise NotServing(reason)
        try:
            identity = who()
        except Unauthenticated as error:
            # Counted by where it comes from: the name it claims is somebody else's, perhaps.
            self._limiter.request(_host(remote))
            self._audit.deny("unauthenticated", error.identity, method, str(error), remote)
            raise
        key = _host(remote) if identity in UNPROVED else identity
        self._connections.used(key, remote)
        self._limiter.request(key)
        return Admission(self, method, who, remote, key, identity, self._grants(method, identity, remote))

    def begin(self, key: str) -> None:
        """One more in flight. Raises Overloaded where the caller has as many as it may."""
        running = self._running.get(key, 0)
        if self._running_max and running >= self._running_max:
            raise Overloaded(f"{running} requests of this caller are in flight already")
        self._running[key] = running + 1

    def end(self, key: str) -> None:
        """One less."""
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]

    def take_samples(self, key: str, count: int) -> None:
        """Raises Overloaded where the caller sends samples faster than it may."""
        self._limiter.samples(key, count)

    def deny(self, admission: Admission, reason: str) -> Forbidden:
        """Note the denial of what was admitted; returns the error to raise."""
        self._audit.deny("forbidden", admission.identity, admission.method, reason, admission.remote)
        return Forbidden()

    def renew(self, admission: Admission) -> None:
        """Admit again what has been running for a while: time and policy may have gone on.

        Raises:
            Unauthenticated, Forbidden, NotServing: it would not be admitted any more.
        """
        if (reason := self._unusable()) is not None:
            raise NotServing(reason)
        try:
            identity = admission.who()
        except Unauthenticated as error:
            self._audit.deny("unauthenticated", error.identity, admission.method, str(error), admission.remote)
            raise
        admission.grants = self._grants(admission.method, identity, admission.remote)

    def _grants(self, method: str, identity: str, remote: str) -> tuple[Grant, ...]:
        policy, need = self._policy(), needs_of(method)
        if need is None:
            raise ValueError(f"{method} is open to everybody: there is nothing to admit")
        grants = policy.grants_for(identity, need)
        if not grants:
            self._audit.deny("forbidden", identity, method, policy.why(identity, need), remote)
            raise Forbidden
        return grants


class Admission:
    """A caller who has been let in for one method, and what its grants leave open."""

    __slots__ = ("_gate", "grants", "identity", "key", "method", "remote", "who")

    def __init__(
        self,
        gate: Gate,
        method: str,
        who: Callable[[], str],
        remote: str,
        key: str,
        identity: str,
        grants: tuple[Grant, ...],
    ) -> None:
        self._gate = gate
        self.method = method
        self.who = who
        self.remote = remote
        self.key = key  # what limits count by
        self.identity = identity
        self.grants = grants

    def __enter__(self) -> Self:
        """For as long as the request is in flight. Raises Overloaded where too many are."""
        self._gate.begin(self.key)
        return self

    def __exit__(self, *exception: object) -> None:
        self._gate.end(self.key)

    async def check(self, record: Record) -> None:
        """Whether one grant covers all that the request names, and its samples are not too many.

        Raises:
            Forbidden: no grant does.
            Overloaded: it sends samples faster than it may.
        """
        for grant in self.grants:
            if not grant.limited:
                break
        else:
            await self._check_limits(record)
        if type(record) is MetricsBatch:
            self._gate.take_samples(self.key, record.sample_count)
        elif type(record) is Heartbeat:
            # A listed VM takes about as much room in the journal as some samples, and is sent far less often.
            self._gate.take_samples(self.key, _SAMPLES_PER_LISTED_VM * len(record.active_vms))

    def sees(self, customer_id: str, vm_id: str) -> bool:
        """Whether what is shown of this VM is within the grants."""
        return any(grant.allows(customer=customer_id, vm=vm_id) for grant in self.grants)

    def check_filter(self, customer_ids: Iterable[str], vm_ids: Iterable[str]) -> None:
        """Raises Forbidden where the caller asks for customers or VMs by a name that no grant covers."""
        for customer_id in customer_ids:
            if not any(grant.allows_customer(customer_id) for grant in self.grants):
                raise self._gate.deny(self, f"customer {customer_id} is outside of its grants")
        for vm_id in vm_ids:
            if not any(grant.allows_vm(vm_id) for grant in self.grants):
                raise self._gate.deny(self, f"VM {vm_id} is outside of its grants")

    def renew(self) -> None:
        """See ``Gate.renew``; for streams, before each message."""
        self._gate.renew(self)

    async def _check_limits(self, record: Record) -> None:
        if isinstance(record, Heartbeat):
            await self._check_heartbeat(record)
        elif isinstance(record, MetricsBatch | VmStarted):
            # Another customer's VM is refused by the intake, for all callers alike.
            if not any(grant.allows(customer=record.customer_id, vm=record.vm_id) for grant in self.grants):
                raise self._gate.deny(self, f"customer {record.customer_id}, VM {record.vm_id}: outside of its grants")
        elif isinstance(record, VmStopped | PossibleGap):
            await self._check_owner(record.vm_id)
        else:
            raise TypeError(f"{type(record).__name__} comes from no caller")

    async def _check_owner(self, vm_id: str) -> None:
        """One grant must cover the VM and whoever pays for it.

        The end of a VM that nobody has heard of could be the end of somebody else's that
        will be heard of later, so it takes a grant for all customers.
        """
        candidates = [grant for grant in self.grants if grant.allows_vm(vm_id)]
        if not candidates:
            raise self._gate.deny(self, f"VM {vm_id} is outside of its grants")
        if any(grant.customers is None for grant in candidates):
            return
        customer_id = await self._gate.owners.customer_of(vm_id)
        if customer_id is None:
            raise self._gate.deny(self, f"VM {vm_id} is not known, so neither is its customer")
        if not any(grant.allows_customer(customer_id) for grant in candidates):
            raise self._gate.deny(self, f"VM {vm_id} belongs to customer {customer_id}, outside of its grants")

    async def _check_heartbeat(self, record: Heartbeat) -> None:
        """One grant must cover the instance and every VM it lists; one that nobody knows has nothing to lose."""
        if len(record.active_vms) > _LONG_LIST:
            candidates = await asyncio.to_thread(self._covering, record)
        else:
            candidates = self._covering(record)
        if not candidates:
            raise self._gate.deny(self, f"instance {record.instance_id} or a VM it lists is outside of its grants")
        if any(grant.customers is None for grant in candidates):
            return
        owners = {
            owner for vm_id in record.active_vms if (owner := self._gate.owners.running_customer(vm_id)) is not None
        }
        if not any(all(map(grant.allows_customer, owners)) for grant in candidates):
            raise self._gate.deny(self, f"instance {record.instance_id} lists VMs of customers outside of its grants")

    def _covering(self, record: Heartbeat) -> list[Grant]:
        return [
            grant
            for grant in self.grants
            if grant.allows_instance(record.instance_id) and grant.allows_vms(record.active_vms)
        ]


def _host(remote: str) -> str:
    """What callers who prove nothing are counted by: the address without its port."""
    return _network(remote.rpartition(":")[0] or remote)


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    """Of IPv6 the network: a machine has a whole /64 to choose its addresses from."""
    if not host.startswith("ipv6:"):
        return host
    try:
        address = ipaddress.IPv6Address(unquote(host.removeprefix("ipv6:")).strip("[]").partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    return f"ipv6:{ipaddress.IPv6Network((address, 64), strict=False)}"
