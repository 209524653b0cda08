"""Image handles: headers, regions, scaled decoding, and every kind of file that people have."""

import contextlib
import io
import os
import random
import socket
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from mmcon.errors import DataError, InputError
from mmcon.media import ImageHandle
from mmcon.sources.base import DatasetSource


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


def test_a_png_is_decoded_for_its_tags_only_if_something_follows_its_pixels(monkeypatch):
    from PIL.PngImagePlugin import PngImageFile

    loads = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: loads.append(image) or load(image))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, tagged = saved(Image.fromarray(ramp())), saved(Image.fromarray(ramp()), exif=exif)
    assert ImageHandle(plain).facts == {"channels": 3, "height": 48, "width": 64}
    assert not loads
    begin = tagged.index(b"eXIf") - 4
    end = begin + 12 + struct.unpack(">I", tagged[begin : begin + 4])[0]
    behind = tagged[:begin] + tagged[end:-12] + tagged[begin:end] + tagged[-12:]
    assert ImageHandle(behind).facts == ImageHandle(tagged).facts == {"channels": 3, "height": 64, "width": 48}
    assert len(loads) == 1
    assert torch.equal(ImageHandle(behind).decode(), ImageHandle(tagged).decode())
    with pytest.raises(DataError, match=r"truncated|incomplete|broken"):
        _ = ImageHandle(plain[: len(plain) // 2]).facts


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_of_every_region_is_that_of_the_turned_image(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    photo = ImageHandle(saved(Image.fromarray(ramp(40, 56)), form, exif=exif, **options))
    stored = ImageHandle(saved(Image.fromarray(ramp(40, 56)), form, **options)).decode().permute(1, 2, 0).numpy()
    # The definition of the tag: the side of the image at which row 0 and column 0 of the stored pixels are shown.
    turned = np.swapaxes(stored, 0, 1) if orientation >= 5 else stored
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned  # row 0 at the bottom
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned  # column 0 at the right
    assert photo.facts == {"channels": 3, "height": turned.shape[0], "width": turned.shape[1]}
    assert np.array_equal(photo.decode().permute(1, 2, 0).numpy(), turned)
    part = photo.decode(region=(3, 5, 17, 29)).permute(1, 2, 0).numpy()
    assert np.array_equal(part, turned[3:20, 5:34])


def test_a_large_image_is_converted_in_strips(monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    whole = ImageHandle(saved(Image.fromarray(array))).decode()
    monkeypatch.setattr("mmcon.media.image_pixels._STRIP_PIXELS", 100)
    assert torch.equal(ImageHandle(saved(Image.fromarray(array))).decode(), whole)
    assert torch.equal(ImageHandle(saved(Image.fromarray(array))).decode((7, 2, 30, 21)), whole[:, 7:37, 2:23])


def with_exif(jpeg, entries):
    entries = sorted(entries)
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize(("tag", "kind", "value"), [
    (0x0128, 1, 2), (0x010F, 11, 72), (0x011A, 2, 72), (0x0128, 4, 70_000), (0x8769, 4, 7), (0x8769, 2, 1 << 30),
    (0x0112, 3, 99), (0x0112, 2, 0), (0x0112, 4, 1 << 31),
])  # fmt: skip
def test_odd_exif_tags_do_not_cost_the_photo(tag, kind, value):
    jpeg = saved(Image.new("RGB", (60, 40), "red"), "JPEG")
    odd = [(tag, kind, 1, value)]
    turned = ImageHandle(with_exif(jpeg, odd if tag == 0x0112 else [(0x0112, 3, 1, 6), *odd]))
    height, width = (40, 60) if tag == 0x0112 else (60, 40)
    assert turned.facts == {"channels": 3, "height": height, "width": width}
    assert turned.decode().shape == (3, height, width)


def test_tags_that_cannot_be_read_leave_the_photo_upright():
    jpeg = saved(Image.new("RGB", (60, 40), "red"), "JPEG")
    photo = ImageHandle(jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0II*\0\xff\xff\xff\x7f" + jpeg[2:])
    assert photo.decode().shape == (3, 40, 60)


def png_of_size(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("stage", ["facts", "decode"])
def test_bombs_are_refused_before_their_pixels_are_decoded(stage, tmp_path):
    def refused(source, message, **options):
        handle = ImageHandle(source, id="bomb", **options)
        with pytest.raises(DataError, match=rf"bomb(.|\n)*{message}"):
            handle.decode() if stage == "decode" else handle.facts

    refused(png_of_size(20_000, 6_000), r"at most 104,857,600 pixels \(PNG\); got 6,000 × 20,000")
    refused(png_of_size(200_000, 60_000), "DecompressionBombError")  # Pillow's own limit comes first
    refused(png_of_size(9_000, 9_000), "a byte for 4,096 pixels; got .* bytes for 81,000,000 pixels")
    refused(saved(Image.new("RGB", (64, 48))), "at most 3,000 pixels", max_pixels=3_000)
    for form, options in (("WEBP", {}), ("AVIF", {}), ("JPEG2000", {}), ("JPEG", {"progressive": True})):
        refused(saved(Image.new("RGB", (64, 48)), form, **options), r"at most 2,000 pixels", max_pixels=6_000)
    assert ImageHandle(saved(Image.new("RGB", (64, 48)), "JPEG"), max_pixels=3_072).decode().shape == (3, 48, 64)
    endless = tmp_path / "endless.webp"
    endless.write_bytes(saved(Image.new("RGB", (64, 48)), "WEBP"))
    os.truncate(endless, 1 << 40)
    refused(endless, "at most 838,860,800 bytes; got 1,099,511,627,776")


@pytest.mark.slow
def test_a_photo_of_many_pixels_takes_little_memory(python, tmp_path):
    """30 megapixels, of which a view needs a part: the decoded image (4 bytes a pixel), and no second copy of it."""
    (tmp_path / "large.png").write_bytes(png_of_size(6_000, 5_000, zlib.compress(bytes((1 + 3 * 6_000) * 5_000), 1)))
    done = python(
        "import sys\n"
        "from mmcon.media import ImageHandle\n"
        "def peak():  # KiB; Linux only; not ru_maxrss, which begins at what the process that started this one had\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "photo = ImageHandle(sys.argv[1])\n"
        "before = peak()\n"
        "assert photo.decode(region=(4_000, 3_000, 224, 224)).shape == (3, 224, 224)\n"
        "print(peak() - before)\n",
        tmp_path / "large.png",
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160 << 10  # KiB; the decoded image has 114 MiB


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "socket"])
def test_what_is_no_regular_file_is_refused_without_opening_it(kind, tmp_path):
    path = tmp_path / "photo.jpg"
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "loop": lambda p: p.symlink_to(p)}
    make |= {"device": lambda p: p.symlink_to("/dev/zero"), "socket": lambda p: server.bind(str(p))}
    with socket.socket(socket.AF_UNIX) as server:
        make[kind](path)
        with pytest.raises(DataError, match=r"photo\.jpg(.|\n)*got (a FIFO|a device|a folder|a socket|OSError)"):
            ImageHandle(path).facts  # noqa: B018


def test_a_file_that_was_replaced_after_its_header_was_read_is_refused(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(saved(Image.fromarray(ramp())))
    photo = ImageHandle(path)
    assert photo.facts["height"] == 48
    path.write_bytes(saved(Image.fromarray(ramp(20, 30))))
    with pytest.raises(DataError, match=r"48 × 64 pixels, as its header said before; got 20 × 30"):
        photo.decode(region=(0, 0, 40, 40))


def test_damaged_avif_raises_nothing_but_data_errors():
    draw, clean = random.Random(0), saved(Image.new("RGB", (60, 40), "red"), "AVIF")
    for _ in range(300):
        data = bytearray(clean)
        data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(DataError):
            ImageHandle(bytes(data)).decode()


def test_postscript_is_not_handed_to_another_program():
    with pytest.raises(DataError, match="cannot identify image file"):
        ImageHandle(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", id="x.jpg").decode()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_regions_are_decoded_together_as_each_would_be_alone(form, monkeypatch):
    encoded = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)), form)
    regions = [((0, 0, 40, 50), (40, 40)), (None, None), ((10, 20, 64, 80), (8, 8)), ((5, 5, 70, 90), (8, 8))]
    alone = [ImageHandle(encoded).decode(*region) for region in regions]
    handle = ImageHandle(encoded)
    assert handle.facts
    opened, open_image, decode_jpeg = [], Image.open, torchvision.io.decode_jpeg
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or open_image(*args, **options))
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda file: opened.append(2) or decode_jpeg(file))
    for together, single in zip(handle.decode_regions(regions), alone, strict=True):
        assert torch.equal(together, single)
    assert len(opened) == {"JPEG": 2, "PNG": 1}[form]  # once for each reduction of a JPEG


def test_handles_of_one_file_have_equal_content_and_others_have_not(tmp_path):
    first, again = (ImageHandle(tmp_path / "a.png") for _ in range(2))
    assert first.content == again.content
    assert first.content != ImageHandle(tmp_path / "b.png").content
    assert first.content != ImageHandle(tmp_path / "a.png", channels=1).content
    encoded = saved(Image.new("RGB", (4, 4)))
    assert ImageHandle(encoded).content == ImageHandle(encoded).content
    assert ImageHandle(encoded).content != ImageHandle(saved(Image.new("RGB", (4, 4)))).content


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}, {"quality": 30}],
    ids=str,
)
@pytest.mark.parametrize("size", [(37, 51), (64, 48)])
def test_pixels_of_a_jpeg_are_those_of_pillow(tmp_path, options, size):
    noise = torch.rand(3, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(noise[None], size)[0].mul(255).to(torch.uint8).permute(1, 2, 0).numpy()
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, **{"quality": 90, **options})
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    for source in (path, path.read_bytes()):
        assert torch.equal(ImageHandle(source).decode(), expected)
        assert torch.equal(ImageHandle(source).decode((3, 5, 20, 30)), expected[:, 3:23, 5:35])


