"""Structured logs on stdout: JSON lines for machines, readable ones on a terminal.

Callers choose parts of what is logged (ids, above all). One event stays one line of JSON, and on a
terminal nothing that a caller sent starts a line, moves the cursor or changes a colour.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from billaged.telemetry.audit_file import AuditFile
from billaged.telemetry.log_stream import LogStream
from billaged.telemetry.repeats import Repeats
from billaged.telemetry.traces import current

AUDIT: Final = "billaged.audit"
_NOISY: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic", "asyncio", "grpc", "urllib3", "opentelemetry")
# What is in them anybody who can connect may cause.
_OF_STRANGERS: Final = ("uvicorn.error", "billaged.web")
# What a line of a longer event begins with on a terminal: a line that begins otherwise is an event of its own.
_BESIDE: Final = "    | "
_CONTINUED: Final = f"\n{_BESIDE}"


def configure(
    level: str,
    style: str,
    stream: TextIO | None = None,
    *,
    levels: Mapping[str, str] | None = None,
    audit_file: Path | None = None,
) -> None:
    """Send the log of the whole process to ``stream`` (stdout).

    ``style``: ``json``, ``text``, or ``auto`` for text on a terminal and JSON elsewhere. ``levels`` of single
    loggers come before ``level``. The audit log goes into ``audit_file`` instead, where there is one.

    Raises:
        StorageError: the audit file cannot be written.
    """
    stream = stream or sys.stdout
    if style == "auto":
        style = "text" if stream.isatty() else "json"
    handler = _handler(stream)
    handler.setFormatter(_formatter(style, colors=stream.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name in _OF_STRANGERS:
        logging.getLogger(name).filters[:] = [Repeats()]
    for name, its_level in (levels or {}).items():
        logging.getLogger(name).setLevel(its_level.upper())
    audit = logging.getLogger(AUDIT)
    for old in audit.handlers[:]:
        audit.removeHandler(old)
        old.close()
    audit.propagate = audit_file is None
    if audit_file is not None:
        audit.addHandler(AuditFile(audit_file, _formatter("json"), instead=handler))


def _handler(stream: TextIO) -> logging.Handler:
    try:
        descriptor = stream.fileno()
    except OSError:
        # One in memory.
        return logging.StreamHandler(stream)
    return LogStream(descriptor, stream.encoding)


def reopen() -> None:
    """Open the audit file again, whose old one has been moved away."""
    for handler in logging.getLogger(AUDIT).handlers:
        if isinstance(handler, AuditFile):
            handler.reopen()


def _formatter(style: str, *, colors: bool = False) -> logging.Formatter:
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_trace,
    ]
    finish: list[structlog.typing.Processor]
    if style == "json":
        finish = [
            # Without the frames' locals: they hold what callers sent.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=colors,
            timestamp_key="time",
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )
        # The traceback becomes text first, for it quotes what was sent, too.
        finish = [structlog.processors.format_exc_info, _make_safe, console]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
    )


def _add_trace(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The ids of the request in which this is logged, as OpenTelemetry writes them."""
    trace = current.get()
    if trace is not None:
        event["trace_id"], event["span_id"] = f"{trace.trace_id:032x}", f"{trace.span_id:016x}"
    return event


def _make_safe(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Texts as a terminal may have them. Only the message and a traceback may have lines."""
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        if name == "exception":
            event[name] = _BESIDE + _CONTINUED.join(map(_visible, value.split("\n")))
        elif name == "event":
            event[name] = _CONTINUED.join(map(_visible, value.split("\n")))
        else:
            event[name] = _visible(value)
    return event


def _visible(text: str) -> str:
    """Control characters, and what else has no shape of its own, as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
