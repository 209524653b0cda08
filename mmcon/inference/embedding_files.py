"""The files of embedding tables: .parquet with everything, or .npy and .safetensors with an index beside them.

- `photos.parquet`: the columns `id`, `path`, `label` and `embedding` (lists of d float32), and the origin as JSON under
  `mmcon` in the metadata of the schema.
- `photos.npy`: the matrix `n d`, float32; `photos.npy.index.parquet`: the other columns and the origin.
- `photos.safetensors`: the tensor `embeddings`, with an index beside it as for .npy.

A file has its old content or the new one, whatever interrupts the writing. Only the index is read at once.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from safetensors import safe_open

from mmcon.errors import DataError, InputError, StorageError
from mmcon.files import create_folder, replace_file
from mmcon.inference.embedding_table import INDEX, EmbeddingOrigin, EmbeddingTable, Rows

SUFFIXES = (".parquet", ".npy", ".safetensors")
FORMAT = 1
_KEY = b"mmcon"
_TENSOR = "embeddings"
# Rows that a reader of parquet holds in memory at once: 32 MB at 512 columns.
_GROUP_ROWS = 16_384


def check_suffix(path: str | Path) -> Path:
    """The path, if a table can be written there.

    Raises:
        InputError: its suffix is not that of a format.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        fix = f"name it {path.stem or 'embeddings'}.parquet"
        raise InputError(
            "embedding table", expected=f"a file with suffix {', '.join(SUFFIXES)}", got=str(path), fix=fix
        )
    return path


def write_tables(tables: Iterable[EmbeddingTable], path: str | Path) -> Path:
    """Write tables one after another as one, a block at a time; the origin is that of the first.

    Args:
        tables: a list, or an object that opens the tables each time it is iterated.
        path: the file.

    Raises:
        InputError: the suffix is not that of a format.
        DataError: the widths differ.
        StorageError: the file cannot be written.
    """
    path = check_suffix(path)
    shapes = [(len(table), table.width) for table in tables]
    widths = sorted({width for _, width in shapes})
    if len(widths) != 1:
        raise DataError(f"embedding table {path}", expected="tables of one width", got=str(widths))
    create_folder(path.parent)
    if path.suffix.lower() == ".parquet":
        return replace_file(path, lambda file: _write_parquet(tables, file, with_embeddings=True))
    header = _npy_header if path.suffix.lower() == ".npy" else _safetensors_header

    def write(file: BinaryIO) -> None:
        header(file, (sum(rows for rows, _ in shapes), widths[0]))
        for _, _, values in _blocks(tables):
            file.write(values.data)
        file.flush()
        # Without its index, a matrix that was replaced is refused; an index of other rows would not be.
        _index_of(path).unlink(missing_ok=True)

    replace_file(path, write)
    replace_file(_index_of(path), lambda file: _write_parquet(tables, file, with_embeddings=False))
    return path


def read_table(path: str | Path) -> EmbeddingTable:
    """Open a table that `write_tables` wrote.

    Raises:
        DataError: a file is missing, damaged, or of another kind.
        StorageError: too many files are open.
    """
    path = check_suffix(path)
    index = path if path.suffix.lower() == ".parquet" else _index_of(path)
    for file in (path, index):
        if not file.is_file():
            fix = "check the path" if file == path else f"keep it beside {path.name}, or embed the data again"
            raise DataError(f"embedding table {path}", expected=f"the file {file}", got="no such file", fix=fix)
    try:
        opened = pq.ParquetFile(index, memory_map=True, page_checksum_verification=True)
        origin = _origin(opened.schema_arrow)
        columns = opened.read(columns=INDEX.names).cast(INDEX)
        values = ParquetRows(opened, str(path)) if index == path else _matrix(path)
        return EmbeddingTable(values, ids=columns["id"], paths=columns["path"], labels=columns["label"], origin=origin)
    except Exception as error:  # pyarrow, NumPy and safetensors raise many kinds for damaged files
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            fix = "raise the limit of open files: ulimit -n"
            raise StorageError(
                f"embedding table {path}", expected="a free file handle", got=str(error), fix=fix
            ) from error
        raise damaged(path, error) from error


