"""Files that go bad: each source × each fault. The sample is left out and named by its path, and the batch goes on."""

import io
import json
import logging
import os
import signal
import tarfile
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from mmcon.errors import DataError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.unreadable_samples import Unreadable, check_share
from mmcon.media.decoding import decoder_errors
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import DatasetSource
from mmcon.sources.factory import create_source
from mmcon.sources.joined import JoinedSource
from mmcon.sources.quarantine import read_quarantine
from mmcon.views import Chain, ViewGenerator

N, BAD = 12, 4


def photo(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def recording(number):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes((1_000 * np.sin(np.arange(4_000) * (number + 1) / 50)).astype("<i2").tobytes())
    return out.getvalue()


def clip(number):
    frames = [Image.new("RGB", (24, 18), (number * 9, shade * 60, 0)) for shade in range(4)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=250)
    return out.getvalue()


KINDS = {"image": (photo, "png"), "audio": (recording, "wav"), "video": (clip, "gif")}
VIEWS = {
    "image": lambda: create_view("image/random-resized-crop", size=16),
    "audio": lambda: create_view("audio/crop", window_seconds=0.2, rate_hz=8_000),
    "video": lambda: create_view("video/random-clip", frames=2, stride=1),
}


class FolderDataset(Dataset):
    """A torch dataset that opens files itself, in the form of torchvision's ImageFolder."""

    def __init__(self, files):
        self.samples = [(str(file), 0) for file in files]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        file, label = self.samples[row]
        with Image.open(file) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1), label


def made_files(root, modality):
    make, suffix = KINDS[modality]
    files = []
    for number in range(N):
        file = root / "ab"[number % 2] / f"{number:02}.{suffix}"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(make(number))
        files.append(file)
    return files


def folder(root, modality):
    made_files(root / "data", modality)
    options = {"rate_hz": 8_000} if modality == "audio" else {}
    return lambda **more: create_source(root / "data", modality=modality, split="all", **options, **more)


def table(root, modality):
    files = made_files(root / "data", modality)
    rows = "".join(f"{file.relative_to(root)},{number % 2}\n" for number, file in enumerate(files))
    (root / "table.csv").write_text(f"path,label\n{rows}")
    options = {"rate_hz": 8_000} if modality == "audio" else {}
    return lambda **more: create_source(
        root / "table.csv", modality=modality, split="all", media_column="path", **options, **more
    )


def dataset(root, modality):
    files = made_files(root / "data", modality)
    return lambda: DatasetSource(FolderDataset(files), modality=modality)


def joined(root, modality):
    opened = folder(root, modality)

    def make():
        images = opened()
        texts = DatasetSource([torch.zeros(1)] * len(images), names=None, modality="text")
        texts.ids = images.ids.clone()
        return JoinedSource(images, texts)

    return make


SOURCES = {"folder": folder, "table": table, "dataset": dataset, "joined": joined}
CASES = [
    *(("folder", modality) for modality in KINDS), *(("table", modality) for modality in KINDS),
    ("dataset", "image"), ("joined", "image"),
]  # fmt: skip


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def swap(file):
    file.write_text("<html><title>404 Not Found</title></html>" * 40)


def replace_by_link(file, target):
    file.unlink()
    file.symlink_to(target)


def replace_by_fifo(file):
    file.unlink()
    os.mkfifo(file)


def make_endless(file):
    os.truncate(file, 1 << 42)
    with file.open("r+b") as content:
        content.write(b"RIFF\xff\xff\xff\xffWEBPVP8X" if file.suffix == ".png" else b"RIFF\xff\xff\xff\xffjunk")


#: By name: what happens to the file of one sample after the source was made.
FAULTS = {
    "gone": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": cut,
    "swapped": swap,
    "endless": make_endless,
    "FIFO": replace_by_fifo,
    "device": lambda file: replace_by_link(file, "/dev/zero"),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "loop of links": lambda file: replace_by_link(file, file),
    "another file": lambda file: file.write_bytes(KINDS["audio" if file.suffix == ".png" else "image"][0](0)),
}


