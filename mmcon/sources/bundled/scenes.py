"""Synthetic clips with nuisance factors (background, camera shake, flicker).

The clips of `samples/scenes` are computed when the source is opened: a Fashion-MNIST image moves, rotates and grows in
front of a background from the bundled film, with camera shake and flicker. Constant factors of a clip (object,
background) and factors drawn for each frame (shake, flicker) carry no information on time; only the position of the
object on its path does. So two frames with similar pixels need not be close in time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mmcon.media.video import FrameStack
from mmcon.random import Keys, keys, stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.bundled.motion_clips import film
from mmcon.sources.video import ClipSource

SIDE, FRAMES_PER_SECOND, SECONDS = 48, 12, 4
FRAMES = FRAMES_PER_SECOND * SECONDS
CLIPS = {"train": 160, "test": 80}
# The largest displacement of the background between frames, in pixels, and bounds of the brightness factor.
SHAKE, LIGHT = 3, (0.7, 1.3)


@register_source("samples/scenes", modality="video")
def scenes(split: str = "train", seed: int = 0) -> ClipSource:
    """Synthetic clips with nuisance factors: moving clothing over film backgrounds, with camera shake and flicker.

    Four seconds at 12 frames per second, 48×48. The splits share no clothing image and no frame of the film.

    Args:
        split: "train" or "test".
        seed: the seed of paths, backgrounds, shake and brightness.
    """
    split = bundled.match("fashion", split)
    names, labels, images = _clothing(split)
    draws = keys(seed=seed, sample=stable_ids(names)).child("scenes")
    objects, masks = _objects_on_paths(images, draws)
    frames = masks * objects + (1 - masks) * _backgrounds(split, draws)
    light = draws.uniform("light", *LIGHT, shape=(FRAMES,)).float()[:, :, None, None, None]
    clips = (frames * light).clamp(0, 1).mul(255).round().to(torch.uint8)
    return ClipSource(
        [
            # A copy: a view of all clips would be pickled with all of them, once for each.
            FrameStack(clip.clone(), frames_per_second=FRAMES_PER_SECOND, name=name)
            for name, clip in zip(names, clips, strict=True)
        ],
        labels=labels,
        classes=bundled.card("fashion")["classes"],
        name=f"samples/scenes ({split})",
        notes=["synthetic: photographs of clothing moved by a computer before frames of a film"],
    )


def _clothing(split: str) -> tuple[list[str], Tensor, Float[Tensor, "b 1 28 28"]]:
    """Names, classes and images, with equal numbers of every class, in the order of the bundled set."""
    labels = torch.tensor([row["label"] for row in bundled.rows("fashion", split, ["label"])])
    each = CLIPS[split] // 10
    rows = torch.cat([(labels == label).nonzero()[:each, 0] for label in range(10)])
    table = bundled.rows("fashion", split, ["id", "image"])
    chosen = [table[row] for row in rows.tolist()]
    images = bundled.decode([row["image"] for row in chosen], channels=1)
    return [f"scenes/{row['id']}" for row in chosen], labels[rows], images / 255


def _objects_on_paths(
    images: Float[Tensor, "b 1 28 28"], draws: Keys
) -> tuple[Float[Tensor, "b t 3 h w"], Float[Tensor, "b t 1 h w"]]:
    """The colored frames and the masks of each image, which rotates and grows uniformly along a straight path."""
    b = len(images)
    now = torch.linspace(-1, 1, FRAMES, dtype=torch.float64)
    direction = draws.uniform("direction", 0.0, 2 * math.pi)
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
    still = images.repeat_interleave(FRAMES, 0)
    gray = F.grid_sample(still, grid, align_corners=False).unflatten(0, (b, FRAMES))
    color = draws.uniform("colour", 0.4, 1.0, shape=(3,)).float()[:, None, :, None, None]
    # Fashion-MNIST images have a black background, so the mask is where they are not nearly black.
    return gray * color, (gray * 4).clamp(0, 1)


def _backgrounds(split: str, draws: Keys) -> Float[Tensor, "b t 3 h w"]:
    """The background of each clip: a region of one frame of the film, with a random displacement in every frame."""
    frames = film().decode(torch.arange(52, dtype=torch.float64) / 10, shorter_side=120)
    half = frames[:26] if split == "train" else frames[26:]
    which = draws.integers("ground", 0, len(half))
    height, width = half.shape[-2:]
    top = draws.integers("top", SHAKE, height - SIDE - SHAKE + 1)[:, None]
    left = draws.integers("left", SHAKE, width - SIDE - SHAKE + 1)[:, None]
    shake = draws.integers("tremble", -SHAKE, SHAKE + 1, shape=(2 * FRAMES,))
    top, left = top + shake[:, :FRAMES], left + shake[:, FRAMES:]
    side = torch.arange(SIDE)
    rows, columns = top[..., None, None] + side[:, None], left[..., None, None] + side
    cut: UInt8[Tensor, "b t h w c"] = half.permute(0, 2, 3, 1)[which[:, None, None, None], rows, columns]
    return cut.permute(0, 1, 4, 2, 3).float() / 255
