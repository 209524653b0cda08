"""The number of worker processes that a run takes by itself; a device and shared memory that are not there."""

from types import SimpleNamespace

import pytest
import torch

import mmcon
from mmcon.sources.base import DatasetSource, Subset, TensorSource
from mmcon.sources.joined import JoinedSource
from mmcon.training import environment
from mmcon.training.config import RunSettings, check_changes, parse

GPU, VIEWS = torch.device("cuda"), {"image": [mmcon.create_view("image/plain", size=28)] * 2}
FILES = DatasetSource([f"{number}.jpg" for number in range(40)])
PIXELS = TensorSource(torch.zeros(40, 1, 2, 2, dtype=torch.uint8))


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """The number of workers, and what is printed; shared memory in MiB, of a folder that may be missing."""

    def number(given=None, source=FILES, device=GPU, threads=16, free=65_536, folder=tmp_path, views=VIEWS):
        told = []
        monkeypatch.setattr(environment, "SHARED_MEMORY", folder)
        monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 2**20))
        return environment.choose_workers(given, source, views, 64, device, threads, told.append), told

    return number


def test_workers_decode_files_beside_a_gpu_with_all_cores_but_two(choose):
    assert choose() == (14, ["14 worker(s) decode files: 16 core(s), 64.0 GiB of shared memory; or --workers N"])
    assert choose(source=Subset(FILES, range(20, 40)))[0] == 14
    assert choose(threads=2)[0] == choose(threads=1)[0] == 0


def test_shared_memory_holds_two_batches_of_each_worker(choose, tmp_path):
    assert choose(free=256 * 3)[0] == 3  # 2 batches · 64 samples · 2 views · 1 MiB
    assert choose(free=64) == (0, ["0 worker(s) decode files: 16 core(s), 0.1 GiB of shared memory; or --workers N"])
    assert choose(folder=tmp_path / "missing")[0] == 0


@pytest.mark.parametrize(("size", "of_view"), [(28, 1), (384, 3.375)])
def test_large_images_count_by_their_size(choose, size, of_view):
    """In float32 with those of a partner: one of 384 px has 1.7 MiB."""
    assert choose(free=256 * 3, views={"image": [mmcon.create_view("image/simclr", size=size)] * 2})[0] == 3 // of_view


def test_views_of_unknown_size_count_more_and_clips_or_none_have_no_workers(choose):
    """A clip of 16 frames at 224 px has 9 MiB: a machine would run out of shared memory by default."""
    assert choose(free=256 * 5, views={"image": [mmcon.create_view("image/flip")] * 2})[0] == 1  # 4 MiB each
    assert choose(views={"image": []}) == choose(views={}) == (0, [])
    assert choose(views=VIEWS | {"video": [mmcon.create_view("video/graded", size=224)]}) == (0, [])


def test_a_cpu_media_in_memory_and_a_given_number_need_no_choice(choose):
    assert choose(device=torch.device("cpu")) == choose(source=PIXELS) == (0, [])
    assert choose(source=DatasetSource(["a", "b"], modality="text")) == (0, [])
    assert choose(given=0) == (0, [])
    assert choose(given=3, source=PIXELS, device=torch.device("cpu")) == (3, [])


def test_samples_of_which_some_have_files_are_decoded_too(choose):
    texts = DatasetSource(["a", "b"] * 20, modality="text")
    assert choose(source=JoinedSource(texts, FILES))[0] == 14


def test_the_flag_takes_a_number_or_none_and_may_change():
    assert parse(RunSettings, args=[]).workers is None
    assert parse(RunSettings, args=["--workers", "2"]).workers == 2
    assert check_changes({"workers": 0}, {"workers": None}) == {"workers": (0, None)}
