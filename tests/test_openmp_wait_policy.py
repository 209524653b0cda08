"""How long threads spin before they sleep."""

import os
import sys

import pytest

from mmcon import openmp_wait_policy
from mmcon.openmp_wait_policy import set_wait_policy


@pytest.mark.parametrize(
    ("load", "environment", "expected"),
    [
        (0.3, {}, {}),
        (3.9, {}, {}),
        (4.0, {}, {"GOMP_SPINCOUNT": "1000"}),
        (19.0, {"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        (19.0, {"GOMP_SPINCOUNT": "5"}, {}),
    ],
)
def test_threads_spin_briefly_on_a_busy_machine_unless_a_policy_is_given(load, environment, expected):
    assert openmp_wait_policy.wait_policy(load, 8, environment) == expected


def test_the_policy_is_set_before_torch_loads_and_not_after(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (1e4, 0.0, 0.0))
    monkeypatch.setitem(sys.modules, "torch", sys)
    set_wait_policy()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that what is set is removed after the test
    monkeypatch.delenv("GOMP_SPINCOUNT")
    set_wait_policy()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_without_a_known_load_nothing_is_set(monkeypatch, caplog):
    def unknown():
        raise OSError("Load averages are unobtainable")

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getloadavg", unknown)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with caplog.at_level("INFO"):
        set_wait_policy()
    assert "Load averages are unobtainable" in caplog.text
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_program_that_imports_the_package_before_torch_has_the_policy(python):
    """So has a recipe that a launcher starts."""
    code = "import os; os.getloadavg = lambda: (1e4, 0, 0); import mmcon; print(os.environ['GOMP_SPINCOUNT'])"
    unset = dict.fromkeys(("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"), "")
    code = "import os; [os.environ.pop(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')]; " + code
    assert python(code, env=unset).stdout == "1000\n"
