"""Extract features once: the encoder outputs of all samples, as one table that every metric reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcon.batch import Index, ViewBatch
from mmcon.distributed.collectives import get_rank
from mmcon.errors import DataError, InputError, NonFiniteError
from mmcon.files import create_folder, replace_by
from mmcon.loading.loader import Views, one_pass
from mmcon.models.evaluation_mode import evaluation_mode
from mmcon.sources.base import Source, TensorSource
from mmcon.sources.joined import JoinedSource
from mmcon.training.progress import Progress


@dataclass(frozen=True)
class Features:
    """Features of `n` rows and the index of the rows.

    Attributes:
        values: float32, as the encoder returns them (neither scaled nor normalized).
        index: columns of the rows: `sample`, `label` and any others of the source.
        metadata: free text that is saved with the features, such as the model and the data.
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
        """The labels of the rows."""
        return self.index["label"]

    def normalized(self) -> Float[Tensor, "n d"]:
        """The rows at length one; a row of zeros stays zero."""
        return nn.functional.normalize(self.values, dim=1)

    def take(self, rows: Any) -> Features:
        """The rows at indices, a slice, or a boolean mask."""
        return Features(self.values[rows], self.index.take(rows), self.metadata)

    @staticmethod
    def cat(tables: Sequence[Features]) -> Features:
        """The concatenation of several tables, such as the shards of several ranks."""
        if not tables:
            raise InputError("Features.cat", expected="at least one table", got="none")
        index = Index.cat([table.index for table in tables])
        return Features(torch.cat([table.values for table in tables]), index, tables[0].metadata)

    def save(self, file: str | Path) -> Path:
        """Write one safetensors file: the values, a tensor for each column, and the metadata."""
        tensors = {"values": self.values.contiguous()}
        tensors |= {f"index.{name}": column.contiguous() for name, column in self.index.items()}
        create_folder(Path(file).parent)
        about = {"about": json.dumps(self.metadata)}
        return replace_by(file, lambda path: save_file(tensors, path, metadata=about))

    @staticmethod
    def load(file: str | Path) -> Features:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, truncated, or of another kind.
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
    encode: Callable[[ViewBatch], Float[Tensor, "_n _d"] | Mapping[str, Float[Tensor, "_n _d"]]] | nn.Module,
    loader: Iterable[ViewBatch],
    *,
    modality: str | None = None,
    device: torch.device | str | None = None,
    metadata: Mapping[str, str] | None = None,
    title: str = "features",
    total: int | None = None,
    show_progress: bool = True,
) -> Features:
    """Run an encoder once over a loader, without gradients and in evaluation mode; each module's mode is restored.

    >>> pixels = extract_features(lambda batch: batch.views["image"][0].flatten(1), loader)

    Args:
        encode: from a batch to features `n d`, or to a dict of features by modality. Of a module with a method
            `features`, that method is called; of another module, the module.
        loader: batches with each row once.
        modality: the modality of the rows; optional if the batches have only one.
        device: the device of the batches; by default that of the module's parameters.
        metadata: free text to save with the features.
        title: the name of the phase, for the progress.
        total: the number of samples, for the progress, if it is known.
        show_progress: False shows none.

    Returns:
        Features, float32 on the CPU, with the rows in the loader's order.

    Raises:
        InputError: the loader is empty, the modality is not in the batch, or the features do not have one row each.
        NonFiniteError: a feature is not finite; the message names the sample.
    """
    module = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    module = module if isinstance(module, nn.Module) else nn.Identity()
    call = getattr(encode, "features", encode)
    if device is None:
        device = next((parameter.device for parameter in module.parameters()), None)
    values, tables, done = [], [], 0
    progress = Progress(title, total, enabled=show_progress and get_rank() == 0)
    with evaluation_mode(module), torch.inference_mode(), progress:
        for batch in loader:
            name = _only_modality(batch, modality)
            output = call(batch if device is None else batch.to(device))
            block = output[name] if isinstance(output, Mapping) else output
            table = batch.index[name].to("cpu")
            values.append(_check_features(block, table))
            tables.append(table)
            done += len(table["sample"].unique()) if "sample" in table else table.n  # rows may be frames of a sample
            progress.advance(done)
    if not values:
        raise InputError("extract_features", expected="at least one batch", got="an empty loader")
    # Cloned outside inference mode: autograd refuses inference tensors, and a probe is trained on these.
    return Features(torch.cat(values).clone(), Index.cat(tables), dict(metadata or {}))


def precompute_features(model: nn.Module, source: Source, views: Views, **options: Any) -> Source:
    """The features of frozen encoders as a source, whose samples are features instead of media.

    Train `model.with_precomputed_features()` on it, with `mmcon.views.Identity()` as the view of each modality.

    Args:
        model: has a method `features`.
        source: one modality, or several joined.
        views: by modality, one deterministic view generator.
        options: of `one_pass`, such as `device`.

    Raises:
        InputError: a modality has several views; the features would not record which view they are of.
    """
    several = [modality for modality, generators in views.items() if len(generators) != 1]
    if several:
        raise InputError("precompute_features", expected="one view a modality", got=f"several of {several}")
    members = []
    for modality, generators in views.items():
        member = source.members[modality]
        features = extract_features(model, one_pass(member, {modality: generators}, **options), modality=modality)
        columns = {name: c for name, c in features.index.items() if name in member.columns and name != "label"}
        labels = features.index.get("label")
        labeled: dict[str, Any] = {} if labels is None else {"labels": labels, "classes": member.classes}
        members.append(
            TensorSource(
                features.values,
                modality=modality,
                ids=features.index["sample"],
                columns=columns,
                name=f"features of {member.name}",
                **labeled,
            )
        )
    return members[0] if len(members) == 1 else JoinedSource(*members)


def _only_modality(batch: ViewBatch, modality: str | None) -> str:
    if modality is None and len(batch.modalities) == 1:
        return batch.modalities[0]
    if modality not in batch.modalities:
        raise InputError("extract_features", expected=f"a modality among {list(batch.modalities)}", got=repr(modality))
    return modality


def _check_features(features: Any, index: Index) -> Float[Tensor, "n d"]:
    """The features of a batch as float32 on the CPU, if they are finite and have one row each."""
    got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != index.n:
        raise InputError(
            "extract_features", expected=f"features `n d` of {index.n} rows", got=str(got), fix="pool or flatten"
        )
    finite = features.isfinite().all(1).cpu()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        sample = int(index["sample"][row]) if "sample" in index else row
        got = f"{int((~finite).sum())} rows, first {sample}"
        raise NonFiniteError("extract_features", expected="finite features", got=got)
    return features.detach().float().cpu()
