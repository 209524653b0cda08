"""How long threads spin before they sleep."""

import os
import sys

import pytest

from mmcon.openmp_wait_policy import set_wait_policy


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is removed after it
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_threads_spin_briefly():
    set_wait_policy()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "5")])
def test_a_given_policy_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    set_wait_policy()
    assert {key: os.environ.get(key) for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == {
        "OMP_WAIT_POLICY": None,
        "GOMP_SPINCOUNT": None,
        name: value,
    }


def test_nothing_is_set_after_torch_has_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    set_wait_policy()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_program_that_imports_the_package_before_torch_has_the_policy(python):
    unset = "[os.environ.pop(name, None) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')]"
    code = f"import os; {unset}; import mmcon; print(os.environ['GOMP_SPINCOUNT'])"
    assert python(code).stdout == "1000\n"
