"""Features, computed once: what an encoder says of every sample, as one table that every evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcon.batch import Index, ViewBatch
from mmcon.errors import DataError, InputError, NonFiniteError
from mmcon.loading.loader import Views, one_pass
from mmcon.sources.base import JoinedSource, Source, TensorSource


@dataclass(frozen=True)
class Features:
    """Features of `n` rows and the table that names the rows.

    Attributes:
        values: `n d` float32, as the encoder gives them (neither scaled nor normalised).
        index: the rows' columns: `sample`, `label` and whatever else the source has.
        metadata: free notes that are saved along (which model, which data).
    """

    values: Float[Tensor, "n d"]
    index: Index
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index.n != len(self.values):
            raise InputError("Features", expected=f"a table of {len(self.values)} rows", got=f"{self.index.n} rows")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The rows' labels."""
        return self.index["label"]

    def normalized(self) -> Float[Tensor, "n d"]:
        """The rows at length one; a row of zeros stays zero."""
        return nn.functional.normalize(self.values, dim=1)

    def take(self, rows: Any) -> Features:
        """The rows at positions, a slice, or a boolean mask."""
        return Features(self.values[rows], self.index.take(rows), self.metadata)

    @staticmethod
    def cat(tables: Sequence[Features]) -> Features:
        """The rows of several dumps under one another, such as the shares of several processes."""
        if not tables:
            raise InputError("Features.cat", expected="at least one table", got="none")
        index = Index.cat([table.index for table in tables])
        return Features(torch.cat([table.values for table in tables]), index, tables[0].metadata)

    def save(self, file: str | Path) -> Path:
        """Write one safetensors file: the values, a tensor for each column, and the notes."""
        tensors = {"values": self.values.contiguous()}
        tensors |= {f"index.{name}": column.contiguous() for name, column in self.index.items()}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={"about": json.dumps(self.metadata)})
        return Path(file)

    @staticmethod
    def load(file: str | Path) -> Features:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, torn, or of another kind.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                about = json.loads((opened.metadata() or {}).get("about", "{}"))
            columns = {name.removeprefix("index."): t for name, t in tensors.items() if name.startswith("index.")}
            return Features(tensors["values"], Index(columns, n=len(tensors["values"])), about)
        except Exception as error:
            raise DataError(
                "Features.load", expected="a file that Features.save wrote", got=f"{file}: {error}"
            ) from error


def extract_features(
    encode: Callable[[ViewBatch], Tensor | Mapping[str, Tensor]] | nn.Module,
    loader: Iterable[ViewBatch],
    *,
    modality: str | None = None,
    device: torch.device | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Features:
    """Run an encoder once over a loader, without gradients and in evaluation mode, which is put back afterwards.

    >>> pixels = extract_features(lambda batch: batch.views["image"][0].flatten(1), loader)

    Args:
        encode: from a batch to features, `n d` or a dict of such by modality. A module that has a method `features` is
            asked by that method; so is any module by its call.
        loader: batches, each row once.
        modality: which modality's rows; may be left out where batches have only one.
        device: where the batches go; by default where the module's parameters are.
        metadata: notes to keep beside the features.

    Returns:
        Features, float32 on the CPU, with the rows in the loader's order.

    Raises:
        InputError: the loader is empty, the modality is not there, or the shape does not fit the rows.
        NonFiniteError: a feature is not finite; the message names the sample.
    """
    module = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    module = module if isinstance(module, nn.Module) else nn.Identity()
    call = getattr(encode, "features", encode)
    if device is None:
        device = next((parameter.device for parameter in module.parameters()), None)
    values, tables = [], []
    with evaluation_mode(module), torch.inference_mode():
        for batch in loader:
            name = _only_modality(batch, modality)
            output = call(batch if device is None else batch.to(device))
            block = output[name] if isinstance(output, Mapping) else output
            table = batch.index[name].to("cpu")
            values.append(_checked(block, table))
            tables.append(table)
    if not values:
        raise InputError("extract", expected="at least one batch", got="an empty loader")
    # Cloned outside inference mode, so that a probe may take gradients through them.
    return Features(torch.cat(values).clone(), Index.cat(tables), dict(metadata or {}))


def precompute_features(model: nn.Module, source: Source, views: Views, **options: Any) -> Source:
    """What frozen encoders say of every sample, once, as a source: features take the place of media.

    Train `model.with_precomputed_features()` on it, with `mmcon.views.Identity()` as the view of each modality.

    Args:
        model: with a method `features`.
        source: one modality, or several joined.
        views: by modality, one generator that draws nothing.
        options: of `one_pass`, such as `device`.

    Raises:
        InputError: a modality has several views; which one would be drawn is lost.
    """
    several = [modality for modality, generators in views.items() if len(generators) != 1]
    if several:
        raise InputError("precomputed", expected="one view a modality", got=f"several of {several}")
    members = []
    for modality, generators in views.items():
        member = source.members[modality]
        found = extract_features(model, one_pass(member, {modality: generators}, **options), modality=modality)
        columns = {name: c for name, c in found.index.items() if name in member.columns and name != "label"}
        labels = found.index.get("label")
        known: dict[str, Any] = {} if labels is None else {"labels": labels, "classes": member.classes}
        members.append(
            TensorSource(
                found.values,
                modality=modality,
                ids=found.index["sample"],
                columns=columns,
                name=f"features of {member.name}",
                **known,
            )
        )
    return members[0] if len(members) == 1 else JoinedSource(*members)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put a module into evaluation mode, and each of its parts back into the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes.items():
            part.training = training


def _only_modality(batch: ViewBatch, modality: str | None) -> str:
    if modality is None and len(batch.modalities) == 1:
        return batch.modalities[0]
    if modality not in batch.modalities:
        raise InputError("extract", expected=f"a modality among {list(batch.modalities)}", got=repr(modality))
    return modality


def _checked(block: Any, table: Index) -> Float[Tensor, "n d"]:
    got = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
    if not isinstance(block, Tensor) or block.dim() != 2 or len(block) != table.n:
        raise InputError("extract", expected=f"features `n d` of {table.n} rows", got=str(got), fix="pool or flatten")
    finite = block.isfinite().all(1).cpu()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        sample = int(table["sample"][row]) if "sample" in table else row
        raise NonFiniteError("extract", expected="finite features", got=f"{int((~finite).sum())} rows, first {sample}")
    return block.detach().float().cpu()
