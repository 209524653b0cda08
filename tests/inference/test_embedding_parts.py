"""Embedding of sources into files: any data, parts that survive an interruption, and files that cannot be read."""

import errno
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from inference_cases import image_text_model
from PIL import Image

import mmcon
from mmcon.errors import DataError, InputError, StorageError
from mmcon.inference import embedding_parts as module
from mmcon.inference.any_data import open_data
from mmcon.inference.embedding_parts import embed_source
from mmcon.inference.embedding_table import EmbeddingTable
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", image_size=16, in_channels=3)
    untrained = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    view = {"view": "image/plain", "options": {"size": 16}}
    return LoadedModel(untrained, {"image": Preprocessing((view,), {"channels": 3})}, name="runs/first")


@pytest.fixture
def photos(tmp_path):
    """Ten photos of two classes, a note, and a broken photo in the middle."""
    for i in range(10):
        file = tmp_path / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.indices((20, 24))
        Image.fromarray(np.stack([rows * i, columns * 9, rows * columns % 255], 2).astype("uint8")).save(file)
    (tmp_path / "photos" / "cats" / "note.txt").write_text("not a photo")
    (tmp_path / "photos" / "cats" / "5.png").write_bytes(b"not a photo either")
    return tmp_path / "photos"


def embedded(model, data, output, **options):
    result = embed_source(model, open_data(model, data), output, batch_size=4, log=lambda _: None, **options)
    assert result is not None
    return result, EmbeddingTable.read(output)


def test_a_folder_becomes_a_table_that_knows_its_model(model, photos, tmp_path):
    result, table = embedded(model, photos, tmp_path / "e.parquet", space="shared")
    assert (result.rows, result.width, result.left_out) == (10, 8, (str(photos / "cats" / "5.png"),))
    assert (table.origin.model, table.origin.fingerprint) == ("runs/first", model.fingerprint)
    assert (table.origin.space, table.origin.modality) == ("shared", "image")
    paths = [table.path(row) for row in range(10)]
    assert paths == [str(f) for f in [*sorted((photos / "cats").glob("[!5n]*")), *sorted((photos / "dogs").iterdir())]]
    assert [table.label(row) for row in range(10)] == ["cats"] * 5 + ["dogs"] * 5
    assert np.allclose(table.numpy(), model.encode(paths, space="shared", output="numpy"), atol=1e-6)
    assert not (tmp_path / "e.parquet.parts").exists()


def test_parts_of_any_size_give_the_same_rows(model, photos, tmp_path, monkeypatch):
    _, whole = embedded(model, photos, tmp_path / "whole.parquet")
    monkeypatch.setattr(module, "PART_ROWS", 3)
    _, parts = embedded(model, photos, tmp_path / "parts.npy", num_workers=0)
    assert parts.index.equals(whole.index)
    assert np.allclose(parts.numpy(), whole.numpy(), atol=1e-6)


def test_an_interrupted_call_goes_on_where_it_was(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 3)
    output, encode, seen = tmp_path / "e.parquet", LoadedModel.encode_source, []

    def interrupted(self, source, **options):
        if len(seen) == 6:
            raise KeyboardInterrupt
        seen.extend(source.ids.tolist())
        return encode(self, source, **options)

    monkeypatch.setattr(LoadedModel, "encode_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded(model, photos, output)
    assert not output.exists()
    first, _ = sorted((tmp_path / "e.parquet.parts").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])  # a damaged part is embedded again
    before = [*seen]

    def recorded(self, source, **options):
        seen.extend(source.ids.tolist())
        return encode(self, source, **options)

    monkeypatch.setattr(LoadedModel, "encode_source", recorded)
    result, table = embedded(model, photos, output)
    assert (result.resumed, result.rows) == (3, 10)
    assert not set(seen[6:]) & set(before[3:6])
    _, whole = embedded(model, photos, tmp_path / "whole.parquet")
    assert table.index.equals(whole.index)
    assert np.array_equal(table.numpy(), whole.numpy())


