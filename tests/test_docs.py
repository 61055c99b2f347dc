"""What the pages say exists, exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "bench" / "README.md"]

INVARIANT = re.compile(r"^(\d+)\. .+ `(tests/[\w/]+\.py)::(\w+)`$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
ROOM = re.compile(r"^\| `([\w/]+/)`", re.MULTILINE)


def test_each_numbered_invariant_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().split("## Invariants")[1]
    found = INVARIANT.findall(page)
    numbered = re.findall(r"^\d+\. .*$", page, re.MULTILINE)
    assert len(found) == len(numbered) >= 15
    assert [int(number) for number, _, _ in found] == list(range(1, len(found) + 1))
    for _, file, test in found:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_the_rooms_are_those_of_the_house() -> None:
    rooms = set(ROOM.findall((ROOT / "docs" / "architecture.md").read_text()))
    assert rooms == {f"{path.parent.name}/" for path in (ROOT / "billaged").glob("*/__init__.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
