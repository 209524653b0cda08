"""Every registered view of every modality has the same bits with any number of intra-op threads and of workers.

The views of a modality are loaded together, as a run loads them. Samples are longer than 32,768 numbers, from which on
torch divides an operation among threads, and their sizes are odd, so that parts end within a vector register.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import mmcon
from mmcon.loading.loader import ViewLoader
from mmcon.media import AudioHandle, ImageHandle, TextHandle
from mmcon.media.instances import Instances
from mmcon.media.video import FrameStack
from mmcon.registry import lookup
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import DatasetSource
from mmcon.views import Chain, ViewGenerator

BATCH = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "audio/byol-a": {"mean": -5.0, "std": 4.0},
    "audio/noise": {"slope_db": (-6.0, 3.0)},
    "audio/spec-augment-policy": {"policy": "SM"},
    "image/crop": {"size": 160},
    "text/column": {"column": "de"},
    "text/declutr": {"role": "anchor", "shortest": 3, "longest": 40},
    "text/span-mask": {"mask_id": 4},
    "video/bounded-gap-clip": {"gap_seconds": 1.0, "frames": 3, "stride": 2},
    "video/rho-byol": {"gap_seconds": 1.0, "frames": 3, "stride": 2},
    "video/window-frames": {"views": 4},
    "video/cvrl": {"frames": 3},
    "video/tclr": {"frames": 4},
    "video/graded": {"frames": 3},
    "video/plain": {"frames": 3},
}
SIZED = {"image": {"size": 97}, "video": {"size": 37, "frames": 5}}
AFTER_LOG_MEL = ("standardize", "spec-augment", "spec-augment-policy", "resize-crop", "fader", "mixup-memory")


def samples(modality: str) -> list[Any]:
    draw = np.random.default_rng(0)
    if modality == "audio":
        lengths = [61_111, 90_001, 16_001]
        waves = [draw.standard_normal((1, n)).astype(np.float32) * 0.1 for n in lengths]
        return [AudioHandle(wave, source_rate_hz=22_050) for wave in waves]
    if modality == "image":
        return [ImageHandle(draw.integers(0, 256, (251, 243 + i, 3), dtype=np.uint8)) for i in range(BATCH)]
    if modality == "video":
        frames = [torch.from_numpy(draw.integers(0, 256, (40, 3, 61, 71), dtype=np.uint8)) for _ in range(BATCH)]
        return [FrameStack(f, frames_per_second=10.0, name=f"clip {i}") for i, f in enumerate(frames)]
    words = "The quick brown fox jumps over the lazy dog and runs on through the dark and quiet forest at night"
    return [TextHandle((f"{words} {i}", f"Der schnelle Fuchs {i}"), ("en", "de")) for i in range(BATCH)]


def generators(modality: str, folder: Any) -> Iterator[tuple[str, ViewGenerator]]:
    """By name, every registered view of the modality, completed to a chain that begins with undecoded samples."""
    for name in mmcon.list_views(modality):
        kind, _, short = name.partition("/")
        if kind not in (modality, "any"):
            continue
        options = dict(OPTIONS.get(name, {}))
        taken = lookup("view", name).options
        if "size" in taken and modality in SIZED:
            options = {"size": SIZED[modality]["size"], **options}
        if name == "audio/background":
            soundfile.write(folder / "babble.wav", np.random.default_rng(1).standard_normal(50_000) * 0.1, 16_000)
            options = {"recordings": [folder / "babble.wav"]}
        yield name, completed(modality, short, mmcon.create_view(name, **options))


def completed(modality: str, short: str, view: ViewGenerator) -> ViewGenerator:
    """The view between those that it needs: first the decoding and the size, last the tokens."""
    first: list[ViewGenerator] = []
    last: list[ViewGenerator] = []
    if modality == "audio" and not view.ragged:
        first = [mmcon.create_view("audio/crop", window_seconds=2.0625)]
        first += [mmcon.create_view("audio/log-mel", bands=61)] * (short in AFTER_LOG_MEL)
    if modality == "image" and not view.ragged:
        first = [mmcon.create_view("image/random-resized-crop", size=97)]
    if short in ("reverse", "shuffle"):
        first = [mmcon.create_view("video/plain", frames=5, size=37)]
    if short in ("token-dropout", "span-mask"):
        first = [mmcon.create_view("text/tokens", max_tokens=24)]
    if short in ("any-column", "column", "declutr", "typos", "case-noise", "word-delete", "word-swap"):
        last = [mmcon.create_view("text/tokens", max_tokens=24)]
    if short == "instance":
        last = [mmcon.create_view(f"{modality}/plain", **SIZED.get(modality, {}))]
    return Chain(*first, view, *last) if first or last else view


def first_batch(modality: str, folder: Any, *, workers: int, threads: int) -> dict[str, list[torch.Tensor]]:
    """By view, the tensors of the first batch."""
    named = dict(generators(modality, folder))
    handles = [Instances([handle, handle], max_instances=2) for handle in samples(modality)]
    before = torch.get_num_threads()
    made = {}
    try:
        torch.set_num_threads(threads)
        for instances in (False, True):
            names = [name for name in named if name.startswith("any/") == instances]
            items = handles if instances else samples(modality)
            source = DatasetSource(items, modality=modality)
            sampler = UniformSampler(torch.zeros(BATCH, dtype=torch.int64), batch_size=BATCH, seed=0)
            loader = ViewLoader(source, {modality: [named[n] for n in names]}, sampler, seed=0, workers=workers)
            views = next(iter(loader)).views[modality]
            made |= {name: list(tensors(view)) for name, view in zip(names, views, strict=True)}
    finally:
        torch.set_num_threads(before)
    return made


def tensors(view: Any) -> Iterator[torch.Tensor]:
    if isinstance(view, torch.Tensor):
        yield view
    else:
        for part in view.values():
            yield from tensors(part)


def assert_same_bits(made: dict[str, list[torch.Tensor]], expected: dict[str, list[torch.Tensor]]) -> None:
    assert list(made) == list(expected)
    different = [name for name in made if not all(map(torch.equal, made[name], expected[name]))]
    assert not different


@pytest.mark.parametrize("modality", ["audio", "image", "text", "video"])
def test_threads_do_not_change_a_bit(tmp_path, modality):
    alone = first_batch(modality, tmp_path, workers=0, threads=1)
    assert all(view[0].numel() for view in alone.values())
    for threads in (2, 4):
        assert_same_bits(first_batch(modality, tmp_path, workers=0, threads=threads), alone)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "image", "text", "video"])
def test_workers_do_not_change_a_bit(tmp_path, modality):
    alone = first_batch(modality, tmp_path, workers=0, threads=2)
    for workers in (1, 2):
        assert_same_bits(first_batch(modality, tmp_path, workers=workers, threads=2), alone)


def test_a_generator_of_one_thread_has_one_in_place_too():
    class Threads(ViewGenerator):
        single_thread = True

        def draw(self, keys, meta):
            return {}

        def apply(self, batch, params):
            return torch.full_like(batch, torch.get_num_threads())

        def apply_(self, batch, params):
            batch.fill_(torch.get_num_threads())

    before, batch = torch.get_num_threads(), torch.zeros(2)
    try:
        torch.set_num_threads(3)
        Threads().apply_(batch, {})
        assert torch.cat([batch, Threads().apply(batch, {})]).tolist() == [1.0] * 4
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
