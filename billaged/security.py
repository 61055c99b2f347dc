"""Who the daemon is, who may call it, and what they may do: everything of that, built from the settings.

Part of the composition root: it joins ``identity`` with the doors. Made and started
before anything else of the daemon, so that nothing is opened for one that may not serve.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import grpc

from billaged.doors.connections import Connections, open_peers
from billaged.doors.gate import Gate, Owners
from billaged.doors.http_caller import HttpCaller
from billaged.doors.listening import GRPC_ADDRESS, HTTP_ADDRESS, is_loopback
from billaged.doors.rate import Limiter
from billaged.identity.caller import Caller, CertificateCaller, anonymous_caller, plaintext_caller
from billaged.identity.files import FileSource, PemFiles
from billaged.identity.keeper import Keeper, Source
from billaged.identity.peer import PeerVerifier
from billaged.identity.policy import Policy
from billaged.identity.policy_file import PolicyError, load, minimal_policy
from billaged.identity.probe import Probe
from billaged.identity.server_credentials import server_credentials
from billaged.identity.token import read_token
from billaged.model.errors import IdentityUnavailable, SettingError, StartError
from billaged.model.time import NANOS, Clock, format_duration
from billaged.settings import Http, Settings, Tls
from billaged.telemetry.audit import Audit

_log: Final = logging.getLogger("billaged.security")

_MODE: Final = "UNKEY_BILLAGED_TLS_MODE"
_FILES: Final = ("UNKEY_BILLAGED_TLS_CERT_FILE", "UNKEY_BILLAGED_TLS_KEY_FILE", "UNKEY_BILLAGED_TLS_CA_FILE")
_POLICY: Final = "UNKEY_BILLAGED_POLICY_FILE"
_WAITING_SAID_SECONDS: Final = 10.0
_PRUNE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0


class Security:
    """Lives on the event loop, but for the source's own threads."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """
        Raises:
            StartError: the settings do not go together, or a file cannot be used.
        """
        tls = settings.tls
        check_plaintext(settings)
        self._settings = settings
        self._clock = clock
        self.keeper = Keeper(probe=Probe())
        self._source = _source(tls, self.keeper)
        self._token = _token(settings.http)
        self._policy = load(tls.policy_file) if tls.policy_file is not None else _policy_without_file(tls)
        self.audit = Audit(clock.monotonic_nanos)
        grpc_settings = settings.grpc
        self._limiter = Limiter(
            grpc_settings.requests_per_second,
            grpc_settings.samples_per_second,
            monotonic_nanos=clock.monotonic_nanos,
        )
        self._connections: dict[str, _PortConnections] = {}
        self._pruned_ns = clock.monotonic_nanos()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False  # whether the file may have changed since it was read
        self._policy_problem: str | None = None  # why the file as it is now is not in use

    # --- life --------------------------------------------------------------------

    def start(self) -> None:
        """Load what files hold; begin to ask an agent.

        Raises:
            StartError: a file cannot be used.
        """
        tls = self._settings.tls
        if tls.mode == "disabled":
            _log.warning("%s=disabled: usage arrives in plaintext from anyone who can connect", _MODE)
        if tls.mode == "file":
            _warn_of_files(tls)
        else:
            for name, file in zip(_FILES, (tls.cert_file, tls.key_file, tls.ca_file), strict=True):
                if file is not None:
                    _log.warning("%s is set, but only %s=file uses it; this is %s", name, _MODE, tls.mode)
        self._warn_of_policy()
        if self._source is not None:
            self._source.start()

    async def wait(self, tell: Callable[[str, float], None]) -> None:
        """Return once there is an identity to serve with.

        ``tell`` hears what is waited for, and how many seconds that may go on.

        Raises:
            IdentityUnavailable: it did not come in time.
        """
        if self._source is None:
            return
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        self.keeper.listen(lambda: loop.call_soon_threadsafe(came.set))
        if not self.keeper.ready.is_set():
            await self._wait_for(came, tell)
        if self._settings.tls.policy_file is None:
            _log.warning(
                "%s is not set: everything but health checks is denied. Begin with this file:\n%s",
                _POLICY,
                minimal_policy(self._neighbour()),
            )

    def _neighbour(self) -> str | None:
        """A likely identity of who sends usage here."""
        name = self.keeper.status().name or ""
        return "/".join([*name.split("/")[:3], "metald", "host-1"]) if name.startswith("spiffe://") else None

    async def _wait_for(self, came: asyncio.Event, tell: Callable[[str, float], None]) -> None:
        wait_ns = self._settings.tls.spiffe_wait_ns
        deadline = asyncio.get_running_loop().time() + wait_ns / NANOS
        while True:
            left = deadline - asyncio.get_running_loop().time()
            problem = self.keeper.status().problem or f"waiting for {self._settings.tls.spiffe_socket}"
            if left <= 0:
                raise IdentityUnavailable(
                    f"no identity within {format_duration(wait_ns)}: {problem}",
                    "Is the SPIFFE agent running, and is there a registration entry for billaged?"
                    f" UNKEY_BILLAGED_SPIFFE_SOCKET says where its socket is. Without SPIFFE, {_MODE}=file takes"
                    " certificates from files ('billaged certs dev' makes some to try it with).",
                )
            _log.info("waiting for an identity", extra={"problem": problem, "seconds_left": round(left)})
            tell(f"waiting for an identity: {problem}", left)
            try:
                async with asyncio.timeout(min(left, _WAITING_SAID_SECONDS)):
                    await came.wait()
                return
            except TimeoutError:
                continue

    async def watch(self, usable_changed: Callable[[], Any], look: Callable[[], None]) -> None:
        """The chore: warn of the end of certificates, forget closed connections, for ever.

        ``look`` is called every second: what was allowed may not be any more.
        """
        usable = True
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.keeper.warn_of_expiry()
            look()
            if (self.unusable() is None) != usable:
                usable = not usable
                await usable_changed()
            now_ns = self._clock.monotonic_nanos()
            if now_ns - self._pruned_ns > _PRUNE_SECONDS * NANOS:
                self._pruned_ns = now_ns
                for connections in self._connections.values():
                    connections.counted.prune()

    def reload(self) -> None:
        """Read policy and token again, and look for new certificates; what is broken stays as it was."""
        if self._source is not None:
            self._source.look()
        try:
            self._token = _token(self._settings.http)
        except StartError as error:
            _log.error("the bearer token stays as it was: %s", error)
        if (policy_file := self._settings.tls.policy_file) is None:
            _log.info("no policy to read again: %s is not set", _POLICY)
        elif self._reloading is None or self._reloading.done():
            # A large one takes a while to read: not for the loop.
            self._reloading = asyncio.create_task(self._reload_policy(policy_file))
        else:
            # It may have changed since that began.
            self._reload_again = True

    async def _reload_policy(self, policy_file: Path) -> None:
        self._reload_again = True
        while self._reload_again:
            self._reload_again = False
            await self._read_policy(policy_file)

    async def _read_policy(self, policy_file: Path) -> None:
        try:
            policy = await asyncio.to_thread(load, policy_file)
        except PolicyError as error:
            self._policy_problem = str(error)
            _log.error("the policy stays as it was: %s", error)
            return
        self._policy, self._policy_problem = policy, None
        self._warn_of_policy()
        _log.info("policy in use", extra={"file": str(policy_file), "rules": len(policy.rules)})

    def _policy_name(self) -> str:
        tls = self._settings.tls
        if tls.policy_file is not None:
            return str(tls.policy_file)
        return "none: everything is allowed" if tls.mode == "disabled" else "none: everything is denied"

    def _warn_of_policy(self) -> None:
        for warning in self._policy.warnings:
            _log.warning("%s: %s", _POLICY, warning)

    def stop(self) -> None:
        """End the source's threads; what is in use stays in use."""
        if self._source is not None:
            self._source.stop()

    # --- for the doors -----------------------------------------------------------

    @property
    def https(self) -> bool:
        """Whether HTTP uses TLS: beyond loopback, unless there is none at all."""
        return self._settings.tls.mode != "disabled" and not is_loopback(self._settings.http.address)

    def gate(self, door: str, owners: Owners, running_max: int, *, tls: bool) -> Gate:
        """The gate of one door; once it listens, ``listens`` says where. ``tls``: it has a certificate."""
        per_key_max = self._settings.grpc.max_connections_per_identity
        connections = self._connections[door] = _PortConnections(per_key_max, self._clock)
        unusable = self.unusable if tls else lambda: None
        counted = connections.counted
        return Gate(lambda: self._policy, self._limiter, counted, self.audit, owners, unusable, running_max)

    def listens(self, door: str, port: int) -> None:
        """The door's port, whose connections count."""
        self._connections[door].port(port)

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """None is plaintext. To be asked once there is an identity."""
        return None if self._source is None else server_credentials(self.keeper)

    def grpc_caller(self) -> Caller:
        if self._source is None:
            return plaintext_caller
        material = self.keeper.material
        if material is None or material.trust is None:
            return anonymous_caller
        return CertificateCaller(PeerVerifier(self.keeper), self._clock.wall_nanos)

    def http_caller(self) -> HttpCaller:
        verifier = PeerVerifier(self.keeper) if self.https else None
        return HttpCaller(lambda: self._token, verifier, self._clock.wall_nanos)

    def unusable(self) -> str | None:
        """Why nothing may be served at this moment; None while it may."""
        return "billaged's own certificate has expired" if self.keeper.expired() else None

    def status(self) -> dict[str, Any]:
        """For /stats."""
        kept = self.keeper.status()
        expires = kept.expires_in_seconds
        return {
            "tls": self._settings.tls.mode,
            "identity": kept.name,
            "certificate_expires_in_seconds": None if expires is None else round(expires, 3),
            "identity_changes": kept.changes,
            "identity_refusals": kept.refusals,
            "identity_problem": kept.problem,
            "policy": self._policy_name(),
            "policy_rules": len(self._policy.rules),
            "policy_problem": self._policy_problem,
            "denied": {outcome: self.audit.denied[outcome] for outcome in ("unauthenticated", "forbidden")},
            "throttled": self._limiter.throttled,
            "connections_refused": sum(connections.counted.refused for connections in self._connections.values()),
        }


