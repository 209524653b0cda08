"""What a view generator is, what it may know of a sample before it is decoded, and what its draws may depend on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys

Scope = Literal["sample", "clip", "batch", "partner", "stateful"]
SCOPES: tuple[Scope, ...] = ("sample", "clip", "batch", "partner", "stateful")

# What is known of each sample before it is decoded: named columns with leading axis b, such as height and width.
Meta = dict[str, Tensor]
# What was drawn: nested dicts of tensors with leading axis b.
Params = dict[str, Any]

# Facts that can be read off a stacked tensor, by modality: name -> axis.
SHAPE_META: dict[str, dict[str, int]] = {
    "image": {"channels": -3, "height": -2, "width": -1},
    "audio": {"length": -1},
    "video": {"frames": -4, "channels": -3, "height": -2, "width": -1},
}


class CopyInto(Protocol):
    """Check a stacked batch, for the generator named, and write it to a float32 tensor of the same shape."""

    def __call__(self, batch: Tensor, out: Tensor, where: str) -> None: ...  # noqa: D102


class ViewGenerator(ABC):
    """A random function of samples.

    A subclass implements `draw` and `apply`; one that changes sizes or lengths also implements `leaves`.

    Attributes:
        modality: the modality that it takes, or "any".
        scope: what its draws depend on: "sample" all fields of the key; "clip" one draw for all frames of a view;
            "batch" the seed and the global step; "partner" also other samples of the global batch; "stateful" a
            memory that lives in the training process.
        ragged: whether it takes samples of differing sizes, undecoded ones among them (then `apply` gets a sequence
            of samples, or a stacked tensor where sizes agree), rather than only a stacked batch.
        preserves_labels: whether what a sample shows is still true of its view; False of one that runs time backwards.
        copy_into: how a batch becomes the floats that `apply_` works on; None where a generator cannot work in place. A
            chain of parts that all can makes no new tensor for each, which would cost more time than most parts do.
    """

    modality: ClassVar[str] = "any"
    scope: ClassVar[Scope] = "sample"
    ragged: ClassVar[bool] = False
    preserves_labels: ClassVar[bool] = True
    copy_into: ClassVar[CopyInto | None] = None
    #: The name under which the registry made it; the class's name otherwise.
    name: str = ""

    @abstractmethod
    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Turn `b` keys, and what is known of the samples, into parameters with leading axis `b`."""

    @abstractmethod
    def apply(self, batch: Any, params: Params) -> Any:
        """Make the views: a function of the samples and the parameters alone.

        Parameters are on the CPU, as they were drawn, wherever the samples are.
        """

    def apply_(self, batch: Tensor, params: Params) -> None:
        """As `apply`, to the same bits, but written over the batch: for generators that have `copy_into`."""
        raise NotImplementedError(f"{type(self).__name__} makes new tensors: call apply")

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """What is known of the views that `apply` will make; by default what was known before."""
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """Columns for the index table of the batch, such as the `time` (seconds) of a span; by default none."""
        return {}

    def partners(self, params: Params, positions: Tensor, n: int) -> Tensor:
        """Of scope "partner": where in the global batch each sample's partner stands, `b` int64.

        A loader calls `apply(batch, params, partners=views)` with the partners' views, row by row, made by the parts of
        the chain before this one from the partners' own keys.

        Args:
            params: what was drawn.
            positions: where the samples stand in the global batch, `b` int64.
            n: the size of the global batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has scope {self.scope!r} and names no partners")

    def children(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The generators in order, by name; a single generator is its own only part."""
        return ((self.name or type(self).__name__, self),)

    def apply_ragged(self, samples: Any, params: Params) -> Any:
        """The stage where samples are decoded, sample by sample where their sizes differ."""
        return self.apply(samples, params) if self.ragged else samples

    def apply_batched(self, batch: Any, params: Params) -> Any:
        """The stage on a stacked batch, on the device."""
        return batch if self.ragged else self.apply(batch, params)

    @final
    def __call__(self, batch: Any, keys: Keys) -> Any:
        """Draw and apply in one go.

        Raises:
            InputError: a batch and keys of different lengths.
        """
        if isinstance(batch, Tensor | list | tuple) and len(batch) != len(keys):
            raise InputError(
                self.name or type(self).__name__,
                expected=f"as many samples as keys, {len(keys)}",
                got=f"a batch of {len(batch)}",
                fix="a single sample is a batch of one: x[None], or a list of it",
            )
        return self.apply(batch, self.draw(in_scope(keys, self.scope), meta_of(batch, self.modality)))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k != "name")
        return f"{type(self).__name__}({settings})"


def in_scope(keys: Keys, scope: Scope) -> Keys:
    """The keys as a generator of this scope may see them."""
    return keys.for_batch() if scope == "batch" else keys


def meta_of(batch: Any, modality: str) -> Meta:
    """Read what is known of samples: from their headers, from a mapping's one-dimensional columns, or off a shape.

    Args:
        batch: a sequence of samples (handles with a `facts` mapping of numbers, or tensors), a stacked tensor, or a
            mapping of tensors with leading axis `b`.
        modality: names the axes of a tensor's shape.
    """
    if isinstance(batch, Tensor):
        axes = SHAPE_META.get(modality, {})
        known = {name: batch.shape[axis] for name, axis in axes.items() if batch.dim() > -axis}
        return {name: torch.full((len(batch),), size) for name, size in known.items()}
    if isinstance(batch, Mapping):
        return {
            name: column.cpu() for name, column in batch.items() if isinstance(column, Tensor) and column.dim() == 1
        }
    facts = [_facts(sample, modality) for sample in batch]
    if not facts:
        return {}
    shared = [name for name in facts[0] if all(name in f for f in facts)]
    return {name: torch.tensor([f[name] for f in facts]) for name in shared}


def _facts(sample: Any, modality: str) -> Mapping[str, int | float]:
    if isinstance(sample, Tensor):
        return {name: sample.shape[a] for name, a in SHAPE_META.get(modality, {}).items() if sample.dim() >= -a}
    return getattr(sample, "facts", {})
