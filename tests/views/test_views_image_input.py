"""What people feed to views of images: every kind of file and tensor is taken as told, or refused by its name."""

import io
import random
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmcon
from mmcon.errors import DataError, InputError
from mmcon.media import ImageHandle
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.sources.factory import create_source

torch.set_num_threads(1)
DOCS = Path(__file__).parents[2] / "docs"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
CORRUPT = ["truncated.jpg", "truncated.png", "garbled.png", "header.jpg", "empty.png", "words.jpg"]


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def corrupt(name):
    jpeg, png = saved(RGB, "JPEG"), saved(RGB, "PNG")
    garbled = png[:60] + bytes(40) + png[100:]
    return dict(
        zip(CORRUPT, (jpeg[: len(jpeg) // 2], png[: len(png) // 2], garbled, jpeg[:30], b"", b"no image"), strict=True)
    )[name]


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_are_refused_by_their_id_in_header_and_pixels(name):
    handle = ImageHandle(corrupt(name), id="sample-17")
    with pytest.raises(DataError, match="sample-17"):
        create_view("image/simclr", size=24)([handle], keys(seed=0, sample=[1]))


def test_kinds_of_files_come_as_people_see_them():
    palette = RGB.convert("P")
    sixteen = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 77)
    turned = Image.Exif()
    turned[0x0112] = 3
    odd = Image.Exif()
    odd[0x0112] = 99
    gray = PIXELS[..., :1].repeat(3, 2)
    frames = {"save_all": True, "append_images": [RGB.rotate(90).convert("P")]}
    files = {
        "palette": (saved(palette, "PNG"), np.array(palette.convert("RGB"))),
        "animation: the first frame": (saved(palette, "GIF", **frames), np.array(palette.convert("RGB"))),
        "16 bits": (saved(sixteen, "PNG"), gray),
        "16 bits, TIFF": (saved(sixteen, "TIFF"), gray),
        "gray": (saved(Image.fromarray(PIXELS[..., 0]), "PNG"), gray),
        "one bit": (saved(RGB.convert("1"), "PNG"), np.array(RGB.convert("1").convert("RGB"))),
        "orientation 3": (saved(RGB, "PNG", exif=turned), PIXELS[::-1, ::-1]),
        "no such orientation": (saved(RGB, "PNG", exif=odd), PIXELS),
        "CMYK": (saved(RGB.convert("CMYK"), "TIFF"), np.array(RGB.convert("CMYK").convert("RGB"))),
    }
    for kind, (data, expected) in files.items():
        handle = ImageHandle(data)
        assert (handle.facts["height"], handle.facts["width"]) == (40, 50), kind
        assert np.array_equal(handle.decode().permute(1, 2, 0).numpy(), expected), kind


def test_what_is_transparent_is_laid_over_white():
    palette = RGB.convert("P")
    indices = np.array(palette)
    alpha = np.array([0] * 100 + [255] * 156)
    seen = ImageHandle(saved(palette, "PNG", transparency=bytes(alpha.tolist()))).decode().permute(1, 2, 0).numpy()
    assert (seen[alpha[indices] == 0] == 255).all()
    assert np.array_equal(seen[alpha[indices] > 0], np.array(palette.convert("RGB"))[alpha[indices] > 0])
    # One color, or one index, may stand for transparent as well.
    color = tuple(int(v) for v in PIXELS[3, 4])
    seen = ImageHandle(saved(RGB, "PNG", transparency=color)).decode()
    assert seen[:, 3, 4].tolist() == [255, 255, 255]
    index = int(indices[5, 6])
    assert ImageHandle(saved(palette, "GIF", transparency=index)).decode()[:, 5, 6].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("array", "told"),
    [(np.full((8, 8), 0.5, np.float32), "floating-point"), (np.full((8, 8), 70000, np.int32), "beyond 16 bits")],
)
def test_files_without_a_known_range_are_refused(array, told):
    with pytest.raises(DataError, match=f"sample-3(.|\n)*{told}"):
        ImageHandle(saved(Image.fromarray(array), "TIFF"), id="sample-3").decode()


EVERY = ["image/simclr", "image/flip", "image/color-jitter-tf", "image/randaugment", "image/corruption", "image/mixup"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.zeros(2, 4, 8, 8), "RGB"),
        (torch.zeros(2, 2, 8, 8), "RGB"),
        (torch.zeros(2, 8, 8, 3), "permute"),
        (torch.zeros(2, 3, 0, 8), "at least one pixel"),
        (torch.full((2, 3, 8, 8), float("nan")), "finite"),
        (torch.full((2, 3, 8, 8), float("inf")), "finite"),
        (torch.full((2, 3, 8, 8), 200.0), "divide by 255"),
        (torch.full((2, 3, 8, 8), -0.5), "normalize in the encoder"),
        (torch.ones(2, 3, 8, 8, dtype=torch.int64), "uint8"),
        (torch.ones(2, 3, 8, 8, dtype=torch.bool), "uint8"),
        (torch.zeros(3, 8, 8), "batch of one"),
    ],
)
def test_wrong_tensors_are_refused_with_the_fix(name, x, told):
    with pytest.raises((InputError, DataError)) as error:
        create_view(name)(x, keys(seed=0, sample=[1, 2]))
    assert told in str(error.value)