def test_parts_of_other_work_are_not_taken(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embedded(model, photos, tmp_path / "e.parquet")
    monkeypatch.undo()
    result, table = embedded(model, photos, tmp_path / "e.parquet", space="shared")
    assert (result.resumed, table.width) == (0, 8)


def test_several_processes_embed_a_part_each(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 2)
    source, output = open_data(model, photos), tmp_path / "e.parquet"
    assert embed_source(model, source, output, rank=1, world_size=2) is None
    assert len(list((tmp_path / "e.parquet.parts").glob("*.parquet"))) == 3
    result = embed_source(model, source, output, rank=0, world_size=2, log=lambda _: None)
    assert result is not None
    assert result.rows == 10
    _, whole = embedded(model, photos, tmp_path / "whole.parquet")
    assert EmbeddingTable.read(output).index.equals(whole.index)


def test_the_last_rank_may_start_late_and_checks_its_own_parts_only(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 2)
    source, output = open_data(model, photos), tmp_path / "e.parquet"
    with monkeypatch.context() as context:
        context.setattr(module, "write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed_source(model, source, output, log=lambda _: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    own, read = sorted((tmp_path / "e.parquet.parts").glob("*.parquet"))[1::2], EmbeddingTable.read
    checked = []
    monkeypatch.setattr(EmbeddingTable, "read", lambda file: checked.append(file) or read(file))
    monkeypatch.setattr(module, "_embed", None)  # nothing is embedded again

    def late(_seconds):
        assert embed_source(model, source, output, rank=1, world_size=2) is None
        monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("all ranks have checked their parts"))
        assert checked[3:] == own

    monkeypatch.setattr(module.time, "sleep", late)
    result = embed_source(model, source, output, rank=0, world_size=2, log=lambda _: None)
    assert result is not None
    assert (result.rows, result.resumed) == (10, 11)


def test_few_parts_are_open_at_a_time_and_too_many_open_files_are_no_damage(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1)
    read, most = EmbeddingTable.read, [0]

    def counted(file):
        table = read(file)
        handles = (os.path.realpath(f"/proc/self/fd/{handle}") for handle in os.listdir("/proc/self/fd"))
        most[0] = max(most[0], sum("e.npy.parts" in handle for handle in handles))
        return table

    monkeypatch.setattr(EmbeddingTable, "read", counted)
    embedded(model, photos, tmp_path / "e.npy")
    assert 1 <= most[0] <= 4  # of 11: the first, the last, the next

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    part = tmp_path / "part.parquet"
    EmbeddingTable.read(tmp_path / "e.npy").write(part)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    with pytest.raises(StorageError, match="ulimit -n"):
        module._is_whole(part)
    assert part.exists()


@pytest.mark.parametrize("name", ["photo.png", "*.png", "pictures"])
def test_a_file_a_pattern_and_a_folder_without_classes_are_data_too(model, photos, tmp_path, name):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (photos / "dogs" / "1.png").rename(folder / "photo.png")
    data = folder if name == "pictures" else folder / name
    _, table = embedded(model, data, tmp_path / "e.safetensors")
    assert [table.path(0), table.label(0), len(table)] == [str(folder / "photo.png"), None, 1]


def test_all_splits_of_a_folder_are_taken(model, photos, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "split" / part).mkdir(parents=True)
    (photos / "cats").rename(tmp_path / "split" / "train" / "cats")
    (photos / "dogs").rename(tmp_path / "split" / "val" / "dogs")
    _, table = embedded(model, tmp_path / "split", tmp_path / "e.parquet")
    assert {table.label(row) for row in range(len(table))} == {"cats", "dogs"}


def test_data_without_a_readable_file_give_one_error(model, photos, tmp_path):
    for file in photos.rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"11 that cannot be read, such as .*0\.png"):
        embedded(model, photos, tmp_path / "e.parquet")
    empty = tmp_path / "empty"
    empty.mkdir()
    for data, message in (
        (empty, "none below"),
        (tmp_path / "*.jpg", "readable files at"),
        (tmp_path / "no", "a folder; got"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(model, data)


def test_data_of_another_modality_are_refused(model, tmp_path):
    with pytest.raises(InputError, match=r"data of \['image'\]; got .* of modality 'audio'"):
        open_data(model, tmp_path, modality="audio")
    source = open_data(model, "samples/fashion", split="test")
    with pytest.raises(InputError, match="sahred"):
        embed_source(model, source, tmp_path / "e.parquet", space="sahred")
    with pytest.raises(InputError, match="truncate_dim from 1 to 8; got 9"):
        embed_source(model, source, tmp_path / "e.parquet", space="shared", truncate_dim=9)
    with pytest.raises(InputError, match="suffix"):
        embed_source(model, source, tmp_path / "e.csv")


def test_texts_of_a_table_are_named_by_themselves(tmp_path):
    both = mmcon.load(image_text_model(tmp_path / "both"))  # trained on a column of another name
    (tmp_path / "texts.csv").write_text("sentence,label\na cat,1\na dog,0\na red cat,1\n")
    _, table = embedded(both, tmp_path / "texts.csv", tmp_path / "e.parquet", space="shared")
    assert [table.path(row) for row in range(3)] == ["a cat", "a dog", "a red cat"]
    assert np.allclose(
        table.numpy()[1], both.encode("a dog", modality="text", space="shared", output="numpy"), atol=1e-6
    )
    assert [table.label(row) for row in range(3)] == ["1", "0", "1"]


def test_gray_images_are_embedded_by_a_model_of_colors(model, tmp_path):
    source = mmcon.sources.base.Subset(open_data(model, "samples/fashion", split="test"), range(3))
    embed_source(model, source, tmp_path / "e.parquet", log=lambda _: None)
    table = EmbeddingTable.read(tmp_path / "e.parquet")
    pixels = mmcon.create_source("samples/fashion", split="test").open([0, 1, 2])
    assert np.allclose(table.numpy(), model.encode(list(pixels), output="numpy", show_progress=False), atol=1e-6)
    assert (table.label(0), table.path(0)) == (source.classes[int(source.labels[0])], source.name_of(0))


def test_files_of_texts_are_refused_rather_than_their_names_embedded(tmp_path):
    both = mmcon.load(image_text_model(tmp_path / "both"))
    review = tmp_path / "review.txt"
    review.write_text("a good film")
    for data in (review, [review, review], tmp_path / "*.txt", tmp_path):
        with pytest.raises((InputError, DataError)) as raised:
            open_data(both, data, modality="text")
        assert data is tmp_path or "pattern" in str(raised.value) or "list the texts in a table" in str(raised.value)


def test_a_split_and_options_of_files_are_refused_hidden_files_left_out_and_shards_opened(model, photos, tmp_path):
    for data in (photos, photos / "dogs" / "1.png", str(photos / "dogs" / "*.png"), [photos / "dogs" / "1.png"]):
        for wrong in ({"split": "test"}, {"options": {"label_column": "class"}}):
            with pytest.raises(InputError, match="without a split and options"):
                open_data(model, data, **wrong)
    with pytest.raises(InputError, match="without a split and options"):
        open_data(model, [photos / "cats", photos / "dogs"], split="test")
    (photos / "cats" / ".cache").mkdir()
    for hidden in (".cache/0.png", ".0.png"):
        shutil.copy(photos / "cats" / "0.png", photos / "cats" / hidden)
    assert len(open_data(model, [photos / "cats", photos / "dogs"])) == 11
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for number in (1, 3):
            shard.add(photos / "dogs" / f"{number}.png", f"{number}.png")
    assert len(open_data(model, tmp_path / "shard.tar")) == 2
