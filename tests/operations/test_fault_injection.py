"""The faults that `mmcon doctor --chaos` makes."""

import pytest

from mmcon.operations.fault_injection import FAULTS


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_comes_through(name, tmp_path):
    assert FAULTS[name](tmp_path)
