"""Laws of views of clips: what is drawn, where it lies in time, and that all frames of a view change alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import ColorJitter, Grayscale
from mmcon_views.image.crop import CropWithin, RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.video.frame_order import Reverse, Shuffle
from mmcon_views.video.per_clip import PerClip

from mmcon.errors import DataError, InputError
from mmcon.media.video import FrameStack
from mmcon.random import keys
from mmcon.registry import create_view, list_views
from mmcon.testing import check_view
from mmcon.views import Chain, as_chain, meta_of

OPTIONS = {
    "video/bounded-gap-clip": {"gap_seconds": 1.0, "frames": 3, "stride": 2},
    "video/rho-byol": {"gap_seconds": 1.0, "frames": 3, "stride": 2, "size": 12},
    "video/window-frames": {"views": 4},
    "video/cvrl": {"frames": 3, "size": 12},
    "video/tclr": {"frames": 4, "size": 12},
    "video/vince": {"size": 12},
    "video/graded": {"frames": 3, "size": 12},
    "video/plain": {"frames": 3, "size": 12},
}


def clips(n: int = 4, *, rate: float = 10.0) -> list[FrameStack]:
    """Noise, in clips of differing lengths and sizes."""
    made = []
    for i in range(n):
        generator = torch.Generator().manual_seed(i)
        frames = torch.randint(0, 256, (30 + 10 * i, 3, 20 + 2 * i, 26), dtype=torch.uint8, generator=generator)
        made.append(FrameStack(frames, frames_per_second=rate, name=f"clip {i}"))
    return made


def same_sized(n: int = 3) -> list[FrameStack]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (n, 24, 3, 16, 20), dtype=torch.uint8, generator=generator)
    return [FrameStack(f, frames_per_second=10.0, name=f"clip {i}") for i, f in enumerate(frames)]


SAMPLERS = [n for n in list_views("video") if n.startswith("video/") and n not in ("video/reverse", "video/shuffle")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_registered_sampler_and_recipe_keeps_the_laws(name: str):
    check_view(create_view(name, **OPTIONS.get(name, {})), same_sized())


@pytest.mark.parametrize("name", ["video/reverse", "video/shuffle"])
def test_temporal_views_keep_the_laws_and_say_that_they_change_the_meaning(name: str):
    view = create_view(name)
    check_view(view, torch.rand(4, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert view.preserves_labels is False


@pytest.mark.parametrize(
    "image", [Flip(), ColorJitter(), Grayscale(), Blur(), RandomResizedCrop(size=8)], ids=lambda g: type(g).__name__
)
def test_all_frames_of_a_view_change_alike(image):
    """A clip that stands still stands still afterwards, bit by bit; and clips of a batch differ from one another."""
    still = torch.rand(6, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(6, 5, 3, 16, 16).contiguous()
    out = PerClip(image)(still, keys(seed=3, sample=torch.arange(6)))
    assert all(torch.equal(out[:, 0], out[:, t]) for t in range(1, 5))
    alone = torch.stack([image(still[:, 0], keys(seed=3, sample=torch.arange(6)))], 1)
    assert torch.equal(out[:, :1], alone)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_large_frames_are_cropped_as_images_are(dtype: torch.dtype):
    """Frames above the size of gathering go through one resampling a clip: the same as image by image."""
    noise = torch.randint(0, 256, (2, 3, 3, 90, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    batch = noise if dtype == torch.uint8 else noise.float() / 255
    table = keys(seed=5, sample=torch.arange(2))
    for image in (RandomResizedCrop(size=(70, 80)), RandomResizedCrop(size=(70, 80), interpolation="bicubic")):
        view = PerClip(image)
        params = view.draw(table, meta_of(batch, "video"))
        out = view.apply(batch, params)
        each = torch.stack([image.apply(batch[:, t], params) for t in range(3)], 1)
        assert out.dtype == torch.float32
        assert torch.allclose(out, each, atol=1e-6)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        PerClip(RandomResizedCrop(size=80))(torch.full((1, 2, 3, 90, 90), 2.0), keys(sample=[1]))


def test_all_views_of_a_sample_share_its_framing():
    """Crops that keep nine tenths of a framing lie together, whatever the view, and apart from other samples'."""
    view = as_chain(create_view("video/graded", size=8, frames=1, area=(0.9, 1.0), framing=(0.05, 0.05)))
    batch = [torch.zeros(9, 3, 600, 600, dtype=torch.uint8)] * 40
    drawn = [view.draw(keys(seed=1, sample=torch.arange(40), view=v), meta_of(batch, "video")) for v in range(3)]
    left = torch.stack([d["crop"]["left"] for d in drawn]).double()
    assert float(left.std(0).max()) < 3
    assert float(left.std(1).min()) > 5
    mirrored = torch.stack([d["turn"]["flip"] for d in drawn])
    assert bool((mirrored == mirrored[:1]).all())
    assert 0 < int(mirrored[0].sum()) < 40
    check_view(view, same_sized())