# AttributeError: torchvision without its extension for images.
@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_a_jpeg_that_torchvision_does_not_decode_is_decoded_by_pillow(tmp_path, monkeypatch, caplog, error):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(path)
    expected = ImageHandle(path).decode()

    def refuse(_):
        raise error("an odd marker")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    with caplog.at_level("INFO"):
        assert torch.equal(ImageHandle(path).decode(), expected)
    assert "an odd marker" in caplog.text


def damaged_jpeg(size=(96, 128)):
    """A JPEG whose coded pixels are damaged in the middle: decoders warn, and go on."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = bytearray(saved(Image.fromarray(noise), "JPEG", quality=90))
    content[len(content) // 2 : len(content) // 2 + 20] = b"\xff\xd9" + bytes(18)
    return bytes(content)


def test_a_header_is_read_once_for_all_views_of_a_file_that_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(Image.fromarray(ramp()), "JPEG"))
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args[0]) or original(*args, **options))
    first, second = DatasetSource([path], handle=lambda item, name: ImageHandle(item)).open([0, 0])
    assert first is second
    before = first.decode(), first.decode((0, 0, 8, 8)), first.facts
    assert len(opened) == 1
    path.write_bytes(saved(Image.fromarray(255 - ramp()), "JPEG"))
    os.utime(path, ns=(1, 1))
    assert not torch.equal(first.decode(), before[0])  # another image of this size is decoded after its header is read
    assert len(opened) == 2
    path.write_bytes(saved(Image.fromarray(ramp(20, 30)), "JPEG"))
    with pytest.raises(DataError, match="as its header said before"):
        first.decode()
    path.unlink()
    with pytest.raises(DataError, match="a file; got none"):
        first.decode()
