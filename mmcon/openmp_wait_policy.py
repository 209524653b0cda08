"""How long threads of torch spin at a barrier before they sleep, chosen before torch loads.

libgomp, which torch's wheels for Linux bring, spins for about a millisecond by default. Beside other programs a
spinning thread keeps the core that the thread for which it waits would need. With a spin of 1,000 rounds a training
step takes half the time beside one busy program a core, and no longer on a quiet machine
(benchmarks/openmp_wait_policy.py).
"""

from __future__ import annotations

import os
import sys

_GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPINS = "1000"


def set_wait_policy() -> None:
    """Set the policy of this process and those that it starts, unless one is given, or torch is loaded and has read it.

    It does not depend on the load of the machine, which may change while a run lasts.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _GIVEN):
        os.environ["GOMP_SPINCOUNT"] = SPINS
