"""Encoders of sound: a small one of our own on log-mel spectrograms, and transformers' models by name or folder.

    create_audio_encoder("mmcon/log-mel-conv")
    create_audio_encoder("facebook/wav2vec2-base", pretrained=True)      # hub name or local folder

Ours takes the mappings that audio views give after `audio/log-mel`; transformers' models take waveforms (before it), at
the rate that they were trained with, and prepare features as their own configuration says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.models.encoders import create_encoder
from mmcon.registry import entries, register_encoder


def create_audio_encoder(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Make an encoder of sound by a registered name, or by a hub name or local folder of transformers.

    Args:
        name: "mmcon/log-mel-conv", another registered encoder of audio, or a transformers model.
        pretrained: load published weights (transformers).
        options: of the encoder.
    """
    if name in [entry.name for entry in entries("encoder", "audio")]:
        return create_encoder(name, modality="audio", **options)
    return create_encoder("transformers/audio", modality="audio", pretrained=pretrained, **{"model": name, **options})


@register_encoder("mmcon/log-mel-conv", modality="audio")
@final
class LogMelConv(nn.Module):
    """Four strided convolutions on a log-mel spectrogram, then the mean and the maximum over the real frames.

    Bands are pooled last, so that features know pitch; time is pooled over real frames only, so that padding does not
    count.

    Args:
        width: channels of the first layer; the last has eight times as many.
        bands: mel bands of the views.
        channels: of the sound.
    """

    def __init__(self, *, width: int = 24, bands: int = 64, channels: int = 1) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        rows = -(-bands // 16)
        self.mix = nn.Sequential(
            nn.Conv1d(8 * width * rows, 8 * width, 1, bias=False), nn.BatchNorm1d(8 * width), nn.ReLU()
        )
        self.bands, self.feature_dim = bands, 16 * width
        # A third less time a step on a CPU than with channels first.
        self.layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (stubs want a device)

    def forward(self, views: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Features of `{"log_mel": n c f t, "length": n}`."""
        if not isinstance(views, Mapping) or "log_mel" not in views or views["log_mel"].shape[-2] != self.bands:
            shape = tuple(views["log_mel"].shape) if isinstance(views, Mapping) and "log_mel" in views else type(views)
            raise InputError(
                "mmcon/log-mel-conv",
                expected=f'{{"log_mel": n c {self.bands} t, "length": n}}',
                got=str(shape),
                fix="end the view with audio/log-mel and as many bands",
            )
        x, length = views["log_mel"].contiguous(memory_format=torch.channels_last), views["length"]
        for layer in self.layers:
            x = layer(x)
            length = -(-length // 2)
        x = self.mix(x.flatten(1, 2))
        real = (torch.arange(x.shape[-1], device=x.device) < length.clamp(min=1)[:, None])[:, None]
        mean = (x * real).sum(-1) / real.sum(-1)
        return torch.cat([mean, x.masked_fill(~real, -torch.inf).amax(-1)], 1)


@register_encoder("transformers/audio", modality="audio")
@final
class TransformersAudio(nn.Module):
    """AST, wav2vec 2.0, HuBERT, WavLM or Whisper's encoder from transformers, with its own features of the waveform.

    Args:
        model: a hub name, or a local folder with config.json (and preprocessor_config.json where features need it).
        pretrained: load the weights; else the architecture starts at random.
        rate_hz: the rate of the views; it must be the model's own.
        revision: of a hub name.

    Features are the mean over the real frames of the last hidden states (AST: its pooled output).
    """

    def __init__(
        self, *, model: str, pretrained: bool = False, rate_hz: int = 16_000, revision: str | None = None
    ) -> None:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

        super().__init__()
        where = f"transformers/audio {model!r}"
        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            network = (
                AutoModel.from_pretrained(model, revision=revision) if pretrained else AutoModel.from_config(config)
            )
            self.extractor = AutoFeatureExtractor.from_pretrained(model, revision=revision)
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise DataError(
                where,
                expected="a transformers audio model with its preprocessor_config.json",
                got=str(error).partition("\n")[0],
                fix="give a folder that save_pretrained wrote (model and feature extractor), or check the network",
            ) from error
        self.kind = config.model_type
        self.network = network.get_encoder() if self.kind == "whisper" else network
        self.feature_dim = int(getattr(config, "d_model", None) or config.hidden_size)
        self.rate_hz = rate_hz
        if self.extractor.sampling_rate != rate_hz:
            raise InputError(
                where,
                expected=f"sounds at {self.extractor.sampling_rate} Hz",
                got=f"{rate_hz} Hz",
                fix=f"rate_hz={self.extractor.sampling_rate} in source and views",
            )

    def forward(self, views: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Features of `{"signal": n c t, "length": n}`; channels are mixed down."""
        if not isinstance(views, Mapping) or "signal" not in views:
            raise InputError(
                f"transformers/audio ({self.kind})",
                expected='waveforms, {"signal": n c t, "length": n}',
                got=str(sorted(views)) if isinstance(views, Mapping) else type(views).__name__,
                fix="leave audio/log-mel out of the view",
            )
        # Shorter than one window of theirs (25 ms), a sound has no frame; silence after it makes one.
        signal, shortest = views["signal"].mean(1), self.rate_hz // 40
        signal = nn.functional.pad(signal, (0, max(0, shortest - signal.shape[1])))
        length = views["length"].clamp(min=shortest)
        rows = [row[:n].cpu().numpy() for row, n in zip(signal, length.tolist(), strict=True)]
        options: dict[str, Any] = {"sampling_rate": self.rate_hz, "return_tensors": "pt"}
        if self.kind not in ("whisper", "audio-spectrogram-transformer"):
            options |= {"padding": True, "return_attention_mask": True}
        inputs = {k: v.to(signal.device) for k, v in self.extractor(rows, **options).items()}
        if self.kind == "whisper":
            return self._whisper(inputs["input_features"], length)
        if self.kind == "audio-spectrogram-transformer":
            return self.network(inputs["input_values"]).pooler_output
        mask = inputs["attention_mask"] if _uses_mask(self.network.config) else None
        hidden = self.network(inputs["input_values"], attention_mask=mask).last_hidden_state
        real = self.network._get_feature_vector_attention_mask(hidden.shape[1], inputs["attention_mask"])
        return _mean(hidden, real)

    def _whisper(self, features: Tensor, length: Tensor) -> Tensor:
        hidden = self.network(features).last_hidden_state
        # Two frames of 10 ms become one; what is beyond the sound is padding to thirty seconds.
        frames = (length / (self.rate_hz / 50)).ceil().clamp(1, hidden.shape[1]).to(hidden.device)
        return _mean(hidden, torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None])


def _uses_mask(config: Any) -> bool:
    """wav2vec 2.0's first models (group norm) were trained without masks, and are used so; padding moves them."""
    return getattr(config, "feat_extract_norm", "layer") == "layer"


def _mean(hidden: Float[Tensor, "n t d"], real: Tensor) -> Float[Tensor, "n d"]:
    weights = real.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
