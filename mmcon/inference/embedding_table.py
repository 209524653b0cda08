"""Tables of embeddings: rows with ids, paths and labels, and the model that made them; exact search by cosine.

    table = EmbeddingTable.read("photos.parquet")
    table.origin.model, table.origin.fingerprint      # the model, and the hash of its weights and preprocessing
    found = table.search(query, k=10)                 # the rows and cosines of the nearest embeddings
    [table.path(row) for row in found.rows[0].tolist()]

The embeddings stay on the disk: they are read in blocks, so that a table may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor, nn

from mmcon.errors import DataError, InputError

#: The columns of the index, beside the embeddings.
INDEX = pa.schema([("id", pa.int64()), ("path", pa.string()), ("label", pa.string())])
# Bytes of embeddings, and number of similarities, in memory at once.
BLOCK_BYTES, BLOCK_SIMILARITIES = 1 << 26, 8_000_000


@runtime_checkable
class Rows(Protocol):
    """Embeddings `n d` that are read by slices of rows: an array, a memory map, or a column of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of rows and columns."""
        ...

    def __getitem__(self, rows: slice, /) -> Float32[np.ndarray, "r d"]: ...


@dataclass(frozen=True)
class EmbeddingOrigin:
    """The origin of embeddings, which is stored with them.

    Attributes:
        model: the model's folder, or its name on a hub.
        fingerprint: a hash of the model's weights, preprocessing and format; only embeddings of one fingerprint are
            comparable.
        modality: the modality of the rows.
        space: the shared space; None: the features before the projection head.
        normalized: whether rows have length one.
        preprocessing: of the modality, as the model's folder has it.
        data: the data that were embedded.
    """

    model: str
    fingerprint: str
    modality: str
    space: str | None = None
    normalized: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> EmbeddingOrigin:
        """The origin of stored values; further names, of a later version, are left out.

        Raises:
            ValueError: a value is missing or has another type.
        """
        kinds: dict[str, Any] = {
            "model": str,
            "fingerprint": str,
            "modality": str,
            "space": str | None,
            "normalized": bool,
            "preprocessing": dict,
            "data": str,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name, ...), kind)]
        if wrong:
            raise ValueError(f"an origin without {', '.join(wrong)}")
        return EmbeddingOrigin(**{name: values[name] for name in kinds})


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of each query, the nearest first.

    Attributes:
        rows: indices of rows of the table.
        scores: cosine similarities.
    """

    rows: Int[Tensor, "q k"]
    scores: Float[Tensor, "q k"]


