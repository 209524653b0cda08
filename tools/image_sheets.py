"""Make the contact sheets of docs/views-image.md: eight views of one photo by every image view generator.

    uv run python tools/image_sheets.py

The photo is flower.jpg of scikit-learn's sample images (by vultilion on Flickr, CC BY 2.0); the last of each row,
a partner for mixing, is china.jpg (by danielbuechele, CC BY 2.0).
"""

from __future__ import annotations

from pathlib import Path

import torch
from mmcon_views.image.corruptions import CORRUPTIONS
from mmcon_views.image.resize import Resize
from PIL import Image
from torch import Tensor

from mmcon.loading.mixup_partners import apply_mixing, mixing_child
from mmcon.media import ImageHandle
from mmcon.random import Keys, keys
from mmcon.registry import create_view
from mmcon.views import Chain, ViewGenerator, collate, meta_of

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
SIDE, COUNT = 96, 8
SETTINGS: list[tuple[str, dict]] = [
    ("image/plain", {"size": SIDE}),
    ("image/resize", {"size": SIDE}),
    ("image/center-crop", {"size": SIDE}),
    ("image/crop", {"size": SIDE}),
    ("image/random-resized-crop", {"size": SIDE}),
    ("image/flip", {}),
    ("image/crop-flip", {"size": SIDE}),
    ("image/color-jitter", {"p": 1.0}),
    ("image/color-jitter-tf", {"p": 1.0, "brightness_is": "added"}),
    ("image/color-jitter-tf", {"p": 1.0, "brightness_is": "multiplied"}),
    ("image/linear-hue", {"p": 1.0, "hue": 0.5}),
    ("image/grayscale", {"p": 0.5}),
    ("image/solarize", {"p": 0.5}),
    ("image/blur", {"p": 1.0}),
    ("image/warp", {"p": 1.0}),
    ("image/perturbation", {"kind": "rotation", "amount": 15.0}),
    ("image/simclr", {"size": SIDE, "blur": True}),
    ("image/simclr-tf", {"size": SIDE, "blur": True, "brightness": "added"}),
    ("image/simclr-tf", {"size": SIDE, "blur": True, "brightness": "multiplied"}),
    ("image/simclr-supcon", {"size": SIDE, "warp": 1.0}),
    ("image/supcon-autoaugment", {"size": SIDE}),
    ("image/autoaugment", {"policy": "imagenet"}),
    ("image/autoaugment", {"policy": "cifar10"}),
    ("image/autoaugment", {"policy": "tf-v0"}),
    ("image/randaugment", {"variant": "torchvision"}),
    ("image/randaugment", {"variant": "tf"}),
    ("image/randaugment", {"variant": "timm"}),
    ("image/randaugment", {"variant": "color-safe"}),
    ("image/stacked-randaugment-talk", {"size": SIDE}),
    ("image/stacked-randaugment-supcon", {"size": SIDE}),
    ("image/stacked-randaugment-infomin", {"size": SIDE}),
    ("image/swav", {"size": SIDE, "crop": "global"}),
    ("image/swav", {"size": SIDE, "crop": "local"}),
    ("image/dino", {"size": SIDE, "crop": "global-1"}),
    ("image/dino", {"size": SIDE, "crop": "global-2"}),
    ("image/dino", {"size": SIDE, "crop": "local"}),
    ("image/cmc", {"size": SIDE, "channels": "luminance"}),
    ("image/cmc", {"size": SIDE, "channels": "chroma"}),
    ("image/color-channels", {"space": "ydbdr", "channels": "both"}),
    ("image/edges", {}),
    ("image/mixup", {}),
    ("image/cutmix", {}),
]


def photos() -> list[ImageHandle]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [ImageHandle(folder / "flower.jpg")] * (COUNT - 1) + [ImageHandle(folder / "china.jpg")]


def sheet(views: Tensor) -> Image.Image:
    """Views side by side; values outside [0, 1] are rescaled, and two channels are shown as red and blue."""
    low, high = views.amin(), views.amax()
    if views.shape[1] < 3 or low < 0 or high > 1:
        views = (views - low) / (high - low)
    if views.shape[1] == 2:
        views = torch.stack([views[:, 0], torch.full_like(views[:, 0], 0.5), views[:, 1]], dim=1)
    views = views.expand(-1, 3, -1, -1)
    strip = torch.cat(list(torch.nn.functional.pad(views, (1, 1, 1, 1), value=1.0)), dim=2)
    return Image.fromarray((strip.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def whole(view: ViewGenerator) -> ViewGenerator:
    """The generator after a resize to the size of the sheet, where it does not resize itself."""
    return view if view.ragged else Chain(("resize", Resize(size=SIDE)), ("view", view))


def views_of(view: ViewGenerator, table: Keys) -> Tensor:
    """Views of the photos; a generator that mixes gets the other photo as partner."""
    samples = photos()
    if mixing_child(view) is None:
        return collate(view(samples, table))
    params = view.draw(table, meta_of(samples, "image"))
    partners = torch.tensor([COUNT - 1] * (COUNT - 1) + [0])
    return apply_mixing(view, collate(view.apply_ragged(samples, params)), params, partners)


def file_name(name: str, options: dict) -> str:
    extra = [str(v) for v in options.values() if isinstance(v, str)]
    return "-".join([name.replace("/", "-"), *extra]) + ".webp"


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    table = keys(seed=0, sample=range(COUNT))
    for name, options in SETTINGS:
        views = views_of(whole(create_view(name, **options)), table)
        sheet(views).save(FIGURES / file_name(name, options), quality=80)
    photo = photos()[:1]
    rows = []
    for effect in sorted(CORRUPTIONS):
        chains = [whole(create_view("image/corruption", effect=effect, severity=s)) for s in (1, 2, 3, 4, 5)]
        rows.append(sheet(torch.cat([chain(photo, table[:1]) for chain in chains])))
    together = Image.new("RGB", (rows[0].width * 2, rows[0].height * 10), "white")
    for i, row in enumerate(rows):
        together.paste(row, (rows[0].width * (i // 10), rows[0].height * (i % 10)))
    together.save(FIGURES / "image-corruptions.webp", quality=45)


if __name__ == "__main__":
    main()
