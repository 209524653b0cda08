"""The inputs of a loaded model as a source: paths, bytes, images, arrays, recordings, clips and texts.

| modality | one input |
|---|---|
| image | a path, the bytes of a file, a PIL image, an array `h w` or `h w c`, a tensor `c h w` |
| audio | a path, bytes, `(samples, rate_hz)` with samples `t`, `c t` or `t c` |
| video | a path (a file, or a folder of frames), bytes, `(frames, frames_per_second)` with frames `t c h w` |
| text | a string |

A handle of `mmcon.media` is one input too. Several inputs are a list of these, or images of one size as one array
`n h w c` or one tensor `n c h w`. Unsigned integers have the full scale of their dtype; floats are in [0, 1].
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from mmcon.errors import InputError, nearest
from mmcon.media import (
    AudioFormat,
    AudioHandle,
    FrameStack,
    ImageHandle,
    Instances,
    TextHandle,
    VideoHandle,
    open_video,
)
from mmcon.sources.base import DatasetSource, Source, TensorSource
from mmcon.sources.factory import TYPICAL_SUFFIXES
from mmcon.sources.files import SUFFIXES

WHERE = "encode"
KINDS = "paths, bytes, PIL images, arrays, (samples, rate_hz), handles of mmcon.media, texts, or a list of one kind"
_HANDLES = {ImageHandle: "image", AudioHandle: "audio", VideoHandle: "video", TextHandle: "text"}

#: Unreadable inputs that a warning names one by one.
_NAMED = 5


class UnreadableWarning(UserWarning):
    """Inputs that cannot be read were left out.

    Attributes:
        rows: their positions among the inputs.
        reasons: why, by position.
    """

    def __init__(self, total: int, reasons: Mapping[int, str]) -> None:
        self.rows, self.reasons = sorted(reasons), dict(reasons)
        shown = "".join(f"\n  input {row}: {self.reasons[row].partition(chr(10))[0]}" for row in self.rows[:_NAMED])
        more = f"\n  and {len(self.rows) - _NAMED:,} more (see `rows`)" if len(self.rows) > _NAMED else ""
        super().__init__(f"{len(self.rows):,} of {total:,} inputs cannot be read and are left out:{shown}{more}")


def input_source(inputs: Any, modality: str | None, media: Mapping[str, Mapping[str, Any]]) -> Source:
    """The inputs as a source, whose ids are their positions.

    Args:
        inputs: one input, several, or a source, which is returned (of a joined one, the member of the modality).
        modality: the modality; None: the only one of the model, or found from the types and the suffixes.
        media: by modality of the model, how its media are decoded (`Preprocessing.media`).

    Raises:
        InputError: the model lacks the modality, it cannot be found, or inputs are of another kind.
    """
    if modality is not None:
        check_modality(modality, media)
    if isinstance(inputs, Source):
        return _member(inputs, modality, media)
    if isinstance(inputs, Tensor | np.ndarray):
        # Recordings and clips in memory come with a rate.
        modality = modality or ("image" if "image" in media else _only_modality(media, "an array"))
        if modality == "image" and inputs.ndim == 4:
            if (stack := _image_stack(inputs, media["image"])) is not None:
                return stack
            inputs = list(inputs)
    items = _as_list(inputs)
    modality = modality or _common_modality(items, media)
    if modality in ("image", "audio"):
        _check_no_folder(items)
    opener = InputOpener(modality, dict(media[modality]))
    return DatasetSource(items, handle=opener, modality=modality, name="inputs", max_failures=1.0)


def check_modality(modality: str, known: Iterable[str]) -> None:
    """Raise InputError if the model lacks a modality."""
    if modality not in known:
        got, fix = f"modality {modality!r}", nearest(modality, list(known))
        raise InputError(WHERE, expected=f"a modality of the model, {sorted(known)}", got=got, fix=fix)


@dataclass(frozen=True)
class InputOpener:
    """A function from an input and its name to a handle that decodes as the model's training data did.

    Attributes:
        modality: the modality of the inputs.
        media: `channels` of images, `rate_hz` and `channels` of audio, `columns` of texts.
    """

    modality: str
    media: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, item: Any, name: str) -> Any:
        """Open one input."""
        known = item.instances[0] if isinstance(item, Instances) else item
        handle = next((kind for kind in _HANDLES if isinstance(known, kind)), None)
        if handle is not None:
            if _HANDLES[handle] != self.modality:
                raise self._refused(item)
            return item
        openers = {"image": self._image, "audio": self._audio, "video": self._video, "text": self._text}
        # The views of a plug-in's modality take its items as they are.
        return openers[self.modality](item, f"inputs[{name}]") if self.modality in openers else item

    def _image(self, item: Any, name: str) -> Any:
        channels = int(self.media.get("channels", 3))
        if isinstance(item, np.ndarray | Tensor) and _is_float(item):
            return _float_image(item, channels, name)
        if isinstance(item, np.ndarray | Tensor) and not _is_unsigned(item):
            fix = "images of uint8 from 0 to 255, or floats in [0, 1]"
            raise InputError(WHERE, expected="unsigned integers or floats", got=f"{name} of {item.dtype}", fix=fix)
        if not isinstance(item, str | Path | bytes | np.ndarray | Tensor | Image.Image):
            raise self._refused(item)
        return ImageHandle(item, id="" if isinstance(item, str | Path) else name, channels=channels)

    def _audio(self, item: Any, name: str) -> AudioHandle:
        audio_format = AudioFormat(int(self.media.get("rate_hz", 16_000)), int(self.media.get("channels", 1)))
        if _is_with_rate(item):
            return AudioHandle(item[0], audio_format=audio_format, id=name, source_rate_hz=round(item[1]))
        if not isinstance(item, str | Path | bytes):
            raise self._refused(item, "give (samples, rate_hz)")
        return AudioHandle(item, audio_format=audio_format, id="" if isinstance(item, str | Path) else name)

    def _video(self, item: Any, name: str) -> VideoHandle:
        if _is_with_rate(item):
            frames = item[0] if isinstance(item[0], Tensor) else torch.from_numpy(np.moveaxis(item[0], -1, -3).copy())
            if frames.dim() != 4 or frames.dtype != torch.uint8:
                got = f"{name} of {frames.dtype} and shape {tuple(frames.shape)}"
                raise InputError(WHERE, expected="frames `t c h w`, uint8", got=got)
            return FrameStack(frames, frames_per_second=float(item[1]), name=name)
        if not isinstance(item, str | Path | bytes):
            raise self._refused(item, "give (frames, frames_per_second)")
        return open_video(item, name="" if isinstance(item, str | Path) else name)

    def _text(self, item: Any, name: str) -> TextHandle:
        if not isinstance(item, str):
            raise self._refused(item)
        # A view may choose a column of the training data by its name.
        columns = tuple(self.media.get("columns", ("text",)))
        return TextHandle((item,) * len(columns), columns, id=name)

    def _refused(self, item: Any, fix: str = "") -> InputError:
        expected = f"{self.modality} as {KINDS}"
        return InputError(WHERE, expected=expected, got=type(item).__name__, fix=fix or "name its kind with modality=")


def _member(source: Source, modality: str | None, media: Mapping[str, Any]) -> Source:
    members = source.members
    shared = [name for name in members if name in media]
    name = modality or (shared[0] if len(shared) == 1 else None)
    if name not in members or name not in media:
        fix = "name one with modality=" if len(shared) > 1 else "load a model of this modality"
        got = f"{source.name} of {sorted(members)}"
        raise InputError(WHERE, expected=f"a source with one modality among {sorted(media)}", got=got, fix=fix)
    return members[name]


def _as_list(inputs: Any) -> list[Any]:
    single = (str, Path, bytes, Image.Image, np.ndarray, Tensor, Instances, *_HANDLES)
    if isinstance(inputs, single) or _is_with_rate(inputs):
        return [inputs]
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        raise InputError(WHERE, expected=KINDS, got=type(inputs).__name__)
    items = list(inputs)
    if not items:
        raise InputError(WHERE, expected="at least one input", got="an empty list")
    return items


def _check_no_folder(items: list[Any]) -> None:
    folder = next((item for item in items if isinstance(item, str | Path) and os.path.isdir(item)), None)
    if folder is not None:
        fix = "model.encode_source(mmcon.inference.open_data(model, folder)) takes all of its files"
        raise InputError(WHERE, expected="files", got=f"the folder {str(folder)!r}", fix=fix)


def _common_modality(items: list[Any], media: Mapping[str, Any]) -> str:
    """The one modality of all inputs."""
    counts = Counter(_modality_of(item, media) for item in items)
    if len(counts) > 1:
        got = ", ".join(f"{count} of {name}" for name, count in counts.most_common())
        fix = "call it once for each modality, or name it with modality="
        raise InputError(WHERE, expected="inputs of one modality", got=got, fix=fix)
    (name,) = counts
    check_modality(name, media)
    return name


def _modality_of(item: Any, media: Mapping[str, Any]) -> str:
    if _is_with_rate(item):
        return "video" if item[0].ndim == 4 else "audio"
    known = item.instances[0] if isinstance(item, Instances) else item
    if handle := next((kind for kind in _HANDLES if isinstance(known, kind)), None):
        return _HANDLES[handle]
    if isinstance(item, Image.Image) or (isinstance(item, np.ndarray | Tensor) and "image" in media):
        return "image"
    if isinstance(item, str) and "text" in media and (len(media) == 1 or not _is_path(item)):
        _check_no_media_file(item)
        return "text"
    if isinstance(item, str | Path):
        return _modality_of_path(Path(item), media)
    return _only_modality(media, type(item).__name__)


def _check_no_media_file(text: str) -> None:
    """Raise InputError for the path of a media file, of which a model of texts would encode the name."""
    kind = next((name for name, known in SUFFIXES.items() if text.lower().endswith(known)), None)
    if kind is not None and _is_there(text):
        fix = f"load a model of {kind}, or pass modality='text' if this name is the text"
        got = f"the file {text!r} of {kind!r}"
        raise InputError(WHERE, expected="texts, all that the model takes", got=got, fix=fix)


def _modality_of_path(path: Path, media: Mapping[str, Any]) -> str:
    """The modality of a file: the only one of the model, or by its suffix."""
    others = [name for name in media if name != "text"]
    if len(others) == 1:
        return others[0]
    suffix = path.suffix.lower()
    typical = [name for name, known in TYPICAL_SUFFIXES.items() if suffix in known]
    possible = [name for name, known in SUFFIXES.items() if suffix in known]
    found = [name for name in (*typical, *possible) if name in media] or typical or possible
    if not found:
        got = f"{str(path)!r}, whose suffix says none"
        raise InputError(WHERE, expected="a known modality", got=got, fix="name it with modality=")
    return found[0]


def _only_modality(media: Mapping[str, Any], what: str) -> str:
    others = [name for name in media if name != "text"]
    if len(others) != 1:
        got = f"{what}, which may be any of {others}" if others else f"{what}, and a model of text"
        raise InputError(WHERE, expected="an input of a known modality", got=got, fix="name it with modality=")
    return others[0]


def _is_path(text: str) -> bool:
    """Whether a string names a file: it has a suffix of media, or is there."""
    return any(Path(text).suffix.lower() in known for known in SUFFIXES.values()) or _is_there(text)


def _is_there(text: str) -> bool:
    try:
        return len(text) < 1024 and Path(text).exists()
    except (OSError, ValueError):  # a text may be no name of a file
        return False


def _is_with_rate(item: Any) -> bool:
    is_pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray | Tensor)
    return is_pair and isinstance(item[1], int | float)


def _is_float(item: Any) -> bool:
    return item.is_floating_point() if isinstance(item, Tensor) else item.dtype.kind == "f"


def _is_unsigned(item: Any) -> bool:
    return not item.dtype.is_signed if isinstance(item, Tensor) else item.dtype.kind == "u"


def _image_stack(images: Any, media: Mapping[str, Any]) -> TensorSource | None:
    """Images of one size with the channels of the model as a source; None: they are opened one by one."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    if images.shape[1] != media.get("channels", 3):
        return None
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        return None
    return TensorSource(images.detach().cpu(), modality="image", name="inputs", max_failures=1.0)


def _float_image(item: Any, channels: int, name: str) -> Shaped[Tensor, "c h w"]:
    if isinstance(item, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(item if item.ndim == 3 else item[..., None])).permute(2, 0, 1)
    else:
        image = (item if item.dim() == 3 else item[None]).detach().cpu()
    if image.dim() != 3 or len(image) not in (1, channels):
        expected = f"a float image of {channels} channels, or of one"
        got = f"{name} of shape {tuple(item.shape)}"
        fix = "arrays are `h w c`, tensors `c h w`; images of uint8 may have other channels"
        raise InputError(WHERE, expected=expected, got=got, fix=fix)
    return image.expand(channels, -1, -1)