def loader_of(source, modality, **options):
    view = VIEWS[modality]()
    sampler = UniformSampler(source.ids, batch_size=len(source), seed=0)
    return ViewLoader(source, {modality: [view, view]}, sampler, seed=0, **options)


def rows(batch, modality):
    return torch.cat([part["signal"] if modality == "audio" else part for part in batch.views[modality]])


def bad_file(root, modality):
    return root / "data" / "a" / f"{BAD:02}.{KINDS[modality][1]}"


# A torch dataset opens its files itself: a FIFO then waits, until the time limit of the worker processes ends it.
HANGS = [("dataset", "image", fault) for fault in ("FIFO", "device")]
TABLE = [(*case, fault) for case in CASES for fault in FAULTS if (*case, fault) not in HANGS]


@pytest.mark.parametrize(("source", "modality", "fault"), TABLE)
def test_a_file_that_goes_bad_after_the_check_is_left_out_and_named(source, modality, fault, tmp_path, caplog):
    made = SOURCES[source](tmp_path, modality)()
    whole = next(iter(loader_of(made, modality)))
    made = SOURCES[source](tmp_path, modality)()
    file = bad_file(tmp_path, modality)
    FAULTS[fault](file)
    loader = loader_of(made, modality)
    with caplog.at_level(logging.WARNING, "mmcon"):
        batch = next(iter(loader))
    (sample,) = loader.failures
    assert loader.files == {sample: str(file)}
    assert f"unreadable sample 1, left out: {file}: " in caplog.text  # at once
    kept = whole.index[modality]["sample"] != sample
    assert torch.equal(batch.index[modality]["sample"], whole.index[modality]["sample"][kept])
    assert torch.equal(rows(batch, modality), rows(whole, modality)[kept])


class Fault(ViewGenerator):
    """Lets a fault befall the file of a sample when the draws are made: the header is read, the media are not."""

    ragged = True

    def __init__(self, modality, act):
        self.modality, self.act = modality, act

    def draw(self, keys, meta):
        act, self.act = self.act, lambda: None
        act()
        return {}

    def apply(self, batch, params):
        return batch


@pytest.mark.parametrize("fault", ["gone", "emptied", "swapped", "FIFO", "device", "folder"])
@pytest.mark.parametrize(("source", "modality"), [case for case in CASES if case[0] != "dataset"])
def test_a_file_that_goes_bad_between_header_and_decoding_is_left_out_and_named(source, modality, fault, tmp_path):
    made, view = SOURCES[source](tmp_path, modality)(), VIEWS[modality]()
    file = bad_file(tmp_path, modality)

    def batch_with(act):
        views = [Chain(Fault(modality, act), view)] * 2
        loader = ViewLoader(made, {modality: views}, UniformSampler(made.ids, batch_size=N, seed=0), seed=0)
        return next(iter(loader)), loader

    whole, _ = batch_with(lambda: None)
    batch, loader = batch_with(lambda: FAULTS[fault](file))
    (sample,) = loader.failures
    assert loader.files == {sample: str(file)}
    kept = whole.index[modality]["sample"] != sample
    assert torch.equal(batch.index[modality]["sample"], whole.index[modality]["sample"][kept])
    assert torch.equal(rows(batch, modality), rows(whole, modality)[kept])