def test_crops_stay_within_the_framing_of_their_sample():
    crop = CropWithin(RandomResizedCrop(area=(0.3, 0.3)), RandomResizedCrop(size=8, area=(0.2, 0.5)))
    meta = {"height": torch.full((40,), 60), "width": torch.full((40,), 80)}
    part = crop.shared.draw(keys(sample=torch.arange(40)).drop("view").child("shared"), meta)
    for number in range(4):
        box = crop.draw(keys(sample=torch.arange(40), view=number), meta)
        for start, length in (("top", "height"), ("left", "width")):
            assert bool((box[start] >= part[start]).all())
            assert bool((box[start] + box[length] <= part[start] + part[length]).all())


def test_clips_of_differing_sizes_are_changed_as_they_are_alone():
    """Clips of one shape go together; with others in the batch or alone, a clip's view is the same, bit by bit."""
    batch = [clip.decode([0.0, 0.5]) for clip in (*clips(3), *clips(3))]
    for size in (12, 80):  # gathered, and resampled clip by clip
        view = PerClip(RandomResizedCrop(size=size))
        params = view.draw(keys(sample=torch.arange(6)), meta_of(batch, "video"))
        out = view.apply(batch, params)
        for row in range(6):
            alone = {name: column[row : row + 1] for name, column in params.items()}
            assert torch.equal(view.apply([batch[row]], alone)[0], out[row])


def test_cvrl_solarizes_second_clips_alone():
    view = as_chain(create_view("video/cvrl", frames=2, size=12))
    meta = {**meta_of(same_sized(), "video")}
    meta = {name: values.repeat(200, *[1] * (values.dim() - 1)) for name, values in meta.items()}
    first, second = (
        view.draw(keys(seed=0, sample=torch.arange(len(meta["height"])), view=v), meta)["solarize"]["apply"]
        for v in (0, 1)
    )
    assert not bool(first.any())
    assert float(second.double().mean()) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_spans_lie_within_their_clips_and_the_columns_agree(name: str):
    view = create_view(name, **OPTIONS.get(name, {}))
    meta = meta_of(clips(), "video")
    for number in range(6):
        table = keys(seed=number, sample=torch.arange(4), view=number)
        params = as_chain(view).draw(table, meta)
        columns = as_chain(view).columns(meta, params)
        start, end, time = (columns[c] for c in ("time_start", "time_end", "time"))
        assert bool((start >= 0).all())
        assert bool((end <= meta["duration_seconds"] + 1e-6).all())
        assert bool((start <= time).all())
        assert bool((time <= end).all())
        assert torch.equal(columns["group"], meta["group"])


