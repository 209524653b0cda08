"""Search by a file or a text: the model of the table encodes the query; other models and modalities are refused."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from unittest import mock

import made_videos
import numpy as np
import pytest
import soundfile
import torch
from inference_cases import image_model, image_text_model, save_pictures

import mmcon
from mmcon.errors import DataError, InputError, MissingDependencyError, StorageError
from mmcon.inference import LoadedModel
from mmcon.inference.any_data import open_data, usual_space
from mmcon.inference.embedding_parts import embed_source
from mmcon.inference.embedding_table import EmbeddingOrigin, EmbeddingTable
from mmcon.inference.preprocessing import Preprocessing
from mmcon.inference.search import Hit, load_for, search_table
from mmcon.inference.search_index import open_index
from mmcon.inference.search_sheet import write_search_sheet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def paths(folder):
    return [str(path) for path in save_pictures(folder / "noise")]


@pytest.fixture(scope="module")
def both(folder, paths) -> tuple[EmbeddingTable, LoadedModel]:
    """Images in a space with texts."""
    model = mmcon.load(image_text_model(folder / "both"))
    space = usual_space(model, "image")
    assert space == "shared"
    embed_source(model, open_data(model, folder / "noise"), folder / "e.parquet", space=space, log=lambda _: None)
    return EmbeddingTable.read(folder / "e.parquet"), model


def test_a_file_finds_itself_and_the_others_by_cosine(both, paths):
    table, model = both
    hits = search_table(table, model, paths[3], k=3)
    assert (hits[0].path, hits[0].label, hits[0].rank) == (paths[3], "b", 1)
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    cosines = model.similarity(model.encode(paths, space="shared"), model.encode(paths[3], space="shared"))[:, 0]
    assert [hit.score for hit in hits] == pytest.approx(cosines.sort(descending=True).values[:3].tolist(), abs=1e-5)


def test_a_text_finds_images_in_the_shared_space(both):
    table, model = both
    hits = search_table(table, model, "a cat", k=5)
    cosines = model.similarity(model.encode("a cat", modality="text", space="shared"), table.numpy())[0]
    assert [hit.row for hit in hits] == cosines.argsort(descending=True, stable=True).tolist()


def test_a_query_is_cut_as_the_rows_of_the_table_are(both, folder, paths):
    _, model = both
    source, output = open_data(model, folder / "noise"), folder / "cut.parquet"
    embed_source(model, source, output, space="shared", truncate_dim=3, log=lambda _: None)
    table = EmbeddingTable.read(output)
    assert table.width == 3
    cut = model.encode([table.path(row) for row in range(len(table))], space="shared", truncate_dim=3)
    torch.testing.assert_close(torch.from_numpy(table.numpy()), cut)
    torch.testing.assert_close(cut.norm(dim=1), torch.ones(len(paths)))
    hits = search_table(table, model, paths[2], k=1)
    assert (hits[0].path, hits[0].score) == (paths[2], pytest.approx(1, abs=1e-5))


def test_the_model_of_a_table_is_found_by_name_and_checked_by_fingerprint(both, folder):
    table, model = both
    assert load_for(table).fingerprint == model.fingerprint
    other = image_model(folder / "other")
    with pytest.raises(InputError, match=re.escape("other of fingerprint")) as error:
        load_for(table, other)
    assert model.fingerprint[:12] in str(error.value)
    assert "mmcon embed" in str(error.value)


def test_queries_that_the_model_or_the_rows_cannot_take_are_refused(both, folder, paths, tmp_path):
    table, model = both
    with pytest.raises(DataError, match=r"a file that exists, or a text; got 'gone\.png'"):
        search_table(table, model, "gone.png")
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"")
    with pytest.raises(InputError, match=r"\['image', 'text'\]; got .*sound\.wav' of 'audio'"):
        search_table(table, model, sound)
    images = mmcon.load(image_model(folder / "other"))
    with pytest.raises(DataError, match=r"since .* has no texts; got 'a cat'"):
        search_table(table, images, "a cat")
    features = EmbeddingTable(table.numpy(), ids=range(5), paths=paths, origin=replace(table.origin, space=None))
    with pytest.raises(InputError, match="features of its encoder; got 'a cat' of 'text'"):
        search_table(features, model, "a cat")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises((DataError, InputError), match=r"cannot be read|readable"):
        search_table(table, model, broken)


class _Page(HTMLParser):
    """Elements of a page, with their attributes; and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_sheet_shows_pictures_and_scores_and_loads_nothing(both, paths, tmp_path):
    table, model = both
    hits = search_table(table, model, paths[0], k=3)
    hits[1] = replace(hits[1], path=str(tmp_path / "gone.png"))
    page = _Page(
        write_search_sheet(tmp_path / "new" / "s.html", table, model, paths[0], hits, modality="image").read_text()
    )
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 3  # the query, and two hits; the third file is not there
    assert all(picture["src"].startswith("data:image/") and picture["alt"] for picture in pictures)
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith("data:") for link in links)
    words = " ".join(page.words)
    assert f"{hits[2].score:.3f}" in words
    assert "gone.png" in words
    assert "default-src 'none'" in str(page.elements)


