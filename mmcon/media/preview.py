"""Previews of media for pages that stand alone: small pictures, sounds and clips as data URIs, and the start of texts.

    preview_of(ImageHandle("photo.jpg"), "image").picture      # "data:image/webp;base64,…"

A sound has a spectrogram as its picture, a clip its middle frame. Sounds are MP3 (Ogg where the library has no MP3) and
clips H.264 in MP4 (VP9 in WebM where it is missing), which all browsers play.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor, nn

from mmcon.media.audio import AudioFormat, AudioHandle
from mmcon.media.image import ImageHandle
from mmcon.media.instances import Instances
from mmcon.media.text import TextHandle
from mmcon.media.video import VideoHandle

#: The longest sound and clip of a preview.
PLAYED_SECONDS = 4.0
#: Frames of a clip per second.
PLAYED_FRAMES_PER_SECOND = 8
#: The letters of a text.
SHOWN_LETTERS = 280
#: The rate of a sound; MP3 has 8, 11.025, 12, 16, 22.05, 24, 32, 44.1 and 48 kHz.
_MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@dataclass(frozen=True)
class Preview:
    """What a page shows of a sample or of a view; each attribute may be empty.

    Attributes:
        picture: a data URI of an image, of a spectrogram, or of the middle frame of a clip.
        text: the start of a text, or a description of numbers that are none of these media.
        sound: a data URI of a sound.
        clip: a data URI of a clip.
    """

    picture: str = ""
    text: str = ""
    sound: str = ""
    clip: str = ""

    def to_json(self) -> dict[str, str]:
        """The attributes that are not empty, by name."""
        return {name: value for name, value in asdict(self).items() if value}


def preview_of(sample: Any, modality: str, *, side: int = 96, playable: bool = True) -> Preview:
    """The preview of a sample of a source.

    Args:
        sample: a handle, a tensor, or a text.
        modality: the modality of a tensor.
        side: the longest side of the picture, in pixels.
        playable: whether a sound or a clip is included, which take some 20 KB each.

    Raises:
        DataError: the sample cannot be read.
    """
    if isinstance(sample, Instances):
        return preview_of(sample.instances[0], modality, side=side, playable=playable)
    if isinstance(sample, TextHandle | str):
        return Preview(text=_start(sample if isinstance(sample, str) else sample.value))
    if isinstance(sample, ImageHandle):
        return Preview(picture=image_uri(sample.decode(size=(side, side)), side=side))
    if isinstance(sample, AudioHandle):
        rate_hz = sample.audio_format.rate_hz
        signal = sample.decode(length=min(sample.facts["length"], int(PLAYED_SECONDS * rate_hz)))
        return preview_of_view({"signal": signal}, "audio", side=side, rate_hz=rate_hz, playable=playable)
    if isinstance(sample, VideoHandle):
        begin, end = sample.span
        seconds = min(end - begin, PLAYED_SECONDS)
        if not playable:
            return Preview(picture=image_uri(sample.decode([begin + seconds / 2], shorter_side=side)[0], side=side))
        times = begin + torch.arange(max(1, int(seconds * PLAYED_FRAMES_PER_SECOND))) / PLAYED_FRAMES_PER_SECOND
        return preview_of_view(sample.decode(times, shorter_side=side), "video", side=side)
    return preview_of_view(sample, modality, side=side, playable=playable)


def preview_of_view(
    view: Any, modality: str, *, side: int = 96, rate_hz: int = 16_000, playable: bool = True
) -> Preview:
    """The preview of one view, as a model receives it: without the axis of the batch.

    Args:
        view: pixels `c h w`, a clip `t c h w`, a waveform, or a mapping with `signal` or `log_mel` and `length`.
        modality: its modality.
        side: the longest side of the picture, in pixels.
        rate_hz: the sample rate of a waveform.
        playable: whether a sound or a clip is included.
    """
    if isinstance(view, Mapping):
        length = int(view["length"]) if "length" in view else None
        if "log_mel" in view:
            return Preview(picture=_spectrogram_uri(view["log_mel"].float().mean(0)[:, :length], side=side))
        if "signal" not in view:
            return Preview(text=", ".join(f"{name} {tuple(x.shape)}" for name, x in view.items()))
        signal = torch.atleast_2d(view["signal"].float())[:, :length]
        picture = _spectrogram_uri(_spectrum(signal.mean(0), rate_hz), side=side)
        return Preview(picture=picture, sound=sound_uri(signal, rate_hz) if playable else "")
    if not isinstance(view, Tensor):
        return Preview(text=_start(repr(view)))
    if modality == "audio" and view.dim() <= 2 and view.shape[-1] > 4_000:
        return preview_of_view({"signal": view}, modality, side=side, rate_hz=rate_hz, playable=playable)
    if view.dim() == 3:
        return Preview(picture=image_uri(view, side=side))
    if view.dim() == 4:
        picture = image_uri(view[len(view) // 2], side=side)
        return Preview(picture=picture, clip=clip_uri(view, side=side) if playable and len(view) > 1 else "")
    if view.dim() == 2 and min(view.shape) > 1:
        return Preview(picture=_spectrogram_uri(view.float(), side=side))
    return Preview(text=f"{str(view.dtype).removeprefix('torch.')} {tuple(view.shape)}")


def image_uri(pixels: Shaped[Tensor, "c h w"], *, side: int) -> str:
    """An image as WebP, no larger than `side`; channels that are no color are averaged, and odd values are scaled."""
    return _webp(_as_bytes(pixels), side)


def sound_uri(signal: Shaped[Tensor, "c t"], rate_hz: int) -> str:
    """The start of a waveform as MP3, in mono; a waveform beyond full scale is scaled down."""
    import soundfile

    mono = signal[:, : int(PLAYED_SECONDS * rate_hz)].detach().float().cpu().mean(0)
    target = next((rate for rate in _MP3_RATES if rate >= rate_hz), _MP3_RATES[-1])
    if target != rate_hz:
        mono = AudioHandle(mono, source_rate_hz=rate_hz, audio_format=AudioFormat(rate_hz=target)).decode()[0]
    mono = mono / max(1.0, float(mono.abs().max())) if mono.numel() else mono.new_zeros(1)
    kind, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("OGG", "audio/ogg")
    file = io.BytesIO()
    soundfile.write(file, mono.numpy(), target, format=kind)
    return _data_uri(mime, file.getvalue())


def clip_uri(frames: Shaped[Tensor, "t c h w"], *, side: int) -> str:
    """A clip as H.264 in MP4, at `PLAYED_FRAMES_PER_SECOND`."""
    import av
    from PIL import Image

    has_h264 = "libx264" in av.codecs_available
    codec, container, mime = ("libx264", "mp4", "video/mp4") if has_h264 else ("libvpx-vp9", "webm", "video/webm")
    scale = min(1.0, side / max(frames.shape[-2:]))
    # Both codecs halve the resolution of colors, so the sides are even.
    size = tuple(max(2, round(length * scale / 2) * 2) for length in (frames.shape[-1], frames.shape[-2]))
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(PLAYED_FRAMES_PER_SECOND))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "28", "preset": "veryfast"} if has_h264 else {"crf": "40", "b": "0", "cpu-used": "8"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            image = _pil(_as_bytes(frame)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
            output.mux(stream.encode(av.VideoFrame.from_image(image)))
        output.mux(stream.encode())
    return _data_uri(mime, file.getvalue())


def _start(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_LETTERS else words[: SHOWN_LETTERS - 1] + "…"


def _as_bytes(pixels: Shaped[Tensor, "c h w"]) -> UInt8[Tensor, "c2 h w"]:
    """Pixels of one or three channels as bytes; floats outside of [0, 1] are scaled to their range."""
    pixels = pixels.detach().cpu()
    pixels = pixels if pixels.shape[0] in (1, 3) else pixels.float().mean(0, keepdim=True)
    if pixels.dtype == torch.uint8:
        return pixels
    values = pixels.float().nan_to_num()
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    if high > 1.5 and low >= 0 and high <= 255:  # averages of bytes
        low, high = 0.0, 255.0
    return ((values - low) / (high - low) * 255).round().to(torch.uint8)


def _spectrum(signal: Shaped[Tensor, " t"], rate_hz: int) -> Shaped[Tensor, "f t2"]:
    """The logarithmic spectrogram of a waveform, with the window of `mmcon show`."""
    n = 1 << (rate_hz // 40).bit_length()
    signal = nn.functional.pad(signal, (0, max(0, n - len(signal))))
    spectrum = torch.stft(signal, n, n // 4, window=torch.hann_window(n), return_complex=True, pad_mode="constant")
    return spectrum.abs().clamp(min=1e-4).log()


def _spectrogram_uri(values: Shaped[Tensor, "f t"], *, side: int) -> str:
    """A spectrogram in color, low frequencies at the bottom."""
    import matplotlib

    values = values.detach().cpu().float().flip(0)
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / max(high - low, 1e-12)
    colors = matplotlib.colormaps["magma"](unit.numpy(), bytes=True)[..., :3]
    return _webp(torch.from_numpy(colors.copy()).permute(2, 0, 1), side, shape=(side, side * 3 // 4))


def _webp(pixels: UInt8[Tensor, "c h w"], side: int, shape: tuple[int, int] | None = None) -> str:
    from PIL import Image

    image = _pil(pixels)
    if shape is not None:
        image = image.resize(shape, Image.Resampling.BILINEAR)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=75, method=4)
    return _data_uri("image/webp", file.getvalue())


def _pil(pixels: UInt8[Tensor, "c h w"]) -> Any:
    from PIL import Image

    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy())


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
