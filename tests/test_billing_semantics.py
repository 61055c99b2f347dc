"""What docs/billing-semantics.md says is billed is what both billers bill: each of its worked examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from auditor.bill import Bill
from auditor.biller import bill
from auditor.chooser import SeededChooser
from test_ledger_bill import ledger_of
from worked_examples import Example, billed, examples

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "billing-semantics.md").read_text()
EXAMPLES = list(examples(PAGE))


def test_each_rule_has_an_example() -> None:
    rules = PAGE.split("## In plain words")[1].split("\n## ")[0].split("\n### ")[1:]
    assert len(rules) >= 12
    for rule in rules:
        assert "```example\n" in rule, rule.splitlines()[0]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.heading.split(".")[0] for example in EXAMPLES])
def test_an_example_is_billed_as_it_says(example: Example) -> None:
    audited = bill(example.events)
    audited.check()
    with_buckets = any(line.startswith("bucket") for line in example.expected)
    assert billed(audited, with_buckets=with_buckets) == example.expected
    # And by the daemon's own fold, through its ledger.
    assert audited.differences(ledger_of(example.events, SeededChooser(1))) == []


def test_a_wrong_example_is_found() -> None:
    example = EXAMPLES[0]
    lines = billed(bill(example.events[:-1]), with_buckets=True)
    assert lines != example.expected
    assert billed(Bill({**bill(example.events).tables, "sessions": []}), with_buckets=False) != example.expected
