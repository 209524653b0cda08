"""Files that go bad: each source × each fault. The sample is left out and named by its path, and the batch goes on."""

import io
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
from mmcon.media.decoding import decoder_errors
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import DatasetSource, Source
from mmcon.sources.factory import create_source
from mmcon.sources.joined import JoinedSource
from mmcon.sources.unreadable import read_quarantine
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
