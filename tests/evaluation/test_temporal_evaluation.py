"""The seam of time: a span is drawn from a clip's header, only it is decoded, and its seconds reach the loss.

The generator goes through the same chain, loader, batch and weighted loss as images do, with a graded affinity of time.
"""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.video.per_clip import PerClip

from mmcon.affinity import SameLabel, TimeKernel
from mmcon.loading.loader import ViewLoader
from mmcon.media import VideoHandle, open_video
from mmcon.media import video_container as decoding
from mmcon.objective.objective import Objective
from mmcon.random import keys, stable_ids
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source
from mmcon.views import Chain, meta_of

RATE, SECONDS = 10, 6


def write_clip(path: Path, *, seconds: int = SECONDS, size: tuple[int, int] = (48, 64)) -> None:
    """A clip whose brightness tells the time: frame i has grey level 4 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "10", "crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(seconds * RATE):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 4 * i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Clips(Source):
    """Clips by path, opened by their headers."""

    def __init__(self, files: list[Path]) -> None:
        self.clips = [open_video(file, name=file.name) for file in files]
        super().__init__(
            ids=stable_ids(clip.name for clip in self.clips), modality="video", labels=torch.arange(len(files)) % 2
        )

    def open(self, rows) -> list[VideoHandle]:
        return [self.clips[int(row)] for row in rows]


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    for i in range(4):
        write_clip(tmp_path / f"{i}.mp4", size=(48, 64) if i % 2 else (64, 48))
    return Clips(sorted(tmp_path.glob("*.mp4")))


def seam_view() -> Chain:
    return Chain(
        ("clip", create_view("video/random-clip", frames=3, stride=1)),
        ("crop", PerClip(RandomResizedCrop(size=16))),
        ("flip", PerClip(create_view("image/flip"))),
        name="seam",
    )


def loader_of(clips: Clips, **options) -> ViewLoader:
    view = seam_view()
    sampler = UniformSampler(clips.labels, batch_size=4, seed=0)
    return ViewLoader(clips, {"video": [view, view]}, sampler, seed=0, **options)


def test_the_span_is_drawn_before_anything_is_decoded(clips: Clips, monkeypatch: pytest.MonkeyPatch):
    decoded: list[float] = []
    frames_of = decoding._OpenContainer.frames

    def counted(self, **options):
        for frame in frames_of(self, **options):
            decoded.append(frame.time)
            yield frame

    monkeypatch.setattr(decoding._OpenContainer, "frames", counted)
    view, handles = seam_view(), clips.open([0, 1, 2, 3])
    params = view.draw(keys(sample=clips.ids), meta_of(handles, "video"))
    assert decoded == []
    view.apply(handles, params)
    # Three frames, at worst nine after a keyframe (one each second) and one beyond, of the clip's sixty.
    assert 0 < len(decoded) <= 4 * (3 + 9 + 1)


def test_the_seconds_in_the_table_are_those_of_the_pixels(clips: Clips):
    batch = next(iter(loader_of(clips)))
    (views,) = batch.views["video"]
    table = batch.index["video"]
    assert views.shape == (8, 3, 3, 16, 16)
    # Grey level 4 i at i / RATE seconds; a moment shows the last frame that is not after it.
    shown = torch.floor(table["time_start"] * RATE + 1e-4)
    brightness = views.mean((2, 3, 4))[:, 0].double() * 255
    assert (brightness - 4 * shown).abs().max() < 2.0
    assert torch.allclose(table["time"], (table["time_start"] + table["time_end"]) / 2)
    assert torch.allclose(table["time_end"] - table["time_start"], torch.full((8,), 3 / RATE, dtype=torch.float64))
    assert table["group"].unique().numel() == 4
    assert torch.equal(table["group"][:4], table["group"][4:])


def test_workers_make_the_same_batch(clips: Clips):
    alone, helped = next(iter(loader_of(clips))), next(iter(loader_of(clips, workers=1)))
    assert torch.equal(alone.views["video"][0], helped.views["video"][0])
    assert all(torch.equal(column, helped.index["video"][name]) for name, column in alone.index["video"].items())


@pytest.mark.parametrize("kernel", ["gaussian", "exponential", "linear", "step"])
def test_time_weighs_pairs_in_the_same_objective_as_labels(clips: Clips, kernel: str):
    batch = next(iter(loader_of(clips)))
    table = batch.index["video"]
    encoder = torch.nn.Linear(3 * 3 * 16 * 16, 5, dtype=torch.float64)
    z = torch.nn.functional.normalize(encoder(batch.views["video"][0].flatten(1).double()), dim=1)
    objective = Objective(affinity=TimeKernel(width_seconds=2.0, kernel=kernel), temperature=0.1)
    loss = objective({"time": {"video": z}}, batch)

    # The loss pair by pair, from its equation: -Σ_j Ŵ_ij (s_ij - log Σ_k≠i e^{s_ik}), mean over anchors with positives.
    weight_at = {
        "gaussian": lambda x: math.exp(-0.5 * x * x),
        "exponential": lambda x: math.exp(-x),
        "linear": lambda x: max(0.0, 1 - x),
        "step": lambda x: float(x <= 1),
    }[kernel]
    losses = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        weights = {
            j: weight_at(abs(float(table["time"][i] - table["time"][j])) / 2.0)
            * float(table["group"][i] == table["group"][j])
            for j in others
        }
        if sum(weights.values()) == 0:
            continue
        s = {j: z[i] @ z[j] / 0.1 for j in others}
        log_all = torch.logsumexp(torch.stack(list(s.values())), 0)
        losses.append(-sum(w / sum(weights.values()) * (s[j] - log_all) for j, w in weights.items()))
    expected = torch.stack(losses).mean() if losses else torch.zeros(())
    assert torch.allclose(loss, expected.to(loss.dtype), atol=1e-9)
    loss.backward()
    assert torch.isfinite(encoder.weight.grad).all()
    if losses:
        assert encoder.weight.grad.abs().sum() > 0


def test_time_times_class_is_one_affinity(clips: Clips):
    table = next(iter(loader_of(clips))).index["video"]
    both = (TimeKernel(width_seconds=2.0, group=None) * SameLabel()).bind(table).dense()
    lag = (table["time"][:, None] - table["time"]).abs()
    expected = torch.exp(-0.5 * (lag / 2.0) ** 2) * (table["label"][:, None] == table["label"])
    assert torch.allclose(both.double(), expected)


def test_a_learnable_width_receives_its_gradient(clips: Clips):
    batch = next(iter(loader_of(clips)))
    width = torch.tensor(2.0, requires_grad=True)
    objective = Objective(affinity=TimeKernel(width_seconds=width, group=None), temperature=0.1)
    z = torch.nn.functional.normalize(batch.views["video"][0].flatten(1)[:, :7], dim=1)
    objective({"time": {"video": z}}, batch).backward()
    received = [p.grad for p in (width, *objective.parameters()) if p.grad is not None]
    assert received
    assert all(g.abs().sum() > 0 for g in received)
