"""View generators for any modality: the identity, and an adapter for plain functions and third-party transforms."""

from __future__ import annotations

import inspect
import random as python_random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mmcon.random import Keys
from mmcon.views.chain import collate
from mmcon.views.generator import Meta, Params, ViewGenerator


@final
class Identity(ViewGenerator):
    """The unchanged sample; nothing is drawn."""

    ragged: ClassVar[bool] = True

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Any, params: Params) -> Any:
        """Return the samples."""
        return batch


@final
class FunctionView(ViewGenerator):
    """An adapter that makes a plain function of one sample a view generator.

    Args:
        function: `f(x, generator)`, with all randomness from the torch.Generator; or a third-party `f(x)` that uses the
            global random states of torch, NumPy and Python, which are seeded before each call and restored after it.
            The function takes one decoded sample and returns a tensor; sizes may differ between samples.
        modality: the modality of the samples.
        name: by default the function's name.
    """

    ragged: ClassVar[bool] = True
    single_thread: ClassVar[bool] = True

    def __init__(self, function: Callable[..., Any], *, modality: str = "any", name: str = "") -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._modality = modality
        self._takes_generator = takes_generator(function)

    @property
    def modality(self) -> str:  # type: ignore[override]
        """The modality of the samples."""
        return self._modality

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw one seed per sample, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Call the function once per sample, with the sample's seed."""
        samples = batch if isinstance(batch, Tensor) else [s.decode() if hasattr(s, "decode") else s for s in batch]
        out = [self._call(sample, int(seed)) for sample, seed in zip(samples, params["seed"], strict=True)]
        equal = len({tuple(sample.shape) for sample in out}) == 1
        return collate(out) if isinstance(batch, Tensor) and equal else out

    def _call(self, sample: Any, seed: int) -> Any:
        if self._takes_generator:
            return self.function(sample, torch.Generator().manual_seed(seed))
        with seeded(seed):
            return self.function(sample)


def takes_generator(function: Callable[..., Any]) -> bool:
    """Whether a callable's second parameter is `generator`."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return len(parameters) >= 2 and parameters[1] == "generator"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of torch (CPU), NumPy and Python within the block, and restore them after it."""
    states = torch.get_rng_state(), np.random.get_state(), python_random.getstate()  # noqa: NPY002 (others use it)
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        python_random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        python_random.setstate(states[2])