class Raising(Dataset):
    """A torch dataset of tensors, one row of which raises."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        if row == BAD:
            raise KeyError("no such row in the database")
        return torch.full((3, 20, 20), row, dtype=torch.uint8), row % 2


@pytest.mark.parametrize("read_several", [False, True])
def test_a_row_of_a_torch_dataset_that_raises_is_left_out(read_several, monkeypatch):
    if read_several:
        several = lambda self, rows: [self[row] for row in rows]  # noqa: E731
        monkeypatch.setattr(Raising, "__getitems__", several, raising=False)
    loader = loader_of(DatasetSource(Raising(), name="rows"), "image")
    batch = next(iter(loader))
    assert batch.index["image"].n == 2 * (N - 1)
    assert loader.files == {BAD: f"rows[{BAD}]"}
    assert "KeyError: 'no such row in the database'" in loader.failures[BAD]


@pytest.mark.parametrize("kept", ["shards", "parquet"])
def test_a_bad_member_of_an_archive_or_a_table_is_left_out(kept, tmp_path):
    photos = [photo(number) for number in range(N)]
    photos[BAD] = photos[BAD][:100]
    if kept == "shards":
        with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
            for number, data in enumerate(photos):
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        source = create_source(tmp_path / "train-000.tar", split="all")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": [f"{n:03}" for n in range(N)], "image": photos}), tmp_path / "train.parquet")
        source = create_source(tmp_path / "train.parquet", split="all", id_column="id")
    loader = loader_of(source, "image")
    assert next(iter(loader)).index["image"].n == 2 * (N - 1)
    (name,) = loader.files.values()
    assert name == (f"{tmp_path / 'train-000.tar'}: {BAD:03}" if kept == "shards" else f"{BAD:03}")
    # Another source leaves out what the quarantine file lists.
    (tmp_path / "quarantine.jsonl").write_text(json.dumps({"file": name, "reason": "found in training"}) + "\n")
    options = {"id_column": "id"} if kept == "parquet" else {}
    path = next(file for file in tmp_path.iterdir() if file.name.startswith("train"))
    assert len(create_source(path, split="all", quarantine=tmp_path / "quarantine.jsonl", **options)) == N - 1


def test_an_archive_that_is_gone_ends_the_run_with_its_name(tmp_path):
    with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
        member = tarfile.TarInfo("000.png")
        member.size = len(photo(0))
        archive.addfile(member, io.BytesIO(photo(0)))
    source = create_source(tmp_path / "train-000.tar", split="all")
    (tmp_path / "train-000.tar").unlink()
    with pytest.raises(DataError, match=r"at least one readable sample(.|\n)*train-000\.tar"):
        next(iter(loader_of(source, "image")))


@pytest.mark.parametrize("fault", ["gone", "swapped", "FIFO", "device", "folder"])
def test_files_that_are_bad_when_a_folder_is_listed_are_quarantined(fault, tmp_path):
    opened = folder(tmp_path, "image")
    file = bad_file(tmp_path, "image")
    FAULTS[fault](file)
    if fault == "gone":
        file.symlink_to(tmp_path / "nowhere.png")
    source = opened(max_failures=0.1, quarantine=tmp_path / "quarantine.jsonl")
    assert len(source) == N - 1
    assert read_quarantine(tmp_path / "quarantine.jsonl") in ([str(file)], [])  # what is no file is not listed at all


@pytest.mark.parametrize(("source", "modality"), CASES)
def test_a_forbidden_file_is_left_out(source, modality, tmp_path):
    source, file = SOURCES[source](tmp_path, modality)(), bad_file(tmp_path, modality)
    next(iter(loader_of(source, modality)))  # imports, which another user may not read
    file.chmod(0)
    own = os.geteuid()
    if own == 0:
        for each in (tmp_path, *tmp_path.parents[:3], *tmp_path.rglob("*")):
            each.chmod(each.stat().st_mode | 0o055) if each != file else None
        os.seteuid(65534)  # root may read any file
    try:
        loader = loader_of(source, modality)
        next(iter(loader))
    finally:
        os.seteuid(own)
    assert list(loader.files.values()) == [str(file)]
    assert "PermissionError" in next(iter(loader.failures.values()))


def test_too_many_bad_files_end_the_run(tmp_path):
    source = folder(tmp_path, "image")(max_failures=0.3)
    for file in made_files(tmp_path / "data", "image")[:6]:
        file.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"at most 30.0% unreadable samples; got 6 of 12, such as .*png: (.|\n)*max_fail"
    ):
        next(iter(loader_of(source, "image")))
    source.max_failures = 0.5
    loader = loader_of(source, "image")
    next(iter(loader))
    assert len(loader.failures) == 6
    five = dict.fromkeys(range(5), "cut")
    source.max_failures = 0.01
    check_share(source, five, {}, total=N)
    with pytest.raises(DataError, match=r"at most 1\.0%"):
        check_share(source, {**five, 5: "cut"}, {}, total=N)
    source.max_failures = 0.0
    with pytest.raises(DataError, match=r"at most 0\.0%"):
        next(iter(loader_of(source, "image")))


def test_many_unreadable_samples_do_not_flood_the_log(tmp_path, caplog):
    source = DatasetSource(torch.zeros(1000, 3, 4, 4), max_failures=1.0)
    loader = ViewLoader(
        source,
        {"image": [create_view("image/plain", size=4)]},
        UniformSampler(source.ids, batch_size=2, seed=0),
        seed=0,
    )
    loader._record({i: Unreadable(f"{i}.jpg", "cut") for i in range(350)})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 100 + 1 + 2
    assert lines[-1] == "unreadable sample 300, left out: 299.jpg: cut"
    assert len(loader.failures) == 350


def test_a_second_pass_over_a_source_does_not_log_its_unreadable_samples_again(tmp_path, caplog):
    source = folder(tmp_path, "image")()
    bad_file(tmp_path, "image").write_bytes(b"")
    for _ in range(3):
        loader = loader_of(source, "image")
        next(iter(loader))
        assert list(loader.files.values()) == [str(bad_file(tmp_path, "image"))]
    assert caplog.text.count("left out") == 1


def test_unreadable_samples_are_restored_and_not_tried_again(tmp_path):
    source = folder(tmp_path, "image")()
    bad_file(tmp_path, "image").write_bytes(b"")
    loader = loader_of(source, "image")
    next(iter(loader))
    resumed = loader_of(source, "image")
    resumed.restore_failures(loader.failure_state())
    assert (resumed.failures, resumed.files, resumed.fatal) == (loader.failures, loader.files, {})


class Deadly(ViewGenerator):
    """A view that ends or holds up its process at one sample, as native decoders do."""

    modality, ragged = "image", True

    def __init__(self, sample, how):
        self.sample, self.how = sample, how

    def draw(self, keys, meta):
        return {"sample": keys.fields[:, 2]}

    def apply(self, batch, params):
        if bool((params["sample"] == self.sample).any()):
            if self.how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif self.how == "hang":
                with decoder_errors("endless"):
                    time.sleep(600)
        return batch


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_a_sample_that_crashes_or_hangs_its_worker_costs_itself(how, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mmcon.loading.lost_workers.POLL_SECONDS", 0.5)
    source = folder(tmp_path, "image")()
    bad = int(source.ids[BAD // 2])

    def batches(how, **options):
        view = Chain(Deadly(bad, how), VIEWS["image"]())
        sampler = UniformSampler(source.ids, batch_size=4, seed=0)
        loader = ViewLoader(source, {"image": [view, view]}, sampler, seed=0, decode_seconds=1.0, **options)
        return [batch for _ in range(2) for batch in loader], loader

    whole, _ = batches("none")
    with caplog.at_level(logging.WARNING, "mmcon"):
        found, loader = batches(how, workers=2)
    assert [batch.step for batch in found] == [batch.step for batch in whole]
    for expected, batch in zip(whole, found, strict=True):
        kept = expected.index["image"]["sample"] != bad
        assert torch.equal(batch.index["image"]["sample"], expected.index["image"]["sample"][kept])
        assert torch.equal(rows(batch, "image"), rows(expected, "image")[kept])
    (file,) = loader.files.values()
    assert file == source.name_of(BAD // 2)
    reason = {"crash": "ended the worker process", "hang": "made no progress for 1 s"}[how]
    assert f"{file}: its decoding {reason}" in caplog.text


def test_workers_that_are_killed_from_outside_are_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mmcon.loading.lost_workers.POLL_SECONDS", 0.5)
    source = folder(tmp_path, "image")()
    sampler = UniformSampler(source.ids, batch_size=4, seed=0)
    view = VIEWS["image"]()
    whole = list(ViewLoader(source, {"image": [view]}, sampler, seed=0))
    loader = ViewLoader(source, {"image": [view]}, sampler, seed=0, workers=1, prefetch=1)
    found = iter(loader)
    first = next(found)
    os.kill(int(loader._tracked.processes[0]), signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "mmcon"):
        rest = list(found)
    assert not loader.failures
    for expected, batch in zip(whole, [first, *rest], strict=True):
        assert torch.equal(rows(batch, "image"), rows(expected, "image"))


class EndsWorkers(ViewGenerator):
    """A view that ends its worker process at every batch, and at no sample alone, as a lack of memory does."""

    modality, ragged = "image", True

    def draw(self, keys, meta):
        return {"sample": keys.fields[:, 2]}

    def apply(self, batch, params):
        if len(batch) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


def test_workers_that_are_lost_three_times_in_a_row_without_a_sample_end_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mmcon.loading.lost_workers.POLL_SECONDS", 0.5)
    source = folder(tmp_path, "image")()
    view = Chain(EndsWorkers(), VIEWS["image"]())
    sampler = UniformSampler(source.ids, batch_size=2, seed=0)
    loader = ViewLoader(source, {"image": [view]}, sampler, seed=0, workers=1, prefetch=1)
    with caplog.at_level(logging.WARNING, "mmcon"), pytest.raises(DataError, match="worker"):
        next(iter(loader))
    assert caplog.text.count("was killed at steps") == 2  # the third loss is the error
    assert not loader.failures


def test_the_largest_image_is_an_option_of_the_source(tmp_path):
    opened = folder(tmp_path, "image")
    Image.new("RGB", (50, 50)).save(bad_file(tmp_path, "image"))  # the others have 40 × 30 pixels
    source = opened(max_pixels=2_000, max_failures=0.1)
    assert (len(source), len(opened(max_failures=0.1))) == (N - 1, N)


def test_a_text_of_an_archive_that_was_cut_is_left_out(tmp_path):
    with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
        for number in range(N):
            member = tarfile.TarInfo(f"{number:03}.txt")
            member.size = 900
            archive.addfile(member, io.BytesIO(b"many words " * 81 + b"end word\n"))
    source = create_source(tmp_path / "train-000.tar", modality="text", split="all")
    os.truncate(tmp_path / "train-000.tar", (512 + 1_024) * (N - 1) + 512 + 300)
    loader = ViewLoader(
        source,
        {"text": [create_view("text/words")]},
        UniformSampler(source.ids, batch_size=N, seed=0),
        seed=0,
    )
    assert next(iter(loader)).index["text"].n == N - 1
    assert loader.files == {int(source.ids[N - 1]): f"{tmp_path / 'train-000.tar'}: {N - 1:03}"}
    assert "train-000.tar: expected 900 bytes" in next(iter(loader.failures.values()))


@pytest.mark.slow
def test_a_dataset_that_waits_for_a_fifo_is_ended_by_the_time_limit_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcon.loading.lost_workers.POLL_SECONDS", 0.5)
    source = dataset(tmp_path, "image")()
    replace_by_fifo(bad_file(tmp_path, "image"))
    loader = loader_of(source, "image", workers=1, decode_seconds=1.0)
    assert next(iter(loader)).index["image"].n == 2 * (N - 1)
    assert list(loader.files.values()) == [str(bad_file(tmp_path, "image"))]