@final
class EmbeddingTable:
    """Embeddings `n d`, with an id, a path and a label of each row, and their origin.

    >>> rows = np.eye(3, dtype=np.float32)
    >>> origin = EmbeddingOrigin(model="runs/first/model", fingerprint="a1", modality="image")
    >>> table = EmbeddingTable(rows, ids=[5, 6, 7], paths=["a.jpg", "b.jpg", "c.jpg"], origin=origin)
    >>> table.path(int(table.search(rows[1], k=1).rows))
    'b.jpg'

    Args:
        values: embeddings, an array or rows of a file.
        ids: the ids of the samples, `n` integers.
        paths: the files of the samples, or their names in the source.
        labels: the names of their classes, or None for a row without one; by default no row has one.
        origin: the model and the data.

    Raises:
        DataError: the numbers of rows differ.
    """

    def __init__(
        self,
        values: Rows | Float32[np.ndarray, "n d"],
        *,
        ids: Any,
        paths: Any,
        labels: Any = None,
        origin: EmbeddingOrigin,
    ) -> None:
        labels = pa.nulls(len(ids), pa.string()) if labels is None else labels
        lengths = {"embeddings": values.shape[0], "ids": len(ids), "paths": len(paths), "labels": len(labels)}
        if len(set(lengths.values())) > 1 or len(values.shape) != 2:
            got = f"{lengths}, embeddings of shape {tuple(values.shape)}"
            raise DataError("EmbeddingTable", expected="embeddings `n d`, and n ids, paths and labels", got=got)
        self.values, self.origin = values, origin
        self.index = pa.table({"id": ids, "path": paths, "label": labels}, schema=INDEX)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        return f"EmbeddingTable({len(self):,} × {self.width} {self.origin.modality} embeddings of {self.origin.model})"

    @property
    def width(self) -> int:
        """The number of columns `d` of the embeddings."""
        return self.values.shape[1]

    def path(self, row: int) -> str:
        """The file of a row, or its name in the source."""
        return self.index["path"][row].as_py()

    def label(self, row: int) -> str | None:
        """The name of a row's class, if it has one."""
        return self.index["label"][row].as_py()

    def numpy(self) -> Float32[np.ndarray, "n d"]:
        """A copy of all embeddings in memory."""
        return np.array(self.values[0 : len(self)])

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Float32[np.ndarray, "r d"]]]:
        """The embeddings in order, with the index of the first row of each block.

        Args:
            rows: rows of a block; by default 64 MiB of them.
        """
        step = rows or max(1, BLOCK_BYTES // (4 * max(1, self.width)))
        for start in range(0, len(self), step):
            yield start, np.asarray(self.values[start : min(start + step, len(self))])

    def search(self, query: Shaped[np.ndarray, "*q d"] | Float[Tensor, "*q d"], k: int = 10) -> Neighbors:
        """The nearest rows of each query by cosine similarity, exactly: every row is compared.

        Args:
            query: one embedding ` d`, or several `q d`, of the model and the space of the table.
            k: the number of rows to find; fewer if the table has fewer.

        Raises:
            InputError: k is below 1, or the query has another width or is not finite.
            DataError: a row of the table is not finite.
        """
        rows = self.checked_query(query, k)
        step = min(BLOCK_SIMILARITIES // len(rows), BLOCK_BYTES // (4 * self.width))
        best = Neighbors(torch.zeros(len(rows), 0, dtype=torch.int64), torch.zeros(len(rows), 0))
        for start, values in self.blocks(max(1, step)):
            # By NumPy, since torch refuses arrays that a file has lent, which may not be written to.
            scores = torch.from_numpy(rows.numpy() @ values.T)
            if not self.origin.normalized:
                scores /= torch.from_numpy(np.linalg.norm(values, axis=1)).clamp(min=1e-12)
            if not bool(scores.isfinite().all()):
                row = start + int((~scores.isfinite()).any(0).nonzero()[0])
                raise DataError(repr(self), expected="finite embeddings", got=f"row {row}", fix="embed the data again")
            best = _merge(best, scores, start, k)
        return best

    def checked_query(self, query: Shaped[np.ndarray, "*q d"] | Float[Tensor, "*q d"], k: int) -> Float[Tensor, "q d"]:
        """Queries as unit rows, if they fit the table.

        Raises:
            InputError: k is below 1, or the query has another width or is not finite.
        """
        rows = torch.as_tensor(query).float().cpu()
        rows = rows[None] if rows.dim() == 1 else rows
        if k < 1:
            raise InputError("EmbeddingTable.search", expected="k of 1 or more", got=str(k))
        if rows.dim() != 2 or not len(rows) or rows.shape[1] != self.width or not bool(rows.isfinite().all()):
            raise InputError(
                "EmbeddingTable.search",
                expected=f"finite queries `q {self.width}`",
                got=f"shape {tuple(rows.shape)}",
                fix=f"encode them with {self.origin.model}, space={self.origin.space!r}",
            )
        return nn.functional.normalize(rows, dim=1)

    def write(self, path: str | Path) -> Path:
        """Write the table as .parquet, .npy or .safetensors; see `mmcon.inference.embedding_files`.

        Raises:
            InputError: the suffix is another one.
            StorageError: the file cannot be written; an old one is intact.
        """
        from mmcon.inference.embedding_files import write_tables

        return write_tables([self], path)

    @staticmethod
    def read(path: str | Path) -> EmbeddingTable:
        """Open a table that `write` or `mmcon embed` wrote; the embeddings stay on the disk.

        Raises:
            DataError: the file is missing, damaged, or of another kind.
        """
        from mmcon.inference.embedding_files import read_table

        return read_table(path)


def _merge(best: Neighbors, scores: Float[Tensor, "q r"], start: int, k: int) -> Neighbors:
    """The best of earlier blocks and of one more block; of equal scores the earlier row is first."""
    top = scores.topk(min(k, scores.shape[1]), dim=1)
    rows = torch.cat([best.rows, (top.indices + start).sort(dim=1).values], dim=1)
    found = torch.cat([best.scores, top.values.gather(1, top.indices.argsort(dim=1))], dim=1)
    order = found.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Neighbors(rows.gather(1, order), found.gather(1, order))