def starts(view, n: int, number: int, *, seconds: float = 100.0, rate: float = 10.0, seed: int = 0) -> torch.Tensor:
    meta = {
        "duration_seconds": torch.full((n,), seconds, dtype=torch.float64),
        "frames_per_second": torch.full((n,), rate, dtype=torch.float64),
    }
    return view.draw(keys(seed=seed, sample=torch.arange(n), view=number), meta)["times"]


def test_cvrl_gaps_have_the_published_density():
    """Density 1 − k/K on [0, K]: the distribution function is 2x − x², the mean K/3."""
    view = create_view("video/cvrl-clip", frames=4, stride=1)
    gap = (starts(view, 20_000, 0)[:, 0] - starts(view, 20_000, 1)[:, 0]).abs() / (100 - 0.4)
    assert float(gap.mean()) == pytest.approx(1 / 3, abs=0.006)
    for x in (0.1, 0.3, 0.5, 0.8):
        assert float((gap <= x).double().mean()) == pytest.approx(2 * x - x * x, abs=0.012)
    first_is_earlier = starts(view, 20_000, 0)[:, 0] < starts(view, 20_000, 1)[:, 0]
    assert float(first_is_earlier.double().mean()) == pytest.approx(0.5, abs=0.012)


def test_bounded_gaps_stay_within_their_bound_and_reach_it():
    view = create_view("video/bounded-gap-clip", gap_seconds=2.0, frames=4, stride=1)
    gap = (starts(view, 5_000, 0)[:, 0] - starts(view, 5_000, 1)[:, 0]).abs()
    assert float(gap.max()) <= 2.0
    assert float(gap.max()) > 1.95
    assert float(gap.mean()) == pytest.approx(1.0, abs=0.03)
    meta = meta_of(clips(), "video")
    params = view.draw(keys(sample=torch.arange(4)), meta)
    assert bool(((view.columns(meta, params)["overlap"] >= 0) & (view.columns(meta, params)["overlap"] <= 1)).all())


def test_tclr_dense_clips_share_the_sparse_span_out():
    view = create_view("video/tclr-clip", frames=16, skip=4, dense=4)
    sparse = starts(view, 50, 0)
    assert torch.allclose(sparse[:, 1] - sparse[:, 0], torch.full((50,), 0.4, dtype=torch.float64))
    for i in range(4):
        dense = starts(view, 50, 1 + i)
        assert torch.allclose(dense[:, 0], sparse[:, 0] + 1.6 * i)  # 16 frames of a tenth of a second each
        assert torch.allclose(dense[:, 1] - dense[:, 0], torch.full((50,), 0.1, dtype=torch.float64))


def test_window_frames_are_one_window():
    view = create_view("video/window-frames", views=5)
    moments = torch.cat([starts(view, 30, v) for v in range(5)], 1)
    assert torch.allclose(moments.diff(dim=1), torch.full((30, 4), 0.1, dtype=torch.float64))


def test_sparse_clips_take_one_frame_time_of_each_segment():
    moments = starts(create_view("video/sparse-clip", frames=8), 200, 0)
    assert torch.equal((moments / (100 / 8)).floor(), torch.arange(8.0).double().expand(200, 8))


def test_a_rate_in_hertz_means_the_same_seconds_in_every_clip():
    view = create_view("video/random-clip", frames=4, stride=1, rate_hz=5)
    for rate in (10.0, 25.0, 29.97):
        assert torch.allclose(starts(view, 5, 0, rate=rate).diff(dim=1), torch.full((5, 3), 0.2, dtype=torch.float64))


def test_speed_changes_the_step_within_its_bounds_and_is_told():
    for view in (create_view("video/random-clip", frames=3, stride=1, speed=(0.5, 2.0)), create_view("video/speed")):
        meta = meta_of(same_sized(), "video")
        step = starts(view, 500, 0).diff(dim=1)[:, 0] / view.frame_times.spacing.stride
        assert 0.05 <= float(step.min()) < 0.06
        assert 0.17 < float(step.max()) <= 0.2
        params = view.draw(keys(sample=torch.arange(3)), meta)
        speed = view.columns(meta, params)["speed"]
        assert torch.allclose(params["step"], 0.1 * view.frame_times.spacing.stride * speed)
        assert view.preserves_labels is False
    assert "speed" not in view.columns(meta, create_view("video/random-clip").draw(keys(sample=torch.arange(3)), meta))


