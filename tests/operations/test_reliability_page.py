"""docs/reliability.md: every row and every paragraph names its tests, and the named tests exist."""

import re
from pathlib import Path

import pytest

from mmcon.operations.fault_injection import FAULTS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
NAMED = r"`(test_\w+\.py)?(?:::(test_\w+)(?:\[([\w -]+)\])?)?`"


def blocks():
    """The table rows, list items and paragraphs, without headings, code and heads of tables."""
    text = re.sub(r"(?m)^(    .*|#.*)$", "", PAGE)
    text = re.sub(r"(?m)^\|.*\n\|[-|]+$", "", text)
    text = re.sub(r"(?m)^(- |\|)", r"\n\1", text)
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


def named(block):
    return [match for match in re.findall(NAMED, block) if any(match)]


def test_every_row_and_paragraph_names_its_tests():
    """A command with its effect is one paragraph, a row of several faults is covered by the paragraph after it."""
    unnamed, found = [], blocks()
    for block, after in zip(found, [*found[1:], ""], strict=True):
        covered = named(block) or "not tested" in block or block.count("|") > 4
        if not covered and not (block.endswith(":") and named(after)):
            unnamed.append(block)
    assert unnamed == []


@pytest.mark.parametrize(("file", "test", "case"), sorted(set(named(PAGE))))
def test_every_test_that_the_page_names_is_there(file, test, case):
    """A name without a file belongs to some file of tests."""
    paths = list(TESTS.rglob(file or "test_*.py"))
    assert paths, file
    assert not test or any(f"def {test}(" in path.read_text() for path in paths), test
    if case and test == "test_a_run_comes_through":
        assert case in FAULTS


def test_every_fault_of_the_suite_is_on_the_page():
    assert {case for _, test, case in named(PAGE) if test == "test_a_run_comes_through" and case} == set(FAULTS)
