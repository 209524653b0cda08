"""Bundled clips: photographs in motion, the same before a trembling camera, and five seconds of a film.

`samples/scenes` is made when it is opened: a photograph of clothing moves, turns and grows before a ground cut from the
film, while the camera trembles and the light flickers. What is the same for a whole clip (the thing, the ground) and
what comes anew in each frame (tremble, flicker) tell nothing of time; only where the thing is on its way does. So two
frames that look alike pixel by pixel need not be near in time.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mmcon.media.video import FrameStack, VideoHandle
from mmcon.media.video_files import FrameCache, open_video
from mmcon.random import Keys, keys, stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.video_source import GIGABYTE, ClipSource

SIDE, FRAMES_PER_SECOND, SECONDS = 48, 12, 4
FRAMES = FRAMES_PER_SECOND * SECONDS
CLIPS = {"train": 160, "test": 80}
# Pixels by which the ground is displaced from frame to frame, and shares of the light.
TREMBLE, LIGHT = 3, (0.7, 1.3)


@register_source("samples/scenes", modality="video")
def scenes(split: Literal["train", "test"] = "train", seed: int = 0) -> ClipSource:
    """Synthetic clips with nuisance: clothing on its way before grounds of a film, under a trembling camera and light.

    Four seconds at 12 frames a second, 48×48. No photograph is in both splits, nor is a frame of the film.

    Args:
        split: "train" or "test".
        seed: of the ways, grounds, tremble and light.
    """
    names, labels, pictures = _clothing(split)
    draws = keys(seed=seed, sample=stable_ids(names)).child("scenes")
    things, covers = _things_on_their_way(pictures, draws)
    frames = covers * things + (1 - covers) * _grounds(split, draws)
    light = draws.uniform("light", *LIGHT, shape=(FRAMES,)).float()[:, :, None, None, None]
    clips = (frames * light).clamp(0, 1).mul(255).round().to(torch.uint8)
    return ClipSource(
        [
            FrameStack(clip, frames_per_second=FRAMES_PER_SECOND, name=name)
            for name, clip in zip(names, clips, strict=True)
        ],
        labels=labels,
        classes=bundled.card("fashion")["classes"],
        name=f"samples/scenes ({split})",
        notes=["synthetic: photographs of clothing moved by a computer before frames of a film"],
    )


def _clothing(split: str) -> tuple[list[str], Tensor, Float[Tensor, "b 1 28 28"]]:
    """Names, classes and pictures: as many of every class, in the order of the sample."""
    from torchvision.io import decode_png

    labels = torch.tensor([row["label"] for row in bundled.rows("fashion", split, ["label"])])
    each = CLIPS[split] // 10
    rows = torch.cat([(labels == label).nonzero()[:each, 0] for label in range(10)])
    table = bundled.rows("fashion", split, ["id", "image"])
    chosen = [table[row] for row in rows.tolist()]
    bytes_of = [torch.frombuffer(bytearray(row["image"]), dtype=torch.uint8) for row in chosen]
    return [f"scenes/{r['id']}" for r in chosen], labels[rows], torch.stack([decode_png(b) for b in bytes_of]) / 255


def _things_on_their_way(
    pictures: Float[Tensor, "b 1 28 28"], draws: Keys
) -> tuple[Float[Tensor, "b t 3 h w"], Float[Tensor, "b t 1 h w"]]:
    """Each picture on a straight way, turning and growing evenly: in its colour, and how far it covers the ground."""
    b = len(pictures)
    now = torch.linspace(-1, 1, FRAMES, dtype=torch.float64)
    direction = draws.uniform("direction", 0, 2 * math.pi)
    reach = draws.uniform("reach", 0.25, 0.6)[:, None] * now
    middle, shake = (
        draws.uniform("middle", -0.15, 0.15, shape=(2,)),
        draws.uniform("shake", -0.04, 0.04, shape=(2 * FRAMES,)),
    )
    x = middle[:, :1] + reach * torch.cos(direction)[:, None] + shake[:, :FRAMES]
    y = middle[:, 1:] + reach * torch.sin(direction)[:, None] + shake[:, FRAMES:]
    size = draws.uniform("size", 0.5, 0.65)[:, None] * torch.exp(draws.uniform("growth", -0.6, 0.6)[:, None] * now)
    turn = draws.uniform("turn", -1.5, 1.5)[:, None] * now
    cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
    rows = [torch.stack([cos, sin, -(cos * x + sin * y)], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)]
    theta = torch.stack(rows, -2).flatten(0, 1).float()
    grid = F.affine_grid(theta, [b * FRAMES, 1, SIDE, SIDE], align_corners=False)
    still = pictures.repeat_interleave(FRAMES, 0)
    grey = F.grid_sample(still, grid, align_corners=False).unflatten(0, (b, FRAMES))
    colour = draws.uniform("colour", 0.4, 1, shape=(3,)).float()[:, None, :, None, None]
    # Photographs of clothing stand on black: what is not nearly black is cloth.
    return grey * colour, (grey * 4).clamp(0, 1)


def _grounds(split: str, draws: Keys) -> Float[Tensor, "b t 3 h w"]:
    """A part of a frame of the film behind each clip, displaced anew in every frame."""
    film = _film().decode(torch.arange(52, dtype=torch.float64) / 10, shorter_side=120)
    half = film[:26] if split == "train" else film[26:]
    which = draws.integers("ground", 0, len(half))
    height, width = half.shape[-2:]
    top = draws.integers("top", TREMBLE, height - SIDE - TREMBLE + 1)[:, None]
    left = draws.integers("left", TREMBLE, width - SIDE - TREMBLE + 1)[:, None]
    tremble = draws.integers("tremble", -TREMBLE, TREMBLE + 1, shape=(2 * FRAMES,))
    top, left = top + tremble[:, :FRAMES], left + tremble[:, FRAMES:]
    side = torch.arange(SIDE)
    rows, columns = top[..., None, None] + side[:, None], left[..., None, None] + side
    cut: UInt8[Tensor, "b t h w c"] = half.permute(0, 2, 3, 1)[which[:, None, None, None], rows, columns]
    return cut.permute(0, 1, 4, 2, 3).float() / 255


@register_source("samples/motion", modality="video")
def motion(
    split: Literal["train", "test"] = "train",
    label: Literal["class", "motion"] = "class",
    cache_gigabytes: int | float = 1,
) -> ClipSource:
    """Bundled clips, declared synthetic: Fashion-MNIST images in eight motions, 64×64, two seconds each.

    Args:
        split: "train" or "test"; no image is in both.
        label: what `label` is: the class of clothing, or the motion. The other stands beside it.
        cache_gigabytes: keep decoded frames, up to so much in each process.
    """
    rows = bundled.rows("motion", split)
    card = bundled.card("motion")
    cache = FrameCache(int(cache_gigabytes * GIGABYTE)) if cache_gigabytes else None
    kinds = {"class": "label", "motion": "motion_label"}
    other = "motion" if label == "class" else "class"
    return ClipSource(
        [open_video(row["video"], name=f"motion/{row['id']}", cache=cache) for row in rows],
        labels=torch.tensor([row[kinds[label]] for row in rows]),
        classes=card["classes" if label == "class" else "motions"],
        columns={other: torch.tensor([row[kinds[other]] for row in rows])},
        name=f"samples/motion ({split})",
        notes=["synthetic: photographs of clothing moved by a computer"],
    )


@register_source("samples/clip", modality="video")
def real_clip(split: str = "train", window_seconds: int | float = 0) -> ClipSource:
    """The bundled real clip: five seconds of the film Big Buck Bunny. One clip cannot be split: every split is it.

    Args:
        split: any name.
        window_seconds: cut it into windows of this length; 0: whole.
    """
    whole = ClipSource([_film()], name="samples/clip")
    return whole.windows(window_seconds) if window_seconds else whole


def _film() -> VideoHandle:
    (file,) = sorted(bundled.path("clip").glob("*.mp4"))
    return open_video(file, name=file.name, cache=FrameCache(GIGABYTE))