def test_names_and_texts_cannot_add_elements_to_the_sheet(both, tmp_path):
    table, model = both
    evil = "<script>alert(1)</script>\"'><img src=x>"
    origin = replace(table.origin, modality="text", data=evil)
    texts = EmbeddingTable(table.numpy(), ids=range(5), paths=[evil] * 5, labels=[evil] * 5, origin=origin)
    hits = search_table(texts, model, evil, modality="text")
    page = _Page(write_search_sheet(tmp_path / "s.html", texts, model, evil, hits, modality="text").read_text())
    assert {tag for tag, _ in page.elements} & {"script", "img"} == set()
    assert " ".join(page.words).count("alert(1)") >= 6


def test_an_index_finds_nearly_what_all_rows_give(tmp_path):
    pytest.importorskip("usearch")
    rows = torch.nn.functional.normalize(torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    origin = EmbeddingOrigin(model="m", fingerprint="f", modality="image")
    file = EmbeddingTable(rows.numpy(), ids=range(1000), paths=["x"] * 1000, origin=origin).write(
        tmp_path / "e.parquet"
    )
    table = EmbeddingTable.read(file)
    exact, near = table.search(rows[:50], 10), open_index(table, file).search(rows[:50], 10)
    shared = [len({*a} & {*b}) for a, b in zip(exact.rows.tolist(), near.rows.tolist(), strict=True)]
    assert np.mean(shared) > 9.5
    assert torch.allclose(near.scores[:, 0], torch.ones(50), atol=2e-3)
    built = (tmp_path / "e.parquet.usearch").stat().st_mtime_ns
    open_index(table, file)
    assert (tmp_path / "e.parquet.usearch").stat().st_mtime_ns == built
    EmbeddingTable(rows[:500].numpy(), ids=range(500), paths=["x"] * 500, origin=origin).write(file)
    changed = EmbeddingTable.read(file)
    assert int(open_index(changed, file).search(rows[:1], 500).rows.max()) < 500
    (tmp_path / "e.parquet.usearch").write_bytes(b"cut off")
    with pytest.raises(DataError, match="a complete index"):
        open_index(changed, file)
    (tmp_path / "e.parquet.usearch").unlink()
    (tmp_path / "e.parquet.usearch.json").unlink()
    (tmp_path / "e.parquet.usearch" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match="a folder that files can be written to"):
        open_index(changed, file)


def test_without_usearch_the_extra_is_named(both, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(MissingDependencyError, match=re.escape("mmcon[search]")):
        open_index(both[0], folder / "e.parquet")


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_sounds_and_clips_have_players(both, tmp_path, modality):
    if modality == "audio":
        file = tmp_path / "tone.wav"
        soundfile.write(file, np.sin(np.arange(8000) / 5) / 2, 16_000)
    else:
        file = tmp_path / "clip.mp4"
        made_videos.write(file, stamps=[10 * i for i in range(10)])
    media = {"audio": {"rate_hz": 16_000, "channels": 1}, "video": {}}
    model = LoadedModel(both[1].model, {name: Preprocessing((), own) for name, own in media.items()})
    origin = replace(both[0].origin, modality=modality)
    table = EmbeddingTable(np.eye(1, 8, dtype=np.float32), ids=[1], paths=[str(file)], origin=origin)
    hits = [Hit(1, 0.5, str(file), None, 1, 0)]
    page = _Page(write_search_sheet(tmp_path / "s.html", table, model, file, hits, modality=modality).read_text())
    players = [attributes["src"][:11] for tag, attributes in page.elements if tag == modality]
    assert players == [f"data:{modality}/"] * 2


def test_a_search_holds_a_block_of_rows_at_a_time():
    """A million rows would take 2 GB at once; 20,000 are enough to see how much is read."""
    read = []

    class Recorded:
        shape = (20_000, 512)

        def __getitem__(self, rows):
            read.append(rows.stop - rows.start)
            values = np.zeros((rows.stop - rows.start, 512), np.float32)
            values[:, 0] = np.arange(rows.start, rows.stop)
            values[:, 1] = 20_000
            return values

    origin = EmbeddingOrigin(model="m", fingerprint="f", modality="image", normalized=False)
    table = EmbeddingTable(Recorded(), ids=range(20_000), paths=["x"] * 20_000, origin=origin)
    assert table.search(np.eye(1, 512, dtype=np.float32), 3).rows.tolist() == [[19_999, 19_998, 19_997]]
    read.clear()
    with mock.patch("mmcon.inference.embedding_table.BLOCK_BYTES", 1 << 20):
        assert table.search(np.eye(1, 512, dtype=np.float32), 3).rows.tolist() == [[19_999, 19_998, 19_997]]
    assert max(read) * 512 * 4 <= 1 << 20
    assert sum(read) == 20_000