def test_views_say_whether_they_keep_the_meaning():
    assert create_view("video/random-clip").preserves_labels
    assert create_view("video/cvrl").preserves_labels
    assert not Chain(create_view("video/random-clip", frames=4), Reverse()).preserves_labels


@pytest.mark.parametrize("short", ["hold", "loop"])
def test_a_clip_shorter_than_its_view(short: str):
    frames = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2).contiguous()
    view = create_view("video/random-clip", frames=7, stride=1, short=short)
    (seen,) = view([FrameStack(frames, frames_per_second=10.0)], keys(sample=[1]))
    expected = [0, 1, 2, 3, 3, 3, 3] if short == "hold" else [0, 1, 2, 3, 0, 1, 2]
    assert seen[:, 0, 0, 0].tolist() == expected


def test_a_clip_shorter_than_its_view_can_be_refused_by_its_key():
    frames = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    view = create_view("video/random-clip", frames=7, stride=1, short="error")
    with pytest.raises(InputError, match=r"0\.40 s in row 0") as refused:
        view([FrameStack(frames, frames_per_second=10.0)], keys(seed=9, sample=[1]))
    assert "seed=9" in str(refused.value)


def test_settings_that_make_no_sense_are_refused():
    for options in ({"frames": 0}, {"rate_hz": 0}, {"speed": (2.0, 1.0)}, {"stride": -1}):
        with pytest.raises(InputError, match="above 0"):
            create_view("video/random-clip", **options)
    with pytest.raises(InputError, match="wraps the children"):
        PerClip(as_chain(Flip()))
    with pytest.raises(InputError, match="clips `b t c h w`"):
        PerClip(Flip()).apply(torch.zeros(2, 3, 4, 4), {"flip": torch.tensor([True, False])})


def test_reversal_and_shuffling_are_told_in_the_table():
    batch = torch.arange(6.0)[None, :, None, None, None].expand(8, 6, 1, 1, 1).contiguous()
    table = keys(sample=torch.arange(8))
    reverse, meta = Reverse(), meta_of(batch, "video")
    params = reverse.draw(table, meta)
    backwards = reverse.apply(batch, params)[:, :, 0, 0, 0].diff(dim=1)[:, 0] < 0
    assert torch.equal(backwards.long(), reverse.columns(meta, params)["reversed"])
    assert 0 < int(backwards.sum()) < 8
    shuffle = Shuffle(segments=3)
    params = shuffle.draw(table, meta)
    out = shuffle.apply(batch, params)[:, :, 0, 0, 0]
    assert torch.equal(out.sort(1).values, batch[:, :, 0, 0, 0])
    assert bool((out.view(8, 3, 2).diff(dim=2) == 1).all())  # segments of two frames stay whole
    assert torch.equal((out != batch[:, :, 0, 0, 0]).any(1).long(), shuffle.columns(meta, params)["shuffled"])


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.05, 500),
    rate=st.floats(1, 120),
    frames=st.integers(1, 40),
    stride=st.integers(1, 8),
    view=st.integers(0, 9),
    name=st.sampled_from(["random-clip", "cvrl-clip", "grid-clip"]),
)
def test_any_clip_gives_times_inside_it(seconds: float, rate: float, frames: int, stride: int, view: int, name: str):
    moments = starts(create_view(f"video/{name}", frames=frames, stride=stride), 3, view, seconds=seconds, rate=rate)
    assert moments.shape == (3, frames)
    assert float(moments.min()) >= 0
    assert float(moments.max()) <= seconds
    assert bool((moments.diff(dim=1) >= 0).all())
