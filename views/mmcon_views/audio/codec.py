"""Lossy audio codecs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio.waveform import Range, silence_padded, with_signal


@final
@register_view("audio/codec", modality="audio")
class Codec(ViewGenerator):
    """Encode and decode with a lossy codec, on the host: MP3 or Vorbis at a drawn compression, or telephone µ-law.

    Args:
        codecs: the codecs that may be drawn: "mp3", "ogg", "mu-law".
        compression: bounds of the compression, from 0 (best quality) to 1 (smallest).
        rate_hz: the sample rate.
        p: the probability of any codec.
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        codecs: Sequence[str] = ("mp3", "ogg", "mu-law"),
        compression: Range = (0.0, 0.9),
        rate_hz: int = 16_000,
        p: float = 1.0,
    ) -> None:
        if not codecs or set(codecs) - {"mp3", "ogg", "mu-law"}:
            raise InputError("audio/codec", expected="codecs among mp3, ogg, mu-law", got=str(codecs))
        self.codecs, self.compression, self.rate_hz, self.p = tuple(codecs), compression, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `codec`, an index (−1 for none), and `compression`."""
        which = torch.where(keys.bernoulli("on", self.p), keys.choice("codec", len(self.codecs)), -1)
        return {"codec": which, "compression": keys.uniform("compression", *self.compression)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Encode and decode row by row."""
        signal, length = silence_padded(batch)
        out = signal.clone()
        for row, which in enumerate(params["codec"].tolist()):
            if which >= 0 and int(length[row]):
                coded = self._code(
                    self.codecs[which], signal[row, :, : int(length[row])], float(params["compression"][row])
                )
                out[row, :, : coded.shape[-1]] = coded
        return with_signal(batch, out)

    def _code(self, codec: str, samples: Float[Tensor, "c t"], compression: float) -> Float[Tensor, "c t"]:
        if codec == "mu-law":
            from torchaudio.functional import mu_law_decoding, mu_law_encoding

            return mu_law_decoding(mu_law_encoding(samples.clamp(-1, 1), 256), 256)
        import soundfile

        file = io.BytesIO()
        options: dict[str, Any] = {"format": codec.upper(), "compression_level": compression}
        soundfile.write(file, samples.T.cpu().numpy(), self.rate_hz, **options)
        coded = torch.from_numpy(soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)[0].T)
        # MP3 and Vorbis code whole frames, so that the decoded length may differ.
        n = samples.shape[-1]
        return torch.nn.functional.pad(coded, (0, max(0, n - coded.shape[-1])))[:, :n].to(samples)
