"""The base class of view generators (augmentations)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, final

import torch
from jaxtyping import Float32, Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.portable_math import on_one_thread, one_thread
from mmcon.random import Keys

if TYPE_CHECKING:
    from mmcon.views.sample_transform import SampleTransform

Scope = Literal["sample", "clip", "batch", "partner", "stateful"]
SCOPES: tuple[Scope, ...] = ("sample", "clip", "batch", "partner", "stateful")

# Header facts of each sample, known before it is decoded: named columns with leading axis b, such as height and width.
Meta = dict[str, Tensor]
# Drawn parameters: nested dicts of CPU tensors with leading axis b.
Params = dict[str, Any]

# Facts from the shape of a tensor, by modality: name -> axis.
SHAPE_META: dict[str, dict[str, int]] = {
    "image": {"channels": -3, "height": -2, "width": -1},
    "audio": {"length": -1},
    "video": {"frames": -4, "channels": -3, "height": -2, "width": -1},
}


class CopyInto(Protocol):
    """Check a collated batch and copy it, as float32, into a tensor of the same shape; `where` names the generator."""

    def __call__(  # noqa: D102
        self, batch: Shaped[Tensor, "*shape"], out: Float32[Tensor, "*shape"], where: str
    ) -> None: ...


class OnePass(Protocol):
    """Compute leading generators of a chain at once: see `ViewGenerator`."""

    def __call__(  # noqa: D102
        self,
        children: Sequence[ViewGenerator],
        batch: Shaped[Tensor, "*shape"],
        out: Float32[Tensor, "*shape"],
        params: Sequence[Params],
        where: str,
    ) -> int: ...


class ViewGenerator(ABC):
    """A random function of samples.

    A subclass implements `draw` and `apply`; a subclass that changes sizes or lengths also implements `output_meta`.

    Attributes:
        modality: the modality of its input, or "any".
        scope: what its views depend on. "sample": all fields of the key; "clip": the same, with one draw for all frames
            of a view; "batch": the seed and the global step; "partner": the key, and the view of another sample of the
            global batch; "stateful": the key, and a memory in the training process.
        ragged: whether `apply` takes samples of different sizes, also undecoded handles (a sequence of samples, or a
            stacked tensor if all sizes are equal), and not only a collated batch.
        undecoded_only: whether a ragged generator requires undecoded handles, so that it must come first in a chain.
        single_thread: whether `apply` and `apply_` run with one intra-op thread, so that their bits do not depend on
            the number of threads; always for audio, whose Fourier transforms and convolutions round differently with
            more.
        preserves_labels: whether views keep the label of their sample; False, for example, for reversed time.
        copy_into: copies a batch into the float32 buffer that `apply_` changes; None without `apply_`. A chain of
            generators that all have it allocates one buffer instead of one tensor per child: allocation would take
            longer than most operations.
        one_pass: computes the views of as many leading generators of such a chain as it can into the buffer, in place
            of `copy_into` and their `apply_`, and returns their number: 0 if it wrote nothing. Results equal those of
            `apply_` up to the rounding of float32, and do not depend on the batch.
        made_from: the registered name and the options of `mmcon.create_view`, with which a saved model builds its
            evaluation views again; None for a generator that was not built by name.
    """

    modality: ClassVar[str] = "any"
    scope: ClassVar[Scope] = "sample"
    ragged: ClassVar[bool] = False
    undecoded_only: ClassVar[bool] = False
    single_thread: ClassVar[bool] = False
    preserves_labels: ClassVar[bool] = True
    copy_into: ClassVar[CopyInto | None] = None
    one_pass: ClassVar[OnePass | None] = None
    #: The registered name; if empty, the class name is the generator's name in a chain.
    name: str = ""
    made_from: dict[str, Any] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for method in ("apply", "apply_"):
            if method in vars(cls) and (cls.single_thread or cls.modality == "audio"):
                setattr(cls, method, on_one_thread(vars(cls)[method]))

    @abstractmethod
    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw parameters with leading axis `b` from `b` keys and the header facts of the samples."""

    @abstractmethod
    def apply(self, batch: Any, params: Params) -> Any:
        """Compute the views, a function of the samples and the parameters only.

        Parameters are on the CPU for samples on any device.
        """

    def apply_(self, batch: Float32[Tensor, "b ..."], params: Params) -> None:
        """Compute the same bits as `apply`, in place; for generators with `copy_into`."""
        raise NotImplementedError(f"{type(self).__name__} does not work in place: call apply")

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Facts of the views, such as their size, before they are computed; by default those of the samples."""
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Shaped[Tensor, "b ..."]]:
        """Columns for the index table of the batch, such as the `time` (seconds) of a clip; by default none."""
        return {}

    def partners(self, params: Params, positions: Int[Tensor, " b"], n: int) -> Int[Tensor, " b"]:
        """For scope "partner": the index in the global batch of each sample's partner, `b` int64.

        The loader computes the partners' views from the partners' own keys, with the preceding children of the chain,
        and calls `apply(batch, params, partners=views)`.

        Args:
            params: the drawn parameters.
            positions: the indices of the samples in the global batch.
            n: the size of the global batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has scope {self.scope!r} and no partners")

    def children(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The single generators in order, by name; a generator that is not a chain is its own only child."""
        return ((self.name or type(self).__name__, self),)

    def apply_ragged(self, samples: Any, params: Params) -> Any:
        """The per-sample stage (before collate), which decodes samples."""
        return self.apply(samples, params) if self.ragged else samples

    def apply_batched(self, batch: Any, params: Params) -> Any:
        """The batched stage (after collate), on the device of the batch."""
        return batch if self.ragged else self.apply(batch, params)

    @final
    def __call__(self, batch: Any, keys: Keys) -> Any:
        """Draw parameters and apply them.

        Raises:
            InputError: the batch and the keys differ in length.
        """
        if isinstance(batch, Tensor | list | tuple) and len(batch) != len(keys):
            raise InputError(
                self.name or type(self).__name__,
                expected=f"as many samples as keys, {len(keys)}",
                got=f"a batch of {len(batch)}",
                fix="a single sample is a batch of one: x[None], or a list of it",
            )
        with one_thread():  # see `mmcon.loading.open_and_draw`
            params = self.draw(in_scope(keys, self.scope), meta_of(batch, self.modality))
        return self.apply(batch, params)

    @final
    def as_transform(self, *, seed: int, view: int = 0) -> SampleTransform:
        """A callable of one sample, for a plain DataLoader or torchvision's Compose (see `SampleTransform`).

        >>> transform = mmcon.create_view("image/simclr", size=32).as_transform(seed=0)  # doctest: +SKIP
        >>> transform(image).shape  # doctest: +SKIP
        torch.Size([3, 32, 32])

        Args:
            seed: of the run.
            view: the number of the view, for several transforms of one sample.

        Raises:
            InputError: the views depend on more than their sample.
        """
        from mmcon.views.sample_transform import SampleTransform

        return SampleTransform(self, seed=seed, view=view)

    def __repr__(self) -> str:
        hidden = ("name", "made_from")
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k not in hidden)
        return f"{type(self).__name__}({settings})"


def in_scope(keys: Keys, scope: Scope) -> Keys:
    """The keys that a generator of this scope draws from: for scope "batch", keys shared by the whole batch."""
    return keys.for_batch() if scope == "batch" else keys


def meta_of(batch: Any, modality: str) -> Meta:
    """Facts of samples without decoding them: from headers, from one-dimensional columns, or from shapes.

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
