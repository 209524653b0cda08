"""Image handles: headers, regions, scaled decoding, and every kind of file that people have."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmcon.errors import DataError, InputError
from mmcon.media import ImageHandle


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def ramp(height=48, width=64):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5, columns * 3, (rows + columns) * 2], axis=-1).astype(np.uint8)


def test_header_and_pixels_of_files_bytes_and_arrays(tmp_path):
    array = ramp()
    Image.fromarray(array).save(tmp_path / "photo.png")
    for source in (
        tmp_path / "photo.png",
        saved(Image.fromarray(array)),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ):
        photo = ImageHandle(source)
        assert photo.facts == {"channels": 3, "height": 48, "width": 64}
        assert np.array_equal(photo.decode().permute(1, 2, 0).numpy(), array)
        part = photo.decode(region=(5, 7, 20, 30))
        assert np.array_equal(part.permute(1, 2, 0).numpy(), array[5:25, 7:37])


def test_a_jpeg_is_decoded_at_a_smaller_scale_where_that_is_enough():
    photo = ImageHandle(saved(Image.fromarray(ramp(256, 320)), "JPEG", quality=95))
    assert photo.decode(size=(60, 60)).shape == (3, 64, 80)
    assert photo.decode(size=(200, 200)).shape == (3, 256, 320)
    part = photo.decode(region=(64, 80, 128, 160), size=(32, 40))
    assert part.shape == (3, 32, 40)
    full = photo.decode(region=(64, 80, 128, 160)).float()
    mean = torch.nn.functional.avg_pool2d(full, 4)
    assert float((part.float() - mean).abs().mean()) < 4


def test_orientation_is_obeyed_in_facts_and_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise when shown
    photo = ImageHandle(saved(Image.fromarray(ramp()), exif=exif))
    assert photo.facts == {"channels": 3, "height": 64, "width": 48}
    assert np.array_equal(photo.decode().permute(1, 2, 0).numpy(), np.rot90(ramp(), -1))


def test_alpha_palette_grey_cmyk_and_sixteen_bits():
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (255, 0, 0, 255)
    over = ImageHandle(saved(Image.fromarray(clear))).decode()
    assert over[:, 0, 0].tolist() == [255, 0, 0]
    assert over[:, 3, 3].tolist() == [255, 255, 255]
    assert ImageHandle(saved(Image.fromarray(clear)), background=(0, 0, 9)).decode()[:, 3, 3].tolist() == [0, 0, 9]
    palette = ImageHandle(saved(Image.fromarray(ramp()).convert("P"), "GIF")).decode()
    assert palette.shape == (3, 48, 64)
    wide = Image.fromarray(np.full((3, 3), 0x8040, np.uint16))
    assert ImageHandle(saved(wide), channels=1).decode().unique().tolist() == [0x80]
    cmyk = ImageHandle(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)).decode()
    assert cmyk[0].min() > 200
    assert cmyk[1:].max() < 60
    grey = ImageHandle(saved(Image.fromarray(ramp())), channels=1)
    assert grey.facts["channels"] == 1
    assert grey.decode().shape == (1, 48, 64)


@pytest.mark.parametrize("data", [b"", b"no image at all", saved(Image.fromarray(ramp()), "JPEG")[:400]])
def test_corrupt_files_are_named(data):
    with pytest.raises(DataError, match="photo-17"):
        ImageHandle(data, id="photo-17").decode()


def test_missing_files_floats_and_regions_outside_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png"):
        ImageHandle(tmp_path / "nowhere.png").facts  # noqa: B018 (reading it is what raises)
    with pytest.raises(DataError, match="turn floats"):
        ImageHandle(np.zeros((4, 4, 3))).decode()
    with pytest.raises(InputError, match="48 × 64"):
        ImageHandle(ramp()).decode(region=(40, 0, 9, 9))
