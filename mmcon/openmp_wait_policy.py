"""How long threads of torch spin at a barrier before they sleep, chosen before torch loads.

libgomp, which torch's wheels for Linux bring, spins for about a millisecond by default: best on a machine of one's own.
Beside other programs a spinning thread keeps the core that the thread for which it waits would need: a training step on
two cores with twenty other programs took 6.7 s, and 1.1 s with a spin of 1,000 rounds (see
benchmarks/openmp_wait_policy.py).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

_log = logging.getLogger(__name__)

_GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPINS = "1000"


def set_wait_policy() -> None:
    """Set the policy of this process and those that it starts, unless torch is loaded: it reads the policy then."""
    if "torch" in sys.modules or not hasattr(os, "getloadavg"):
        return
    try:
        load = os.getloadavg()[0]
    except OSError as error:  # a sandbox without /proc
        _log.info("the load of the machine is not known (%s): threads wait as torch has them wait", error)
        return
    policy = wait_policy(load, os.cpu_count() or 1, os.environ)
    if policy:
        _log.info("other programs use the cores: threads that wait sleep early (%s)", policy)
        os.environ.update(policy)


def wait_policy(load: float, cores: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set: a short spin where other programs use half of the cores or more.

    Args:
        load: the mean number of programs that ran or waited for a core in the last minute.
        cores: of the machine, to which the load belongs also in a container.
        environment: a policy in it stays as it is.
    """
    if load < cores / 2 or any(name in environment for name in _GIVEN):
        return {}
    return {"GOMP_SPINCOUNT": SPINS}
