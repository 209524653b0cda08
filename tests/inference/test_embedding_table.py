"""Tables of embeddings: what is written is read in each format, damage is refused, and the search is exact."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmcon.errors import DataError, InputError, StorageError
from mmcon.inference import embedding_files
from mmcon.inference.embedding_files import write_tables
from mmcon.inference.embedding_table import EmbeddingOrigin, EmbeddingTable

ORIGIN = EmbeddingOrigin(
    model="runs/first/model",
    fingerprint="c0ffee",
    modality="image",
    space="shared",
    preprocessing={"version": 1, "views": ["image/plain"]},
    data="photos",
)
SUFFIXES = [".parquet", ".npy", ".safetensors"]


def unit_rows(n, d=8, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def table_of(values, **changes):
    n = len(values)
    paths = [f"/photos/ä {i}.jpg" for i in range(n)]
    labels = [None if i % 3 == 0 else f"class {i % 3}" for i in range(n)]
    ids = [(i - 2) * 2**60 // max(n, 4) for i in range(n)]  # ids are any 64-bit integers
    return EmbeddingTable(values, ids=ids, paths=paths, labels=labels, origin=replace(ORIGIN, **changes))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_is_read_as_it_was_written(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(embedding_files, "_GROUP_ROWS", 7)  # several groups, the last one incomplete
    table = table_of(unit_rows(23))
    read = EmbeddingTable.read(table.write(tmp_path / "new" / f"e{suffix}"))
    assert np.array_equal(read.numpy(), table.values)
    assert np.array_equal(read.values[5:16], table.values[5:16])
    assert read.values[3:3].shape == (0, 8)
    assert read.index.equals(table.index)
    assert read.origin == ORIGIN
    assert (read.path(1), read.label(0), read.label(1)) == ("/photos/ä 1.jpg", None, "class 1")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == (
        [f"e{suffix}"] if suffix == ".parquet" else [f"e{suffix}", f"e{suffix}.index.parquet"]
    )


def test_the_files_are_those_of_other_programs_too(tmp_path):
    values = unit_rows(5)
    table = table_of(values)
    assert np.array_equal(np.load(table.write(tmp_path / "e.npy")), values)
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(table.write(tmp_path / "e.safetensors"))["embeddings"], values)
    rows = pq.read_table(table.write(tmp_path / "e.parquet")).to_pylist()
    assert rows[4]["path"] == "/photos/ä 4.jpg"
    assert np.array_equal(np.float32(rows[4]["embedding"]), values[4])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_are_joined_in_order(tmp_path, suffix):
    values = unit_rows(20)
    parts = [table_of(values[:9]), table_of(values[9:10]), table_of(values[10:])]
    assert np.array_equal(EmbeddingTable.read(write_tables(parts, tmp_path / f"e{suffix}")).numpy(), values)
    with pytest.raises(DataError, match=r"one width; got \[4, 8\]"):
        write_tables([table_of(values), table_of(values[:, :4])], tmp_path / f"e{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_search_is_that_of_all_cosines(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(embedding_files, "_GROUP_ROWS", 16)
    values, queries = unit_rows(50), torch.from_numpy(unit_rows(4, seed=1)) * 3
    values[30] = values[7]  # equal rows are in the order of the table
    table = EmbeddingTable.read(table_of(values).write(tmp_path / f"e{suffix}"))
    cosines = torch.nn.functional.normalize(queries, dim=1) @ torch.from_numpy(values).T
    for k in (1, 5, 50):
        found = table.search(queries, k)
        assert torch.equal(found.rows, cosines.argsort(dim=1, descending=True, stable=True)[:, :k])
        assert torch.allclose(found.scores, cosines.gather(1, found.rows), atol=1e-6)
    assert table.search(values[7], k=2).rows.tolist() == [[7, 30]]
    assert table.search(values[7], k=99).rows.shape == (1, 50)


def test_blocks_of_any_size_find_the_same(monkeypatch):
    values, queries = unit_rows(40), unit_rows(3, seed=1)
    whole = table_of(values).search(queries, 6)
    monkeypatch.setattr("mmcon.inference.embedding_table.BLOCK_SIMILARITIES", 20)  # six rows at once
    assert torch.equal(table_of(values).search(queries, 6).rows, whole.rows)


def test_rows_of_any_length_are_compared_by_their_directions():
    values = unit_rows(10)
    scaled = values * np.arange(1, 11, dtype=np.float32)[:, None]
    found = table_of(scaled, normalized=False).search(values[2], 10)
    assert torch.equal(found.rows, table_of(values).search(values[2], 10).rows)
    assert float(found.scores.max()) == pytest.approx(1)


def test_bad_queries_are_refused():
    table = table_of(unit_rows(5))
    for query, k in ((np.ones(7), 1), (np.full(8, np.nan), 1), (np.ones((0, 8)), 1), (np.ones((1, 1, 8)), 1)):
        with pytest.raises(InputError, match="finite queries `q 8`"):
            table.search(query, k)
    with pytest.raises(InputError, match="k of 1 or more; got 0"):
        table.search(np.ones(8), 0)
    broken = unit_rows(5)
    broken[3, 2] = np.inf
    with pytest.raises(DataError, match="got row 3"):
        table_of(broken).search(np.ones(8))


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="'paths': 1"):
        EmbeddingTable(unit_rows(2), ids=[1, 2], paths=["a"], origin=ORIGIN)


def test_missing_files_and_other_kinds_of_files_are_named(tmp_path):
    table = table_of(unit_rows(5))
    with pytest.raises(InputError, match=re.escape("e.csv")):
        table.write(tmp_path / "e.csv")
    with pytest.raises(DataError, match="no such file"):
        EmbeddingTable.read(tmp_path / "gone.parquet")
    index = tmp_path / "e.npy.index.parquet"
    table.write(tmp_path / "e.npy")
    index.unlink()
    with pytest.raises(DataError, match=r"e\.npy\.index\.parquet; got no such file"):
        EmbeddingTable.read(tmp_path / "e.npy")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="without the origin of embeddings"):
        EmbeddingTable.read(tmp_path / "other.parquet")
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    table.write(tmp_path / "f.npy")
    (tmp_path / "f.npy.index.parquet").rename(index)
    with pytest.raises(DataError, match=r"complete and unchanged; got .*Python objects"):
        EmbeddingTable.read(tmp_path / "e.npy")
    table_of(unit_rows(4)).write(tmp_path / "f.npy")
    (tmp_path / "f.npy").replace(tmp_path / "e.npy")
    with pytest.raises(DataError, match="'embeddings': 4, 'ids': 5"):
        EmbeddingTable.read(tmp_path / "e.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off_is_refused(tmp_path, suffix):
    file = table_of(unit_rows(50)).write(tmp_path / f"e{suffix}")
    whole = file.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match="complete and unchanged"):
            EmbeddingTable.read(file)


def test_a_changed_byte_of_a_parquet_file_is_noticed(tmp_path):
    values = unit_rows(50)
    file = table_of(values).write(tmp_path / "e.parquet")
    whole = bytearray(file.read_bytes())
    whole[whole.index(values[20].tobytes())] ^= 1
    file.write_bytes(whole)
    with pytest.raises(DataError, match="complete and unchanged"):
        EmbeddingTable.read(file).search(values[0])


def test_a_table_of_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "FORMAT", 2)
    file = table_of(unit_rows(2)).write(tmp_path / "e.parquet")
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 2, where this version reads format 1"):
        EmbeddingTable.read(file)


def test_an_interrupted_write_leaves_no_matrix_with_an_index_of_other_rows(tmp_path, monkeypatch):
    file = table_of(unit_rows(5)).write(tmp_path / "e.npy")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_files, "_write_parquet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table_of(unit_rows(5, seed=1)).write(file)
    with pytest.raises(DataError, match="index"):
        EmbeddingTable.read(file)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_matrix_that_cannot_be_written_leaves_the_old_table(tmp_path, monkeypatch, suffix):
    file = table_of(unit_rows(5)).write(tmp_path / f"e{suffix}")

    def full(*_):
        raise OSError("no space left on the disk")
        yield

    monkeypatch.setattr(embedding_files, "_blocks", full)
    with pytest.raises(StorageError, match="no space left"):
        table_of(unit_rows(5, seed=1)).write(file)
    assert np.array_equal(EmbeddingTable.read(file).numpy(), unit_rows(5))
