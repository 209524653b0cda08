"""A view generator as a callable of one sample, for a plain DataLoader and for torchvision's Compose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmcon.errors import InputError
from mmcon.random import keys

if TYPE_CHECKING:
    from mmcon.views.generator import ViewGenerator


@final
class SampleTransform:
    """A callable from one sample to one view, which `ViewGenerator.as_transform` returns.

    A sample has no id here, so its content is its identity. After `set_epoch`, a view is a function of (seed, epoch,
    content, view), whatever worker computes it; a second call with the same sample, as for two views, has another draw.
    Without it, the number of the call and the seed of the worker enter the key too, so that each epoch has other draws.

    Args:
        generator: its views depend on the sample alone, not on a batch or a memory.
        seed: of the run.
        view: the number of the view, for several transforms of one sample.

    Raises:
        InputError: the generator, or a child of it, has the scope "batch", "partner" or "stateful".
    """

    def __init__(self, generator: ViewGenerator, *, seed: int, view: int = 0) -> None:
        others = [f"{name} ({child.scope})" for name, child in generator.children() if child.scope not in _SCOPES]
        if others:
            raise InputError(
                f"{generator.name or type(generator).__name__}.as_transform",
                expected="generators whose views depend on their sample alone",
                got=", ".join(others),
                fix="use a ViewLoader, which has the batch",
            )
        self.generator, self.seed, self.view = generator, seed, view
        # In shared memory, so that `set_epoch` reaches workers that live for several epochs.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        self._calls = self._repeats = 0
        self._last_sample: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0 or more, of the following views, in this process and in the workers of a DataLoader."""
        if epoch < 0:
            raise InputError("set_epoch", expected="an epoch of 0 or more", got=str(epoch))
        self._epoch.fill_(epoch)

    def __call__(self, sample: Any) -> Any:
        """The view of a sample: a tensor, an array or a PIL image (channels last), or a handle."""
        x = _as_tensor(sample)
        identity = _content_id(x)
        self._repeats = self._repeats + 1 if identity == self._last_sample else 0
        self._last_sample = identity
        epoch, occurrence, worker = int(self._epoch), self._repeats, get_worker_info()
        if epoch < 0:
            epoch, occurrence = 0 if worker is None else worker.seed, self._calls
        self._calls += 1
        table = keys(seed=self.seed, epoch=epoch, sample=identity, occurrence=occurrence, view=self.view)
        return _only_row(self.generator(x[None] if isinstance(x, Tensor) else [x], table))

    def __repr__(self) -> str:
        return f"SampleTransform({self.generator!r}, seed={self.seed}, view={self.view})"


_SCOPES = ("sample", "clip")


def _as_tensor(sample: Any) -> Any:
    """An image of PIL or an array with channels last as a tensor `c h w`; other samples unchanged."""
    if hasattr(sample, "getbands"):  # a PIL image, without importing PIL
        if sample.mode.startswith("I;16"):  # the upper 8 bits, as in mmcon.media; Pillow's conversion would clip
            sample = (np.asarray(sample) >> 8).astype(np.uint8)
        else:
            sample = np.asarray(sample if sample.mode in ("L", "RGB") else sample.convert("RGB"))
        sample = sample if sample.ndim == 3 else sample[..., None]
    if isinstance(sample, np.ndarray):
        array = np.ascontiguousarray(np.moveaxis(sample, -1, 0) if sample.ndim == 3 else sample)
        return torch.from_numpy(array.copy() if not array.flags.writeable else array)
    return sample


def _content_id(sample: Any) -> int:
    """The first eight bytes of a hash of the content; of a handle, of its description."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(sample, Tensor):
        digest.update(f"{sample.dtype} {tuple(sample.shape)}".encode())
        digest.update(sample.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(sample).encode())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _only_row(views: Any) -> Any:
    if isinstance(views, Mapping):
        return {name: _only_row(branch) for name, branch in views.items()}
    return views[0]
