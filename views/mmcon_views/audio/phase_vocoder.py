"""Change tempo and pitch of waveforms by a phase vocoder, and speed by resampling; each row has its own factors.

Quality: frames of 64 ms (at 16 kHz), a Hann window, fourfold overlap, no phase locking: the textbook vocoder (Flanagan
and Golden 1966; Dolson 1986), as in torchaudio. A change of tempo keeps the pitch of steady tones to a cent; transients
are smeared over a frame. Tempo 1 and pitch 0 leave the signal unchanged. Pitch shifts are exact to 3 cents for shifts
down to an octave below, and to 7 cents up to an octave above (the length of a synthesized frame is a multiple of four
samples); steady tones lose up to 1.1 dB.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from mmcon.portable_math import exp
from mmcon_views.audio.waveform_ops import silence_padding


def advance_phases(spectrum: Complex[Tensor, "b t f"], positions: Float[Tensor, "b k"]) -> Complex[Tensor, "b k f"]:
    """Frames at fractional positions, with the phases of frames one hop apart.

    Magnitudes are interpolated. A phase is the sum of the phase differences of all frames before it, computed as a
    product of unit complex numbers, without angles and sines.

    Args:
        spectrum: frames of a short-time Fourier transform.
        positions: fractional frame positions.
    """
    padded = torch.nn.functional.pad(torch.view_as_real(spectrum), (0, 0, 0, 0, 0, 2))
    padded = torch.view_as_complex(padded)
    left = positions.floor().long().clamp(max=spectrum.shape[1])
    rows = torch.arange(len(spectrum), device=spectrum.device)[:, None]
    magnitude, unit = padded.abs(), padded.sgn()
    # An empty bin has phase 0, as in torch.angle.
    unit = torch.where(magnitude == 0, torch.ones_like(unit), unit)
    share = (positions - left)[..., None].to(magnitude.dtype)
    mixed = torch.lerp(magnitude[rows, left], magnitude[rows, left + 1], share)
    steps = unit[rows, left + 1] * unit[rows, left].conj()
    phases = torch.cat([unit[:, :1], steps[:, :-1]], 1).cumprod(1)
    return phases * mixed


def change_tempo_and_pitch(
    signal: Float[Tensor, "b c t"],
    length: Int[Tensor, " b"],
    *,
    tempo: Float[Tensor, " b"],
    semitones: Float[Tensor, " b"],
    frame: int = 1024,
) -> Float[Tensor, "b c t"]:
    """Change tempo (2 is twice as fast) and pitch of each row; the width is kept, and `new_length` samples are real.

    Synthesized frames have another length than analyzed frames, so that the same bins have other frequencies, which
    changes the pitch. Bins above the new Nyquist frequency are lost.
    """
    hop, t = frame // 4, signal.shape[-1]
    window = torch.hann_window(frame, device=signal.device)
    padded = torch.nn.functional.pad(silence_padding(signal, length), (frame // 2, frame + hop))
    sizes = synthesis_frame(semitones, frame)
    tempo = tempo.to("cpu", torch.float64)
    out = signal.clone()
    # Row by row: transforms and complex products of many rows may round differently.
    for row, (size, own_tempo) in enumerate(zip(sizes.tolist(), tempo.tolist(), strict=True)):
        # Neutral rows keep their bits: even an identical synthesis would round.
        if size == frame and own_tempo == 1:
            continue
        spectrum = torch.fft.rfft(padded[row].unfold(-1, frame, hop) * window)
        count = (t + size) // (size // 4) + 1
        positions = (torch.arange(count, dtype=torch.float64) * (own_tempo * size / frame)).clamp(max=spectrum.shape[1])
        moved = advance_phases(spectrum, positions.expand(len(spectrum), -1).to(signal.device))
        out[row] = _overlap_add(moved, size, t, size / frame)
    return silence_padding(out, new_length(length.cpu(), tempo, t).to(length.device))


def new_length(length: Int[Tensor, " b"], tempo: Float[Tensor, " b"], t: int) -> Int[Tensor, " b"]:
    """The number of real samples of each row after a change of tempo, at most the width."""
    return torch.ceil(length / tempo.to(torch.float64)).long().clamp(max=t)


def synthesis_frame(semitones: Float[Tensor, " b"], frame: int) -> Int[Tensor, " b"]:
    """The length of synthesized frames, a multiple of four; shorter frames have a higher pitch."""
    exact = frame * exp(-semitones.to("cpu", torch.float64) * (math.log(2) / 12))
    return torch.round(exact / 4).long().clamp(min=4) * 4


def _overlap_add(spectrum: Complex[Tensor, "b k f"], size: int, t: int, scale: float) -> Float[Tensor, "b t"]:
    window = torch.hann_window(size, device=spectrum.device)
    quarters = (torch.fft.irfft(spectrum, n=size) * (window * scale)).unflatten(-1, (4, -1))
    weights = window.square().view(4, -1)
    b, k, _, hop = quarters.shape
    total = quarters.new_zeros(b, k + 3, hop)
    covered = quarters.new_zeros(k + 3, hop)
    for i in range(4):
        total[:, i : i + k] += quarters[:, :, i]
        covered[i : i + k] += weights[i]
    # At both ends only the window's tails cover a sample, where a division would amplify rounding errors.
    out = (total / covered.clamp(min=1e-4)).flatten(1)
    return out[:, size // 2 : size // 2 + t]


def change_speed(
    signal: Float[Tensor, "b c t"], length: Int[Tensor, " b"], percent: Int[Tensor, " b"]
) -> Float[Tensor, "b c t"]:
    """Change the speed of each row to a percentage, and the pitch with it (torchaudio's resampling)."""
    from mmcon.media.resampling import resampler

    t, out = signal.shape[-1], signal.clone()
    # Row by row: a convolution over many rows may round differently.
    for row, p in enumerate(percent.tolist()):
        if p != 100:
            played = resampler(p, 100).to(signal.device)(signal[row, :, : int(length[row])])[:, :t]
            out[row] = torch.nn.functional.pad(played, (0, t - played.shape[-1]))
    return out


def vocoder_frame(rate_hz: int) -> int:
    """The largest power of two of at most 64 ms: 1024 at 16 kHz, 512 at 8 kHz."""
    return 1 << round(rate_hz * 0.064).bit_length() - 1