def damaged(path: str | Path, error: Exception | str) -> DataError:
    """The error of a table that cannot be read."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(
        f"embedding table {path}",
        expected="a table that `mmcon embed` wrote, complete and unchanged",
        got=reason.rstrip("."),
        fix="embed the data again: mmcon embed MODEL DATA --output FILE",
    )


@final
class ParquetRows:
    """The embeddings in a parquet file, as rows that are read by slices; the last group of rows stays in memory.

    Args:
        file: the opened file.
        name: its path, for messages.
    """

    def __init__(self, file: pq.ParquetFile, name: str) -> None:
        self.file, self.name = file, name
        kind = file.schema_arrow.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ValueError(f"a column `embedding` of {kind}, not of float32 lists of one length")
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *groups]).tolist()
        self.shape = (self._starts[-1], kind.list_size)
        self._held: tuple[int, Float32[np.ndarray, "r d"]] | None = None

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "r d"]:
        start, stop, _ = rows.indices(self.shape[0])
        parts = [
            self._group(number)[max(start - first, 0) : stop - first]
            for number, (first, after) in enumerate(pairwise(self._starts))
            if first < stop and after > start
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.shape[1]), np.float32), *parts])

    def _group(self, number: int) -> Float32[np.ndarray, "r d"]:
        held = self._held
        if held is None or held[0] != number:
            held = self._held = number, self._read_group(number)
        return held[1]

    def _read_group(self, number: int) -> Float32[np.ndarray, "r d"]:
        try:
            column = self.file.read_row_group(number, columns=["embedding"]).column(0).combine_chunks()
            if column.null_count:
                raise ValueError(f"{column.null_count:,} rows without an embedding")
            return column.flatten().to_numpy().reshape(-1, self.shape[1])
        except (OSError, ValueError) as error:  # of pyarrow too: pa.ArrowInvalid is a ValueError
            raise damaged(self.name, error) from error


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.parquet")


def _origin(schema: pa.Schema) -> EmbeddingOrigin:
    stored = (schema.metadata or {}).get(_KEY)
    if stored is None:
        raise ValueError("a parquet file without the origin of embeddings")
    values = json.loads(stored)
    if values.get("format") != FORMAT:
        raise ValueError(f"a table of format {values.get('format')}, where this version reads format {FORMAT}")
    return EmbeddingOrigin.from_json(values)


def _write_parquet(tables: Iterable[EmbeddingTable], file: BinaryIO, *, with_embeddings: bool) -> None:
    first = next(iter(tables))
    origin = json.dumps({"format": FORMAT, **first.origin.to_json()})
    schema = INDEX.append(pa.field("embedding", pa.list_(pa.float32(), first.width))) if with_embeddings else INDEX
    options: dict[str, Any] = {"compression": "none", "use_dictionary": ["label"], "write_page_checksum": True}
    with pq.ParquetWriter(file, schema.with_metadata({_KEY: origin}), **options) as writer:
        for table, start, values in _blocks(tables):
            columns = table.index.slice(start, len(values)).combine_chunks()
            if with_embeddings:
                cells = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), table.width)
                columns = columns.append_column("embedding", cells)
            writer.write_table(columns.cast(writer.schema))


def _blocks(tables: Iterable[EmbeddingTable]) -> Iterator[tuple[EmbeddingTable, int, Float32[np.ndarray, "r d"]]]:
    for table in tables:
        for start, values in table.blocks(_GROUP_ROWS):
            yield table, start, np.ascontiguousarray(values, dtype="<f4")


def _npy_header(file: BinaryIO, shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _safetensors_header(file: BinaryIO, shape: tuple[int, int]) -> None:
    """The header of one tensor: its length in 8 bytes, then JSON, filled up to a multiple of 8 bytes.

    The library's own function would need the whole tensor in memory.
    """
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * shape[0] * shape[1]]}
    text = json.dumps({_TENSOR: tensor}).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


@final
class _TensorRows:
    """A tensor of a safetensors file, as rows that are read by slices."""

    def __init__(self, path: Path) -> None:
        self._slice = safe_open(path, framework="numpy").get_slice(_TENSOR)
        self.shape = tuple(self._slice.get_shape())

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "r d"]:
        return self._slice[rows]


def _matrix(path: Path) -> Rows:
    if path.suffix.lower() == ".safetensors":
        values: Any = _TensorRows(path)
    else:
        values = np.load(path, mmap_mode="c", allow_pickle=False)
    if len(values.shape) != 2 or values[0:1].dtype != np.float32:
        raise ValueError(f"a matrix of shape {tuple(values.shape)}, where `n d` of float32 is expected")
    return values
