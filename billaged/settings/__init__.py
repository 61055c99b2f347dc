"""What an operator can set: one frozen section per concern, read from the environment once.

Law of this room: nothing else reads ``UNKEY_BILLAGED_*``, and nothing here reads
``os.environ`` by itself: the command passes it in. Values are checked here, the
world is not: whether a file exists or a port is free shows at the start.
"""

from billaged.settings.sections import (
    Aggregation,
    Grpc,
    Http,
    Intake,
    Log,
    Metrics,
    Otel,
    Score,
    Storage,
    Summaries,
    Tls,
)
from billaged.settings.settings import SettingLine, Settings

__all__ = [
    "Aggregation",
    "Grpc",
    "Http",
    "Intake",
    "Log",
    "Metrics",
    "Otel",
    "Score",
    "SettingLine",
    "Settings",
    "Storage",
    "Summaries",
    "Tls",
]
