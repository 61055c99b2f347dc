"""Material from a SPIFFE agent's Workload API: SVID and bundles, streamed to us as they change.

The library's stream ends for good on one bad update, and its own reconnecting waits for up to
minutes; so a thread watches each stream and opens another, with a channel of its own, at our pace.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from spiffe import WorkloadApiClient
from spiffe.errors import PySpiffeError

from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial, Material, as_pem
from billaged.identity.peer import spiffe_identity
from billaged.identity.trust import Trust
from billaged.identity.verification import Unverified, verify

_log: Final = logging.getLogger("billaged.identity")

# What the library says of a stream that failed is the bare status.
_SAID: Final = {
    "StatusCode.PERMISSION_DENIED": "it has no entry for this process (PERMISSION_DENIED).",
    "StatusCode.UNAVAILABLE": "it does not answer (UNAVAILABLE).",
}
_RETRY_SECONDS_MIN: Final = 0.2
_RETRY_SECONDS_MAX: Final = 5.0
# An agent that took the connection and says nothing for this long is asked anew.
_FIRST_UPDATE_SECONDS: Final = 20.0
# And so is one whose renewal is overdue.
_OVERDUE_SECONDS: Final = 30.0
_ALONE_SECONDS: Final = 5.0
_OWN_AND_ANOTHER: Final = 2


class SpiffeSource:
    """Offers each update to a keeper; a thread of its own sees to it that updates come."""

    def __init__(self, socket: Path, keeper: Keeper) -> None:
        self._socket = socket
        self._keeper = keeper
        self._lock = threading.Lock()  # guards the two below: a stop reaches the stream of the moment
        self._ending = False
        self._stream = _Stream(keeper)
        self._pause = threading.Event()  # set by a stop, which cuts the pause between two streams short
        self._thread = threading.Thread(target=self._supervise, name="billaged-identity", daemon=True)

    def start(self) -> None:
        """Returns at once; ``Keeper.ready`` tells when there is material."""
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._ending = True
            self._stream.end(None)
        self._pause.set()
        self._thread.join()

    def look(self) -> None:
        """Nothing to do: the agent tells when there is something new (``identity.keeper.Source``)."""

    def _supervise(self) -> None:
        wait_seconds = _RETRY_SECONDS_MIN
        while (stream := self._next()) is not None:
            try:
                problem = self._follow(stream)
            except Exception as error:  # noqa: BLE001 - whatever it was, nobody else will ask the agent again
                problem = f"{error!r}."
            if problem is not None:
                self._keeper.refuse(f"SPIFFE agent at {self._socket}: {problem}")
            if stream.brought_good:
                wait_seconds = _RETRY_SECONDS_MIN
            self._pause.wait(wait_seconds)
            wait_seconds = min(2 * wait_seconds, _RETRY_SECONDS_MAX)

    def _next(self) -> _Stream | None:
        with self._lock:
            if self._ending:
                return None
            self._stream = _Stream(self._keeper)
            return self._stream

    def _follow(self, stream: _Stream) -> str | None:
        """One stream from its connection to its end, and what that was; None where a stop ended it."""
        if not self._socket.exists():
            return "there is no such socket."
        try:
            client = WorkloadApiClient(f"unix:{self._socket.absolute()}")
        except PySpiffeError as error:
            return f"{error}."
        handle = client.stream_x509_contexts(stream.take, stream.fail, retry_connect=False)
        try:
            if not stream.news.wait(_FIRST_UPDATE_SECONDS):
                return f"no answer within {_FIRST_UPDATE_SECONDS:g} s."
            while not stream.ended.wait(_OVERDUE_SECONDS):
                if self._keeper.overdue():
                    return "the renewal of the identity is overdue."
            if stream.problem is not None:
                self._renew_alone(client)
            return stream.problem
        finally:
            handle.cancel()
            client.close()

    def _renew_alone(self, client: WorkloadApiClient) -> None:
        """Take the own certificate from an update that cannot be read whole, and go on with the bundles as they were.

        The library refuses an update for one bad bundle of a federated domain; ours must not
        end because somebody else's is broken.
        """
        kept = self._keeper.material
        if kept is None or kept.trust is None:
            return
        try:
            svid = client.fetch_x509_svid(timeout=_ALONE_SECONDS)
            material = _verified(svid, kept.trust, self._keeper.now())
            if self._keeper.offer(material):
                _log.warning("an update of the SPIFFE agent cannot be read whole: the bundles stay as they were")
        except (PySpiffeError, BadMaterial) as error:
            _log.debug("the identity cannot be renewed alone: %s", error)


class _Stream:
    """What one stream brought. Its callbacks come on the library's thread."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.news = threading.Event()  # the first update, or the end
        self.ended = threading.Event()
        self.problem: str | None = None  # why it ended
        self.brought_good = False

    def take(self, context: Any) -> None:
        try:
            self._offer(_material(context, self._keeper.now()))
            self.brought_good = True
        except BadMaterial as error:
            self._keeper.refuse(error)
        self.news.set()

    def _offer(self, material: Material) -> None:
        """All of it; else without the federated domains whose CAs are what is wrong with it."""
        try:
            self._keeper.offer(material)
        except BadMaterial as error:
            trust = material.trust
            if trust is None or len(trust.bundles) < _OWN_AND_ANOTHER:
                raise
            _, own = spiffe_identity(material.chain[0])
            good = {own: trust.roots_for(own)}
            left_out = []
            for domain, roots in trust.bundles.items():
                try:
                    self._keeper.probe(replace(material, trust=Trust({own: good[own], domain: roots})))
                    good[domain] = roots
                except BadMaterial:
                    left_out.append(domain)
            if not left_out or own in left_out:
                raise
            self._keeper.offer(replace(material, trust=Trust(good)))
            self._keeper.refuse(f"{error} Left out: the bundles of {', '.join(sorted(left_out))}.")

    def fail(self, error: Exception) -> None:
        self.end(next((words for code, words in _SAID.items() if code in str(error)), f"{error}."))

    def end(self, problem: str | None) -> None:
        """Wake who follows the stream."""
        self.problem = problem
        self.ended.set()
        self.news.set()


def _material(context: Any, now: datetime) -> Material:
    """The library's snapshot as material, verified against its own trust domain.

    Raises:
        BadMaterial: it does not hold together.
    """
    bundles = context.x509_bundle_set.bundles
    trust = Trust({bundle.trust_domain.name: tuple(bundle.x509_authorities) for bundle in bundles})
    return _verified(context.default_svid, trust, now)


def _verified(svid: Any, trust: Trust, now: datetime) -> Material:
    chain = tuple(svid.cert_chain)
    chain_pem, key_pem = as_pem(chain, svid.private_key)
    material = Material(chain, chain_pem, key_pem, trust, str(svid.spiffe_id))
    material.check(now)
    try:
        _, domain = spiffe_identity(chain[0])
        verify(chain[0], chain[1:], trust.roots_for(domain), now, as_client=False)
    except (Unverified, ValueError) as error:
        raise BadMaterial(f"{svid.spiffe_id}: the agent's own bundle does not vouch for it: {error}.") from error
    return material
