"""The connection to a collector, which is no more trusted than the network: its answers are short, or no answers."""

from __future__ import annotations

import time
from typing import Any, Final

import requests
import urllib3

# An answer names what was not taken, if anything; nobody reads it here.
_ANSWER_BYTES_MAX: Final = 256 * 1024
_CHUNK_BYTES: Final = 64 * 1024


class CollectorSession(requests.Session):
    """Reads each answer to its end, so that the connection is used again; gives up one that does not end."""

    def request(self, method: str, url: str | bytes, *arguments: Any, **named: Any) -> requests.Response:
        """As the library's; ``timeout`` is for the whole answer, seconds.

        Raises:
            requests.RequestException: the collector is not there, or answers too much, too slowly, or from elsewhere.
        """
        until = time.monotonic() + float(named["timeout"])
        response = super().request(method, url, *arguments, **{**named, "stream": True})
        try:
            if 300 <= response.status_code < 400:
                # Its library takes that for a yes.
                raise requests.RequestException(f"{response.status_code} {response.reason}: it is at another address")
            _read_to_end(response, until)
        except urllib3.exceptions.HTTPError as error:
            response.close()
            raise requests.ConnectionError(f"its answer broke off: {error}") from error
        except BaseException:
            response.close()
            raise
        return response


def _read_to_end(response: requests.Response, until: float) -> None:
    read_bytes = 0
    # As it comes: unpacked, a small one could be large.
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
        read_bytes += len(chunk)
        if read_bytes > _ANSWER_BYTES_MAX:
            raise requests.RequestException(f"its answer is longer than {_ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > until:
            raise requests.RequestException("its answer did not end in time")
    # Nothing is left; only this closes what it was read from.
    response.raw.drain_conn()
    response.raw.release_conn()
