"""The faults that `mmcon doctor --chaos` makes, and the table that lists them."""

import re
from pathlib import Path

import pytest

from mmcon.operations.fault_injection import FAULTS

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "reliability.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_comes_through(name, tmp_path):
    assert FAULTS[name](tmp_path)


def test_every_test_that_the_table_names_is_there():
    named = re.findall(r"`(test_\w+\.py)?::(test_\w+)(?:\[([\w-]+)\])?`", TABLE.read_text())
    assert len(named) > 20
    file = ""
    for given, test, case in named:
        file = given or file
        [path] = TESTS.rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"
        assert not case or case in FAULTS, f"{file}::{test}[{case}]"
