"""Waveform operations as pure functions of a batch: `signal` is `b c t`, `length` the number of real samples per row.

Padding stays zero. Parameters have one value per row. Sums have a fixed order, so that the bits of a row do not depend
on its batch; for the same reason some operations run row by row.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from mmcon.portable_math import exp

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
# Elements of an intermediate result of noise: half a megabyte of int64.
_CACHED = 1 << 16


def valid(length: Int[Tensor, " b"], t: int) -> Bool[Tensor, "b t"]:
    """The mask of real samples."""
    return torch.arange(t, device=length.device) < length[:, None]


def silence_padding(signal: Float[Tensor, "b c t"], length: Int[Tensor, " b"]) -> Float[Tensor, "b c t"]:
    """The signal with zeros beyond each row's length."""
    if length.device.type == "cpu" and bool((length >= signal.shape[-1]).all()):
        return signal
    return signal.masked_fill(~valid(length, signal.shape[-1])[:, None], 0.0)


def column(values: Shaped[Tensor, " b"], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "b 1 1"]:
    """One value a row, with the dtype and on the device of a signal."""
    return values.to(like.device, like.dtype)[:, None, None]


def from_db(level_db: Float[Tensor, " b"], per_decade: float = 20.0) -> Float64[Tensor, " b"]:
    """The factor of a level in dB, with the same bits in any batch; 20 dB per decade for amplitudes, 10 for powers."""
    return exp((level_db.to("cpu", torch.float64) * (math.log(10) / per_decade)).clamp(-700, 700))


