"""Daemons of which it is not expected that they serve at once: that end by themselves, or wait."""

from __future__ import annotations

from collections.abc import Callable

from daemon_process import DaemonFailed, DaemonProcess, LogLine

from faults.judge import no_traceback


class DoomedDaemon(DaemonProcess):
    """``serves`` is false where it ended before."""

    serves = True

    def wait_for(self, wanted: Callable[[LogLine], bool], what: str) -> LogLine:
        try:
            return super().wait_for(wanted, what)
        except DaemonFailed:
            if what != "serving" or not self.streams_closed():
                raise
            self.serves = False
            return {"grpc": "", "http": ""}

    def says(self) -> str:
        """What it told people when it ended, once it has: error lines only.

        Raises:
            AssertionError: there was anything else.
        """
        self.wait()
        no_traceback(self.other_output.splitlines())
        return self.other_output


class WaitingDaemon(DaemonProcess):
    """Waits for room on its disk first; ``until_serving`` before it is talked to."""

    def wait_for(self, wanted: Callable[[LogLine], bool], what: str) -> LogLine:
        return {"grpc": "", "http": ""} if what == "serving" else super().wait_for(wanted, what)

    def waits_for_room(self) -> LogLine:
        """The log line that says so."""
        return self.wait_for(lambda line: "waiting to start" in line["message"], "that it waits")

    def until_serving(self) -> None:
        serving = self.wait_for(lambda line: line["message"] == "serving", "serving at last")
        self.grpc_address, self.http_url = str(serving["grpc"]), f"http://{serving['http']}"