class _PortConnections:
    """The connections of a door, whose port is not known before it listens."""

    def __init__(self, per_key_max: int, clock: Clock) -> None:
        self._still_open: Callable[[Collection[str]], set[str]] | None = None
        self.counted = Connections(per_key_max, still_open=self._look, monotonic_nanos=clock.monotonic_nanos)

    def port(self, port: int) -> None:
        self._still_open = open_peers(port)

    def _look(self, peers: Collection[str]) -> set[str]:
        return set(peers) if self._still_open is None else self._still_open(peers)


def check_plaintext(settings: Settings) -> None:
    """Plaintext stays on this machine, unless somebody has said that it need not.

    Raises:
        SettingError: it would leave; the message has the lines that decide it.
    """
    if settings.tls.mode != "disabled" or settings.tls.allow_plaintext:
        return
    for variable, address in ((GRPC_ADDRESS, settings.grpc.address), (HTTP_ADDRESS, settings.http.address)):
        if not is_loopback(address):
            raise SettingError(
                f"{_MODE}=disabled, and {variable} is {address}: anybody who can reach it could write and read bills.\n"
                f"Stay on this machine with\n    {variable}=127.0.0.1\n"
                "or, where everybody on the network may do that, say\n    UNKEY_BILLAGED_ALLOW_PLAINTEXT=true"
            )


def _source(tls: Tls, keeper: Keeper) -> Source | None:
    if tls.mode == "disabled":
        return None
    if tls.mode == "file":
        files = PemFiles(tls.cert_file, tls.key_file, tls.ca_file, _FILES)
        return FileSource(files, keeper, tls.reload_interval_ns / NANOS)
    from billaged.identity.spiffe import SpiffeSource  # brings a JWT library and more along

    return SpiffeSource(tls.spiffe_socket, keeper)


def _token(http: Http) -> str | None:
    return read_token(None if http.token is None else http.token.get_secret_value(), http.token_file)


def _policy_without_file(tls: Tls) -> Policy:
    return Policy.everything() if tls.mode == "disabled" else Policy.nothing()


def _warn_of_files(tls: Tls) -> None:
    if tls.ca_file is None:
        _log.warning("%s is not set: callers show no certificate, all of them are @anonymous to the policy", _FILES[2])
    try:
        open_to_all = tls.key_file is not None and tls.key_file.stat().st_mode & 0o007
    except OSError:
        return  # reading it will say why
    if open_to_all:
        _log.warning("%s: every user of this machine can reach the key; make its mode 0600", tls.key_file)