def energy(signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b c 1"]:
    """Sums of squares by row, with the same bits in any batch."""
    return torch.stack([row.square().sum(-1, keepdim=True) for row in signal])


def amplify(signal: Float[Tensor, "b c t"], gain_db: Float[Tensor, " b"]) -> Float[Tensor, "b c t"]:
    """Multiply by a gain in dB."""
    return signal * column(from_db(gain_db), signal)


def white_noise(seed: Int[Tensor, " b"], channels: int, t: int, device: torch.device) -> Float[Tensor, "b c t"]:
    """Standard normal noise from one seed per row: SplitMix64 over a counter, then Box–Muller in float32.

    The first samples do not depend on the length. Devices agree up to the rounding of log and cosine.
    """
    pairs = -(-t // 32) * 16  # whole SIMD vectors, so that no vector spans two rows
    at = torch.arange(1, channels * pairs + 1, device=device) * _GOLDEN
    both = torch.empty(len(seed), channels * pairs, 2, device=device)
    # Few rows at a time on a CPU, so that intermediate results stay in its cache.
    rows = max(1, _CACHED // max(1, len(at))) if both.device.type == "cpu" else max(1, len(seed))
    for some, out in zip(seed.to(device).split(rows), both.split(rows), strict=True):
        _box_muller(some[:, None] + at, out)
    return both.view(len(seed), channels, 2 * pairs)[..., :t]


def _box_muller(z: Int[Tensor, "b n"], out: Float[Tensor, "b n 2"]) -> None:
    """Normal numbers from the counters of SplitMix64; `z` is overwritten."""
    # torch shifts signed integers with their sign; the masks make the shifts those of unsigned ones.
    z = z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MIX_1)
    z = z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MIX_2)
    z = z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
    # 24 bits are the mantissa of a float32; the half keeps the logarithm's argument above 0.
    first = (z >> 40).bitwise_and_(0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24)
    angle = (z >> 8).bitwise_and_(0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24 * 2 * math.pi)
    radius = first.log_().mul_(-2).sqrt_()
    torch.mul(radius, angle.cos(), out=out[..., 0])
    torch.mul(radius, angle.sin(), out=out[..., 1])


def color_noise(noise: Float[Tensor, "b c t"], slope_db: Float[Tensor, " b"]) -> Float[Tensor, "b c t"]:
    """Color white noise by a spectral slope in dB per octave: 0 white, −3 pink, −6 brown, +3 blue."""
    t, slopes = noise.shape[-1], slope_db.tolist()
    octaves = torch.arange(t // 2 + 1, device=noise.device, dtype=torch.float32).clamp(min=1).log2()
    octaves = octaves - octaves[-1]
    # Row by row: the rounding of transforms and powers depends on the number of rows.
    colored = []
    for row, slope in zip(noise, slopes, strict=True):
        spectrum = torch.view_as_real(torch.fft.rfft(row)) * (10.0 ** (slope / 20 * octaves))[:, None]
        colored.append(torch.fft.irfft(torch.view_as_complex(spectrum), n=t))
    return torch.stack(colored)


def add_noise(
    signal: Float[Tensor, "b c t"],
    noise: Float[Tensor, "b c t"],
    snr_db: Float[Tensor, " b"],
    length: Int[Tensor, " b"],
) -> Float[Tensor, "b c t"]:
    """Add noise at a signal-to-noise ratio in dB, measured over the real samples; silence stays silent."""
    noise = silence_padding(noise, length)
    # Noise without energy, times a finite ratio, stays silent.
    ratio = energy(silence_padding(signal, length)) / energy(noise).clamp(min=1e-20)
    return signal + noise * (ratio * column(from_db(-snr_db, 10.0), signal)).sqrt()


def shift(
    signal: Float[Tensor, "b c t"], by: Int[Tensor, " b"], length: Int[Tensor, " b"], *, wrap: bool
) -> Float[Tensor, "b c t"]:
    """Shift the real samples to the right, circularly (wrap) or with silence."""
    at = torch.arange(signal.shape[-1], device=signal.device) - by[:, None]
    source = at.remainder(length.clamp(min=1)[:, None]) if wrap else at
    inside = valid(length, signal.shape[-1]) & (source >= 0) & (source < length[:, None])
    index = source.clamp(0, signal.shape[-1] - 1)[:, None].expand_as(signal)
    return signal.gather(-1, index) * inside[:, None]


def fade(
    signal: Float[Tensor, "b c t"],
    fade_in: Int[Tensor, " b"],
    fade_out: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    shape: str,
) -> Float[Tensor, "b c t"]:
    """Fade in over the first samples and out over the last, in one of torchaudio's shapes."""
    at = torch.arange(signal.shape[-1], device=signal.device)

    def ramp(position: Int[Tensor, "_ t"], n: Int[Tensor, " b"]) -> Float[Tensor, "b t"]:
        x = position / (n - 1).clamp(min=1)[:, None]
        return torch.where(position < n[:, None], FADE_SHAPES[shape](x).clamp(0, 1), 1.0)

    rising, falling = ramp(at[None], fade_in), ramp(length[:, None] - 1 - at, fade_out)
    return signal * (rising * falling.where(at < length[:, None], 0.0))[:, None]


FADE_SHAPES = {
    "linear": lambda x: x,
    "exponential": lambda x: torch.pow(2, x - 1) * x,
    "logarithmic": lambda x: torch.log10(0.1 + x) + 1,
    "quarter_sine": lambda x: torch.sin(x * math.pi / 2),
    "half_sine": lambda x: torch.sin(x * math.pi - math.pi / 2) / 2 + 0.5,
}


def silence(
    signal: Float[Tensor, "b c t"], start: Int[Tensor, " b"], width: Int[Tensor, " b"]
) -> Float[Tensor, "b c t"]:
    """Zeros over a span."""
    at = torch.arange(signal.shape[-1], device=signal.device)
    inside = (at >= start[:, None]) & (at < (start + width)[:, None])
    return signal.masked_fill(inside[:, None], 0.0)


def clip(signal: Float[Tensor, "b c t"], level_db: Float[Tensor, " b"]) -> Float[Tensor, "b c t"]:
    """Clip at a level in dB relative to the peak of each row."""
    limit = signal.abs().amax((1, 2), keepdim=True) * column(from_db(level_db), signal)
    return signal.clamp(-limit, limit)


def biquad(
    signal: Float[Tensor, "b c t"], b: Float[Tensor, "b 3"], a: Float[Tensor, "b 3"], length: Int[Tensor, " b"]
) -> Float[Tensor, "b c t"]:
    """Filter each row with its own second-order section."""
    from torchaudio.functional import lfilter

    # Row by row: lfilter's convolution over many rows may round differently.
    rows = zip(signal, a.to(signal), b.to(signal), strict=True)
    return silence_padding(torch.stack([lfilter(x, a_, b_, clamp=False) for x, a_, b_ in rows]), length)


def pass_filter(
    kind: str, cutoff_hz: Float[Tensor, " b"], rate_hz: int, q: float
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
    """Coefficients (b, a) of low, high and band passes (Bristow-Johnson's audio EQ cookbook, as in torchaudio)."""
    # In float64: for low cutoffs 1 - cos w cancels, and float32 would keep few digits.
    w = 2 * math.pi * cutoff_hz.to(torch.float64) / rate_hz
    cos, alpha = torch.cos(w), torch.sin(w) / (2 * q)
    ones, zeros = torch.ones_like(cos), torch.zeros_like(cos)
    top = {
        "low": ((1 - cos) / 2, 1 - cos, (1 - cos) / 2),
        "high": ((1 + cos) / 2, -1 - cos, (1 + cos) / 2),
        "band": (alpha, zeros, -alpha),
    }[kind]
    a0 = ones + alpha
    return torch.stack(top, 1) / a0[:, None], torch.stack([a0, -2 * cos, 1 - alpha], 1) / a0[:, None]


def convolve(
    signal: Float[Tensor, "b c t"], kernel: Float[Tensor, "b 1 k"], length: Int[Tensor, " b"]
) -> Float[Tensor, "b c t"]:
    """Convolve each row with its own impulse response; the tail beyond the length is cut."""
    n = _fast_size(signal.shape[-1] + kernel.shape[-1] - 1)
    # Row by row: the rounding of a vectorized complex product depends on the memory address of a row.
    product = [
        torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(k, n), n) for x, k in zip(signal, kernel, strict=True)
    ]
    return silence_padding(torch.stack(product)[..., : signal.shape[-1]], length)


def _fast_size(n: int) -> int:
    """The next 2^k, 3·2^k or 5·2^k, whose Fourier transforms are fast."""
    return min(f << max(0, math.ceil(math.log2(n / f))) for f in (1, 3, 5))
