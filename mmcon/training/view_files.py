"""Views as files: images, sounds and texts, as the model receives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.loading.loader import ViewLoader
from mmcon.loading.pipeline import ViewGroup
from mmcon.views import Params


def write_view(stem: Path, modality: str, view: Any, generator: Any) -> list[Path]:
    """Write one view as an image or an audio file, and its exact values as a tensor file."""
    tensor_file = stem.with_suffix(".pt")
    torch.save(view, tensor_file)
    if isinstance(view, Mapping) and "signal" in view:
        return [_write_audio(stem, view, generator), tensor_file]
    values = view["log_mel"] if isinstance(view, Mapping) and "log_mel" in view else view
    if isinstance(values, Tensor) and modality == "audio" and values.dim() <= 2 and values.shape[-1] > 4000:
        return [_write_audio(stem, {"signal": values}, generator), tensor_file]
    if isinstance(values, Tensor) and values.dim() >= 2:
        return [_write_image(stem, values), tensor_file]
    return [tensor_file]


def _write_image(stem: Path, values: Shaped[Tensor, "*axes h w"]) -> Path:
    """An image scaled to its range of values; the frames of a clip are concatenated horizontally."""
    from PIL import Image

    x = values.float()
    if x.dim() == 4:  # t c h w
        x = torch.cat(list(x), dim=-1)
    if x.dim() == 3 and x.shape[0] not in (1, 3):
        x = x.mean(0, keepdim=True)
    x = x if x.dim() == 3 else x[None]
    low, high = (0.0, 255.0) if values.dtype == torch.uint8 else (float(x.min()), float(x.max()))
    x = ((x - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
    image = Image.fromarray((x[0] if len(x) == 1 else x.permute(1, 2, 0)).numpy())
    scale = max(1, 224 // max(image.size))
    path = stem.with_suffix(".png")
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
    return path


def _write_audio(stem: Path, view: Mapping[str, Shaped[Tensor, "..."]], generator: Any) -> Path:
    import soundfile

    signal = view["signal"].float()
    signal = signal if signal.dim() == 2 else signal[None]
    if "length" in view:
        signal = signal[:, : int(view["length"])]
    path = stem.with_suffix(".wav")
    soundfile.write(path, (signal / max(1.0, float(signal.abs().max()))).T.numpy(), rate_of(generator))
    return path


def rate_of(generator: Any) -> int:
    """The sample rate of a chain's output: that of its last child that has one, else 16,000."""
    rates = [
        int(rate)
        for _, part in generator.children()
        for name in ("sample_rate_hz", "rate_hz")
        if (rate := getattr(part, name, None))
    ]
    return rates[-1] if rates else 16_000


def replayed_text(loader: ViewLoader, part: ViewGroup, row: int, params: Params) -> str:
    """The text of a sample at the input of the tokenizer.

    Args:
        loader: has the texts.
        part: the view group.
        row: the index of the sample in its source.
        params: the parameters of this one view.
    """
    source = loader.source.members[part.modality]
    current, words = source.open([row])[0], ""
    for name, generator in part.generator.children():
        words = getattr(current, "value", current if isinstance(current, str) else words)
        own_params = params if generator is part.generator else params[name]
        current = generator.apply([current], own_params)[0]
        if isinstance(current, Mapping):
            return words
    return getattr(current, "value", current)


def write_text(stem: Path, loader: ViewLoader, part: ViewGroup, row: int, params: Params, tokens: Any) -> Path:
    """The text at the input of the tokenizer, and the ids of its tokens."""
    words, path = replayed_text(loader, part, row, params), stem.with_suffix(".txt")
    ids = tokens["input_ids"][tokens["attention_mask"].bool()].tolist() if isinstance(tokens, Mapping) else []
    path.write_text(f"{words}\n" + (f"\ntokens: {' '.join(map(str, ids))}\n" if ids else ""))
    return path