def test_bytes_and_floats_of_one_image_give_one_view():
    x = torch.from_numpy(PIXELS).permute(2, 0, 1)[None]
    for name in ("image/color-jitter", "image/randaugment", "image/corruption"):
        view = create_view(name)
        for floats in (x.float() / 255, x.double() / 255):
            torch.testing.assert_close(
                view(floats, keys(seed=0, sample=[1])), view(x, keys(seed=0, sample=[1])), atol=1e-6, rtol=0
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_floats_of_any_width_are_resampled_in_float32(dtype, interpolation):
    x = torch.rand(2, 3, 80, 72, generator=torch.Generator().manual_seed(0)).to(dtype)
    crop = create_view("image/random-resized-crop", size=70, interpolation=interpolation)
    in_bytes = create_view("image/random-resized-crop", size=70, interpolation=interpolation, bytes=True)
    views = in_bytes(x, keys(seed=0, sample=[1, 2]))
    assert views.dtype == torch.float32
    assert torch.equal(views, crop(x.to(torch.float32), keys(seed=0, sample=[1, 2])))


def test_an_empty_batch_is_told_or_stays_empty():
    none = keys(seed=0, sample=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="an empty batch"):
        create_view("image/simclr")(torch.zeros(0, 3, 8, 8), none)
    for name in ("image/flip", "image/corruption", "image/color-jitter"):
        assert create_view(name)(torch.zeros(0, 3, 8, 8), none).shape == (0, 3, 8, 8)


def test_one_bad_image_of_several_is_named():
    good = torch.zeros(3, 9, 9)
    with pytest.raises(DataError, match="sample 1"):
        create_view("image/simclr", size=8)([good, good * float("nan")], keys(seed=0, sample=[1, 2]))
    handles = [ImageHandle(saved(RGB, "PNG"), id="good"), ImageHandle(corrupt("truncated.jpg"), id="photos/bad.jpg")]
    with pytest.raises(DataError, match=r"photos/bad\.jpg"):
        create_view("image/simclr", size=8)(handles, keys(seed=0, sample=[1, 2]))


def test_all_kinds_come_through_folders_and_manifests(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "train/a/palette.png": saved(RGB.convert("P"), "PNG", transparency=3),
        "train/a/alpha.png": saved(RGB.convert("RGBA"), "PNG"),
        "train/a/cmyk.jpg": saved(RGB.convert("CMYK"), "JPEG"),
        "train/b/deep.png": saved(Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8), "PNG"),
        "train/b/moves.gif": saved(RGB.convert("P"), "GIF", save_all=True, append_images=[RGB.rotate(90).convert("P")]),
        "train/b/turned.jpg": saved(RGB, "JPEG", exif=turned),
    }
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    rows = [f"photos/{name},{name.split('/')[1]},train" for name in files]
    (tmp_path / "rows.csv").write_text("\n".join(["path,label,split", *rows]))
    for source in (create_source(tmp_path / "photos"), create_source(tmp_path / "rows.csv")):
        handles = source.open(torch.arange(len(source)))
        views = create_view("image/simclr", size=24)(handles, keys(seed=0, sample=source.ids))
        # A folder without a split of its own holds one image of each class out.
        assert views.shape == (len(source), 3, 24, 24)
        assert len(source) >= 4
        sizes = {handle.facts["height"] for handle in handles}
        assert sizes <= {40, 50}
    bad = tmp_path / "photos/train/b/turned.jpg"
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"turned\.jpg"):
        create_view("image/plain", size=24)(handles, keys(seed=0, sample=source.ids))


def test_no_view_touches_the_global_random_state():
    x = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for name in (name for name in mmcon.list_views("image") if name.startswith("image/")):
        create_view(name, **({"size": 24} if name == "image/crop" else {}))(x, keys(seed=0, sample=[1, 2]))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_every_generator_of_images_has_its_sheet_in_the_docs():
    page = (DOCS / "views-image.md").read_text()
    tool = runpy.run_path(str(DOCS.parent / "tools" / "image_sheets.py"))
    drawn = {tool["file_name"](name, options) for name, options in tool["SETTINGS"]} | {"image-corruptions.webp"}
    assert drawn == set(re.findall(r"\(figures/(image-[\w-]+\.webp)\)", page))
    for figure in drawn:
        assert 0 < (DOCS / "figures" / figure).stat().st_size < 300_000
    registered = {name for name in mmcon.list_views("image") if name.startswith("image/")}
    assert {name for name, _ in tool["SETTINGS"]} | {"image/corruption"} == registered
    assert all(f"`{name}`" in page for name in registered)
