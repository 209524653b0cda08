"""Audio encoders: a small convolutional one on log-mel spectrograms, and transformers models on waveforms.

    create_encoder("mmcon/log-mel-conv", modality="audio")
    create_encoder("facebook/wav2vec2-base", modality="audio", pretrained=True)      # hub name or local folder

`mmcon/log-mel-conv` takes the mapping that `audio/log-mel`, the last child of the view, returns. A transformers model
takes waveforms (a view without `audio/log-mel`) at the sample rate of its training, and computes its own input
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.pretrained import model_load_errors
from mmcon.registry import register_encoder


@register_encoder("mmcon/log-mel-conv", modality="audio")
@final
class LogMelConv(nn.Module):
    """Four strided convolutions on a log-mel spectrogram, then mean and maximum over the frames of the recording.

    Bands are flattened into channels instead of pooled, so that features keep pitch. Pooling over time excludes
    padding.

    Args:
        width: channels of the first layer; the last layer has eight times as many.
        bands: mel bands of the views.
        channels: audio channels.
    """

    def __init__(self, *, width: int = 24, bands: int = 64, channels: int = 1) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        bands_left = -(-bands // 16)  # four strides of 2, rounded up
        self.mix = nn.Sequential(
            nn.Conv1d(8 * width * bands_left, 8 * width, 1, bias=False), nn.BatchNorm1d(8 * width), nn.ReLU()
        )
        self.bands, self.feature_dim = bands, 16 * width
        # A training step on a CPU takes a third less time than with channels first.
        self.layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (stubs want a device)

    def forward(self, views: Mapping[str, Shaped[Tensor, "n ..."]]) -> Float[Tensor, "n d"]:
        """Features of `{"log_mel": n c bands t, "length": n}`."""
        if not isinstance(views, Mapping) or "log_mel" not in views or views["log_mel"].shape[-2] != self.bands:
            shape = tuple(views["log_mel"].shape) if isinstance(views, Mapping) and "log_mel" in views else type(views)
            raise InputError(
                "mmcon/log-mel-conv",
                expected=f'{{"log_mel": n c {self.bands} t, "length": n}}',
                got=str(shape),
                fix="end the view with audio/log-mel and as many bands",
            )
        # As `contiguous(memory_format=torch.channels_last)`, which vmap does not support.
        x, length = views["log_mel"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), views["length"]
        for layer in self.layers:
            x = layer(x)
            length = -(-length // 2)
        x = self.mix(rearrange(x, "n c bands t -> n (c bands) t"))
        valid = _frame_mask(length.clamp(min=1), x.shape[-1])[:, None]
        mean = (x * valid).sum(-1) / valid.sum(-1)
        return torch.cat([mean, x.masked_fill(~valid, -torch.inf).amax(-1)], 1)


@register_encoder("transformers/audio", modality="audio")
@final
class TransformersAudio(nn.Module):
    """AST, wav2vec 2.0, HuBERT, WavLM, or the encoder of Whisper from transformers, with its own feature extractor.

    The feature is the mean over the valid frames of the last hidden states (AST: its pooled output).

    Args:
        model: a hub name, or a local folder with config.json and preprocessor_config.json.
        pretrained: load the weights; otherwise the architecture has random weights.
        rate_hz: sample rate of the views; it must be that of the model.
        revision: the revision of a hub name.
    """

    def __init__(
        self, *, model: str, pretrained: bool = False, rate_hz: int = 16_000, revision: str | None = None
    ) -> None:
        from transformers import AutoFeatureExtractor

        super().__init__()
        where = f"transformers/audio {model!r}"
        with model_load_errors(
            where,
            expected="a transformers audio model with its preprocessor_config.json",
            fix="give a folder that save_pretrained wrote (model and feature extractor), or check the network",
        ):
            self.network, config = _network(model, pretrained, revision)
            self.extractor = AutoFeatureExtractor.from_pretrained(model, revision=revision, trust_remote_code=False)
        self.kind = config.model_type
        self.feature_dim = int(getattr(config, "d_model", None) or config.hidden_size)
        self.rate_hz = rate_hz
        if self.extractor.sampling_rate != rate_hz:
            raise InputError(
                where,
                expected=f"audio at {self.extractor.sampling_rate} Hz",
                got=f"{rate_hz} Hz",
                fix=f"rate_hz={self.extractor.sampling_rate} in source and views",
            )

    def forward(self, views: Mapping[str, Shaped[Tensor, "n ..."]]) -> Float[Tensor, "n d"]:
        """Features of `{"signal": n c t, "length": n}`; channels are averaged."""
        if not isinstance(views, Mapping) or "signal" not in views:
            raise InputError(
                f"transformers/audio ({self.kind})",
                expected='waveforms, {"signal": n c t, "length": n}',
                got=str(sorted(views)) if isinstance(views, Mapping) else type(views).__name__,
                fix="leave audio/log-mel out of the view",
            )
        # A waveform shorter than the extractor's window (25 ms) would have no frame, so it is padded with silence.
        signal, shortest = views["signal"].mean(1), self.rate_hz // 40
        signal = nn.functional.pad(signal, (0, max(0, shortest - signal.shape[1])))
        length = views["length"].clamp(min=shortest)
        inputs = self._extract(signal, length)
        if self.kind == "whisper":
            return self._whisper(inputs["input_features"], length)
        if self.kind == "audio-spectrogram-transformer":
            return self.network(inputs["input_values"]).pooler_output
        mask = inputs["attention_mask"] if _uses_mask(self.network.config) else None
        hidden = self.network(inputs["input_values"], attention_mask=mask).last_hidden_state
        valid = self.network._get_feature_vector_attention_mask(hidden.shape[1], inputs["attention_mask"])
        return _masked_mean(hidden, valid)

    def _extract(self, signal: Float[Tensor, "n t"], length: Int[Tensor, " n"]) -> dict[str, Shaped[Tensor, "n ..."]]:
        """Compute the inputs of the network with the model's feature extractor, which takes NumPy arrays on the CPU."""
        waveforms = [row[:n].cpu().numpy() for row, n in zip(signal, length.tolist(), strict=True)]
        options: dict[str, Any] = {"sampling_rate": self.rate_hz, "return_tensors": "pt"}
        if self.kind not in ("whisper", "audio-spectrogram-transformer"):
            options |= {"padding": True, "return_attention_mask": True}
        return {name: value.to(signal.device) for name, value in self.extractor(waveforms, **options).items()}

    def _whisper(self, inputs: Float[Tensor, "n bands t"], length: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        hidden = self.network(inputs).last_hidden_state
        # Whisper merges two frames of 10 ms into one and pads to thirty seconds; padding frames are excluded.
        frames = (length / (self.rate_hz / 50)).ceil().clamp(1, hidden.shape[1]).to(hidden.device)
        return _masked_mean(hidden, _frame_mask(frames, hidden.shape[1]))


def _network(model: str, pretrained: bool, revision: str | None) -> tuple[Any, Any]:
    """The network and its configuration; of Whisper the encoder, of a whole model or saved alone."""
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    if config.architectures == ["WhisperEncoder"]:  # AutoModel would make a decoder of random weights beside it
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        if not pretrained:
            return WhisperEncoder(config), config
        return WhisperEncoder.from_pretrained(model, revision=revision or "main"), config
    if pretrained:
        network = AutoModel.from_pretrained(model, revision=revision, trust_remote_code=False)
    else:
        network = AutoModel.from_config(config, trust_remote_code=False)
    return network.get_encoder() if config.model_type == "whisper" else network, config


def _uses_mask(config: Any) -> bool:
    """Whether the model takes an attention mask; wav2vec 2.0's first models (group norm) were trained without one."""
    return getattr(config, "feat_extract_norm", "layer") == "layer"


def _frame_mask(length: Shaped[Tensor, " n"], frames: int) -> Bool[Tensor, "n t"]:
    """A mask of the frames before each row's length."""
    return torch.arange(frames, device=length.device) < length[:, None]


def _masked_mean(hidden: Float[Tensor, "n t d"], valid: Shaped[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    weights = valid.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
