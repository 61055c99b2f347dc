"""The dashboards and alert rules, as far as tests look into them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).resolve().parent.parent / "dashboards"


class Board:
    """A dashboard's file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.json: dict[str, Any] = json.loads(file.read_text())
        # Rows and what lies in closed ones included.
        self.all_panels: list[dict[str, Any]] = [
            each for panel in self.json["panels"] for each in (panel, *panel.get("panels", ()))
        ]
        self.panels = [panel for panel in self.all_panels if panel["type"] != "row"]
        self.variables = {variable["name"]: variable for variable in self.json["templating"]["list"]}

    def queries(self) -> Iterator[tuple[str, str]]:
        """What each panel and annotation asks Prometheus for, by a name to tell it by."""
        for panel in self.panels:
            for target in panel["targets"]:
                yield f"{self.file.stem}: {panel['title']}, {target['refId']}", target["expr"]
        for annotation in self.json["annotations"]["list"]:
            yield f"{self.file.stem}: {annotation['name']}", annotation["expr"]

    @property
    def expressions(self) -> list[str]:
        return [expression for _, expression in self.queries()]


class Alert(NamedTuple):
    """A rule of alerts.yml."""

    name: str
    expression: str
    severity: str
    summary: str
    description: str
    runbook: str


# The rules are written alike: no YAML reader is needed for what promtool reads as YAML.
_RULE: Final = re.compile(
    r"""
    ^\ {6}-\ alert:\ (\w+)\n
    (?:^\ {8}\#.*\n)*
    ^\ {8}expr:\ (.+)\n
    (?:^\ {8}for:\ \w+\n)?
    ^\ {8}labels:\ \{severity:\ (\w+)\}\n
    ^\ {8}annotations:\n
    ^\ {10}summary:\ "(.+)"\n
    ^\ {10}description:\ "(.+)"\n
    ^\ {10}runbook:\ (\S+)\n
    """,
    re.MULTILINE | re.VERBOSE,
)


def _alerts() -> list[Alert]:
    text = (FOLDER / "alerts.yml").read_text()
    alerts = [Alert(*parts) for parts in _RULE.findall(text)]
    if len(alerts) != text.count("alert:"):
        raise ValueError("alerts.yml: not every rule is written like the others")
    return alerts


BOARDS: Final = [Board(file) for file in sorted(FOLDER.glob("*.json"))]
ALERTS: Final = _alerts()
