"""The faults that `mmcon doctor --chaos` makes."""

import pytest

from mmcon.operations.fault_injection import FAULTS, run_program
from mmcon.operations.forked_runs import RecoveryFailed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_comes_through(name, tmp_path):
    assert FAULTS[name](tmp_path)


def test_a_program_that_does_not_end_is_one_failure(tmp_path):
    with pytest.raises(RecoveryFailed, match=r"no end within 0\.01 s"):
        run_program(tmp_path, "--fault", "signals", timeout=0.01)
