"""docs/reliability.md: every row and every paragraph names its tests, which exist, and its numbers are true."""

import inspect
import re
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext

from mmcon.loading import loader, unreadable_samples
from mmcon.media import frame_sequence, image
from mmcon.operations.fault_injection import FAULTS, LONGEST_WAIT_SECONDS
from mmcon.operations.folder_faults import LONGEST_END_SECONDS
from mmcon.sources import streaming
from mmcon.training import logging, signals

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


def default(function, name):
    return inspect.signature(function).parameters[name].default


#: What the page says, the number in it, and the number in the code.
NUMBERS = [
    ("a copy of the signal within five seconds", 5, signals.COPY_SECONDS),
    ("exit status 75", 75, signals.STOPPED),
    ("the run ends within ten seconds", 10, LONGEST_END_SECONDS),
    ("the others end within a minute", 60, LONGEST_WAIT_SECONDS),
    ("if the step does not end, they end within a minute", True, signals.ORPHAN_SECONDS + signals.LOOK_SECONDS < 60),
    ("holds it up for a minute", 60, default(loader.ViewLoader, "decode_seconds")),
    ("makes no progress for 60 seconds", 60, default(loader.ViewLoader, "decode_seconds")),
    ("after three losses in a row", 3, loader.LOST_WORKERS),
    ("above one half a message", 0.5, logging.SLOW_DATA_FRACTION),
    ("says so every minute", 60, streaming.SILENT_SECONDS),
    ("the first 64 samples", 64, streaming._COMPARED),
    ("five are always accepted", 5, unreadable_samples.FEW_FAILURES),
    ("at most 105 million pixels", 105, round(image.MAX_PIXELS / 1e6)),
    ("Above 16 million pixels, a file has a byte for 4,096", (16, 4_096),
     (image._SMALL_PIXELS // 1_000_000, image.PIXELS_PER_BYTE)),
    ("at most 4.3 billion pixels", 4.3, round(frame_sequence.MAX_ANIMATION_PIXELS / 1e9, 1)),
    ("above 33 million a byte for 65,536", (33, 65_536),
     (frame_sequence._SMALL_PIXELS // 1_000_000, frame_sequence._PIXELS_PER_BYTE)),
    ("kills its ranks 30 seconds after it", 30, default(PContext.close, "timeout")),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "told", "found"), NUMBERS)
def test_the_numbers_of_the_page_are_those_of_the_code(sentence, told, found):
    assert sentence in " ".join(PAGE.split())
    assert told == found
