"""Video as a whole: sources, encoders, affinity by overlap, figures of time, the sheet, and the recipe."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from inference_cases import check_saved_model
from launched_recipes import page_of
from made_videos import EVEN, write

from mmcon.affinity.spans import SpanOverlap
from mmcon.batch import Index
from mmcon.errors import DataError, InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.temporal import (
    lag_correlation,
    lag_error,
    order_accuracy,
    retrieval_seconds,
    slowness,
    slowness_spectrum,
)
from mmcon.loading.loader import ViewLoader
from mmcon.models.encoders import create_encoder
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.bundled.motion_clips import motion, real_clip
from mmcon.sources.factory import create_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        (tmp_path / "videos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "videos" / "ab"[i % 2] / f"{i}.mp4", stamps=EVEN[: 10 + 5 * i])
    return tmp_path / "videos"


def test_a_folder_is_split_by_whole_videos_and_labelled_by_its_sub_folders(folder: Path):
    train, test, every = (
        create_source(folder, modality="video", split=s, fold=(0, 3)) for s in ("train", "test", "all")
    )
    assert (len(train), len(test), len(every)) == (4, 2, 6)
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert every.classes == ("a", "b")
    assert every.labels is not None
    assert every.labels.bincount().tolist() == [3, 3]
    assert sorted(every.facts["frames"].tolist()) == [10, 15, 20, 25, 30, 35]


def test_unreadable_videos_are_counted_and_named(folder: Path, tmp_path: Path):
    (folder / "a" / "broken.mp4").write_bytes(b"not a video")
    listed = tmp_path / "bad.jsonl"
    source = create_source(folder, modality="video", split="all", max_failures=0.5, quarantine=listed)
    assert len(source) == 6
    assert "1 unreadable" in source.describe()
    assert json.loads(listed.read_text())["file"].endswith("broken.mp4")
    with pytest.raises(DataError, match="1 of 7"):
        create_source(folder, modality="video", split="all", max_failures=0.1)


def test_a_video_that_breaks_off_is_left_out_when_its_end_is_reached_and_named(folder: Path):
    cut = folder / "a" / "cut.mp4"
    with (
        av.open(str(write(folder.parent / "whole.mp4", stamps=EVEN))) as whole,
        av.open(str(cut), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.8)])
    source = create_source(folder, modality="video", split="all")  # its header is whole
    assert len(source) == 7
    view = create_view("video/plain", size=16, frames=40, stride=1)
    loader = ViewLoader(source, {"video": [view]}, UniformSampler(torch.arange(7), batch_size=7, seed=0), seed=0)
    batch = next(iter(loader))
    assert len(batch.views["video"][0]) == 6
    (why,) = loader.failures.values()
    assert "cut.mp4" in why
    assert "leave it out" in why


def test_windows_keep_the_clock_and_the_clip(folder: Path):
    source = create_source(folder, modality="video", split="all")
    windows = source.windows(1.0, step=0.5)
    assert len(windows) > len(source)
    assert set(windows.facts["group"].tolist()) == set(source.facts["group"].tolist())
    assert len(windows.ids.unique()) == len(windows)
    assert float(windows.facts["start_seconds"].max()) > 1.0


def test_a_manifest_brings_spans_labels_and_scores(folder: Path):
    table = folder / "clips.csv"
    table.write_text(
        "path,label,start_seconds,end_seconds,excitement,split\n"
        "a/4.mp4,run,0,1,0.5,train\na/4.mp4,walk,1,2.5,2.0,train\nb/5.mp4,run,,,7,test\n"
    )
    train, test = (
        create_source(table, modality="video", split="train"),
        create_source(table, modality="video", split="test"),
    )
    assert (len(train), len(test)) == (2, 1)
    assert train.columns["excitement"].tolist() == [0.5, 2.0]
    assert train.facts["duration_seconds"].tolist() == [1.0, 1.5]
    assert train.facts["group"].unique().numel() == 1
    table.write_text("scan\nx.mp4\n")
    with pytest.raises(DataError, match="column of video media"):
        create_source(table, modality="video")


def test_empty_and_mixed_folders_are_refused(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected video files"):
        create_source(tmp_path / "empty", modality="video", split="all")
    write(folder / "loose.mp4", stamps=EVEN[:10])
    with pytest.raises(DataError, match="1 of 7 loose"):
        create_source(folder, modality="video", split="all")


def test_bundled_clips_open():
    test = motion("test")
    assert len(test) == 80
    assert test.open([0])[0].decode([0.0, 1.0]).shape == (2, 3, 64, 64)
    assert test.columns["motion"].bincount().tolist() == [10] * 8
    clip = real_clip()
    assert len(clip) == 1
    assert 5 < float(clip.facts["duration_seconds"][0]) < 6


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "width"), [("mean", 1), ("max", 1), ("motion", 2)])
def test_pooling_over_time(pooling: str, width: int):
    encoder = create_encoder("mmcon/frames", modality="video", image_size=16, pooling=pooling).eval()
    clips = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = encoder(clips)
    assert features.shape == (2, encoder.feature_dim)
    frames = torch.stack([encoder.encoder(clips[:, t]) for t in range(4)], 1)
    backwards = encoder(clips.flip(1))
    if pooling == "motion":
        half = encoder.feature_dim // width
        assert torch.allclose(features[:, half:], (frames[:, 3] - frames[:, 0]) / 3, atol=1e-5)
        assert torch.allclose(backwards[:, half:], -features[:, half:], atol=1e-5)
    else:
        expected = frames.mean(1) if pooling == "mean" else frames.amax(1)
        assert torch.allclose(features, expected, atol=1e-5)
        assert torch.allclose(backwards, features, atol=1e-5)


@pytest.mark.slow
def test_torchvision_without_its_classifier():
    encoder = create_encoder("r3d_18", modality="video").eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 4, 3, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize(
    "kind", ["videomae", *(pytest.param(k, marks=pytest.mark.slow) for k in ("timesformer", "vivit"))]
)
def test_transformers_from_a_local_folder(kind: str, tmp_path: Path):
    import transformers

    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"image_size": 32, "num_frames": 4}
    config, model = {
        "videomae": (transformers.VideoMAEConfig, transformers.VideoMAEModel),
        "timesformer": (transformers.TimesformerConfig, transformers.TimesformerModel),
        "vivit": (transformers.VivitConfig, transformers.VivitModel),
    }[kind]
    patches = {"tubelet_size": [2, 16, 16]} if kind == "vivit" else {"patch_size": 16}
    torch.manual_seed(0)
    made = model(config(**small, **patches)).eval()
    made.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}')
    encoder = create_encoder(str(tmp_path), modality="video", pretrained=True).eval()
    clips = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, std = (torch.tensor(v)[:, None, None] for v in ([0.1, 0.2, 0.3], [1.0, 1.0, 2.0]))
        hidden = made(pixel_values=(clips - mean) / std).last_hidden_state
        expected = hidden.mean(1) if kind == "videomae" else hidden[:, 0]
        assert torch.allclose(encoder(clips), expected, atol=1e-5)
    with pytest.raises(InputError, match="4 frames of 32 pixels"):
        encoder(clips[:, :2])


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"config\.json"):
        create_encoder(str(tmp_path), modality="video")


# --- affinity by overlap ---------------------------------------------------------------------------------------------


def test_overlap_is_shared_time_over_covered_time():
    start, end = torch.tensor([0.0, 1.0, 5.0, 0.0]), torch.tensor([2.0, 4.0, 6.0, 2.0])
    table = Index({"time_start": start, "time_end": end, "group": torch.tensor([1, 1, 1, 2])})
    weights = SpanOverlap().bind(table).dense()
    for i in range(4):
        for j in range(4):
            both = max(0.0, min(float(end[i]), float(end[j])) - max(float(start[i]), float(start[j])))
            either = max(float(end[i]), float(end[j])) - min(float(start[i]), float(start[j]))
            same = int(table["group"][i]) == int(table["group"][j])
            assert float(weights[i, j]) == pytest.approx(both / either if same else 0.0)


# --- figures of time -------------------------------------------------------------------------------------------------


def features_of(of_time, *, clips: int = 5, n: int = 20, step: float = 0.1) -> Features:
    time = torch.arange(n) * step
    values = torch.cat([of_time(time, g) for g in range(clips)])
    table = {"time": time.repeat(clips).double(), "group": torch.arange(clips).repeat_interleave(n)}
    return Features(values.float(), Index(table))


def test_slowness_of_a_sine_is_its_frequency():
    """x = sin(ωt) has E[ẋ²]/Var = ω² over whole periods; differences at a step h measure (2 sin(ωh/2)/h)²."""
    step, n = 2 * math.pi / 200, 2000
    features = features_of(lambda t, g: torch.stack([torch.sin(t), torch.sin(5 * t)], 1), clips=1, n=n, step=step)
    expected = torch.tensor([(2 * math.sin(w * step / 2) / step) ** 2 for w in (1, 5)], dtype=torch.float64)
    assert torch.allclose(slowness(features), expected, rtol=2e-3)


def test_the_spectrum_is_that_of_the_sources_in_any_basis():
    step, n = 2 * math.pi / 200, 2000
    mix = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))[0] @ torch.diag(
        torch.tensor([3.0, 1.0])
    )
    plain = features_of(lambda t, g: torch.stack([torch.sin(t), torch.sin(5 * t)], 1), clips=1, n=n, step=step)
    mixed = Features(plain.values @ mix, plain.index)
    assert torch.allclose(slowness_spectrum(mixed, keep=1.0), slowness_spectrum(plain, keep=1.0), rtol=1e-3)
    assert torch.allclose(slowness_spectrum(plain, keep=1.0), slowness(plain), rtol=1e-2)


def test_features_that_are_time_have_perfect_figures():
    train = features_of(lambda t, g: torch.stack([t + g, torch.ones_like(t)], 1))
    test = features_of(lambda t, g: torch.stack([t - g, torch.ones_like(t)], 1), clips=3)
    assert float(lag_correlation(test).min()) > 0.995  # ties of equal lags are broken by rounding
    assert torch.allclose(order_accuracy(train, test, l2=1e-9), torch.ones(3).double())
    assert float(lag_error(train, test, l2=1e-9).max()) < 1e-3


def test_features_on_a_circle_find_their_neighbours():
    circle = features_of(lambda t, g: torch.stack([torch.sin(t), torch.cos(t)], 1))
    assert torch.allclose(retrieval_seconds(circle), torch.full((5,), 0.1).double(), atol=1e-6)


def test_features_that_ignore_time_have_none():
    noise = features_of(lambda t, g: torch.randn(20, 4, generator=torch.Generator().manual_seed(g)), clips=40)
    assert float(lag_correlation(noise).mean().abs()) < 0.05
    assert float(order_accuracy(noise.take(slice(0, 400)), noise.take(slice(400, None))).mean()) == pytest.approx(
        0.5, abs=0.06
    )
    constant = features_of(lambda t, g: torch.ones(20, 2))
    assert torch.equal(lag_correlation(constant), torch.zeros(5).double())
    assert bool(slowness(constant).isnan().all())


def test_one_moment_of_a_clip_is_not_enough():
    with pytest.raises(InputError, match="at least 3 frame times"):
        lag_correlation(features_of(lambda t, g: t[:, None], n=2))


# --- the sheet and the recipe ----------------------------------------------------------------------------------------


def test_the_sheet_is_drawn(tmp_path: Path):
    from mmcon.random import keys
    from mmcon.registry import create_view
    from mmcon.report.video_sheet import open_sample, write_sheet
    from mmcon.views import as_chain, meta_of

    sample = open_sample(write(tmp_path / "clip.mp4", stamps=EVEN))
    view = as_chain(create_view("video/graded", size=16, frames=3))
    params = view.draw(keys(sample=1, view=range(4)), meta_of([sample] * 4, "video"))
    views = view.apply([sample] * 4, params)
    write_sheet(tmp_path / "sheet.png", sample, views, ["drawn"] * 4, "four views", params=params)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="draws spans of time"):
        write_sheet(tmp_path / "no.png", sample, views, ["drawn"] * 4, "none", params={})


def test_similarity_by_lag_is_that_of_the_pairs(tmp_path: Path):
    from mmcon.report.video_sheet import _by_lag, write_similarity_by_lag

    circle = features_of(lambda t, g: torch.stack([torch.sin(t), torch.cos(t)], 1), clips=3)
    centres, curves = _by_lag(circle, 2)
    # Of twenty moments a tenth of a second apart, 20 − k pairs have the lag k, whose cosine is cos(k / 10).
    expected = [
        sum((20 - k) * math.cos(k / 10) for k in lags) / sum(20 - k for k in lags)
        for lags in (range(1, 10), range(10, 20))
    ]
    assert torch.allclose(curves, torch.tensor(expected, dtype=torch.float64).expand(3, 2), atol=1e-5)
    assert centres.tolist() == pytest.approx([0.475, 1.425])
    write_similarity_by_lag(tmp_path / "lag.png", {"circle": circle})
    assert (tmp_path / "lag.png").stat().st_size > 5_000


def test_the_examples_of_the_document_run_and_an_own_grading_is_learned_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    text = (Path(__file__).parents[2] / "docs" / "video.md").read_text()
    known: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, known)
    assert known["weights"].shape == (12, 12)
    # Scores rise from 1 to 5 in two seconds, so that a second is worth 2, twice the width.
    time = known["batch"].index["video"]["time"]
    expected = (-((2 * (time[:, None] - time)) ** 2) / 2).exp()
    assert torch.allclose(known["weights"].double(), expected.double(), atol=1e-5)
    table = folder / "clips.csv"
    table.write_text("path,start_seconds,end_seconds,excitement\na/4.mp4,0,1,1\na/4.mp4,1,2,3\nb/5.mp4,0,1,3\n")
    view = create_view("video/plain", size=16, frames=2)
    source = create_source(table, modality="video", split="all")
    loader = ViewLoader(source, {"video": [view]}, UniformSampler(torch.arange(3), batch_size=3, seed=0), seed=0)
    index = next(iter(loader)).index["video"]
    scores = index["excitement"]
    assert torch.allclose(known["by_score"](index, index), (-(scores[:, None] - scores).abs() / 2).exp())
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    known["objective"]({"shared": {"video": rows}}, next(iter(loader))).backward()
    assert rows.grad is not None
    assert float(rows.grad.abs().min(1).values.min()) > 0


@pytest.mark.slow
def test_the_recipe_runs_and_leaves_its_figures(tmp_path: Path):
    recipe = Path(__file__).parents[2] / "recipes" / "video_graded.py"
    command = [sys.executable, str(recipe), "--tiny", "--cpu", "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for state in ("plain", "disturbed"):
        assert {"trained", "random", "raw_pixels"} <= set(results[state])
        assert -1 <= results[state]["trained"]["lag_correlation"] <= 1
        spectrum = results[state]["slow"]["slowness_spectrum"]
        assert 0 < spectrum[0] <= spectrum[-1]
        assert len(results[state]["slow"]["slowness"]) == 64
    assert "nearest neighbor" in done.stdout
    assert "slowest three" in done.stdout
    assert page_of(tmp_path / "run")[1] == {"picture", "clip"}
    test = create_source("samples/scenes", split="test")
    model = check_saved_model(tmp_path / "run", test, "trained_plain")
    assert model.spaces == ("slow", "fast")
    assert model.classes is None or set(model.classes) <= set(test.classes)


@pytest.mark.slow
def test_the_recipe_takes_a_manifest_and_scores_of_annotators(tmp_path: Path):
    lines, scores = ["path,start_seconds,end_seconds,excitement"], ["video,seconds,score"]
    for i in range(6):
        write(tmp_path / f"{i}.mp4", stamps=EVEN[:30])
        lines += [f"{i}.mp4,0,1,{i}", f"{i}.mp4,1,3,{i + 1}"]
        scores += [f"{i}.mp4,0,{i}", f"{i}.mp4,3,{i + 2}"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "scores.csv").write_text("\n".join(scores))
    recipe = Path(__file__).parents[2] / "recipes" / "video_graded.py"
    command = [sys.executable, str(recipe), "--tiny", "--cpu", "--output-dir", str(tmp_path / "run")]
    command += ["--data", str(tmp_path / "list.csv"), "--scores", str(tmp_path / "scores.csv"), "--score-width", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["widths_scores"] == {"slow": 0.5, "fast": 0.125}
    assert "kernel widths: slow 0.5, fast 0.125" in done.stdout
