"""Audio views against torch-audiomentations and audiomentations: one thread, 16 clips of 2 s at 16 kHz.

    OMP_NUM_THREADS=1 uv run --with torch-audiomentations --with audiomentations python benchmarks/audio_views.py

All chains run in one process on the same signals; each figure is the least of several runs in turn. What a peer has not
got is left out of both sides of its comparison and said so: torch-audiomentations has no time stretch and no mask of
silence (its nearest is SpliceOut), so its chain is gain, noise, pitch and splice, and ours does more work against it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import mmcon
from mmcon.views import Chain

RATE, CLIPS, SECONDS = 16_000, 16, 2


def ours(*names: str) -> Callable[[], Any]:
    options: dict[str, dict[str, Any]] = {"audio/noise": {"snr_db": (5.0, 40.0)}, "audio/time-mask": {"max_share": 0.5}}
    chain = Chain(*[mmcon.create_view(name, **options.get(name, {})) for name in names])
    signal, calls = torch.from_numpy(signals())[:, None], iter(range(10**9))
    return lambda: chain(signal, mmcon.keys(seed=next(calls), sample=list(range(CLIPS))))


def signals() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((CLIPS, RATE * SECONDS)) * 0.1).astype(np.float32)


def torch_audiomentations(*names: str) -> Callable[[], Any]:
    import torch_audiomentations as peer

    parts = {
        "gain": lambda: peer.Gain(p=1.0, output_type="dict"),
        "noise": lambda: peer.AddColoredNoise(
            min_snr_in_db=5.0, max_snr_in_db=40.0, min_f_decay=0.0, max_f_decay=0.0, p=1.0, output_type="dict"
        ),
        "pitch": lambda: peer.PitchShift(sample_rate=RATE, p=1.0, output_type="dict"),
        "splice": lambda: peer.SpliceOut(p=1.0, output_type="dict"),
    }
    chain = peer.Compose([parts[name]() for name in names], output_type="dict")
    signal = torch.from_numpy(signals())[:, None]
    return lambda: chain(signal, sample_rate=RATE)


def audiomentations(*names: str) -> Callable[[], Any]:
    import audiomentations as peer

    parts = {
        "gain": lambda: peer.Gain(p=1.0),
        "noise": lambda: peer.AddGaussianSNR(min_snr_db=5.0, max_snr_db=40.0, p=1.0),
        "pitch": lambda: peer.PitchShift(p=1.0),
        "stretch": lambda: peer.TimeStretch(p=1.0),
        "mask": lambda: peer.TimeMask(p=1.0),
    }
    chain, rows = peer.Compose([parts[name]() for name in names]), signals()
    return lambda: [chain(row, sample_rate=RATE) for row in rows]


def least_milliseconds(functions: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    for function in functions.values():
        function()
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            least[name] = min(least[name], (time.perf_counter() - begin) * 1e3)
    return least


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gain, noise, pitch, stretch, mask = (
        f"audio/{n}" for n in ("gain", "noise", "pitch-shift", "time-stretch", "time-mask")
    )
    full = least_milliseconds(
        {
            "mmcon: gain, noise, pitch, stretch, mask": ours(gain, noise, pitch, stretch, mask),
            "torch-audiomentations: gain, noise, pitch, splice": torch_audiomentations(
                "gain", "noise", "pitch", "splice"
            ),
            "audiomentations: gain, noise, pitch, stretch, mask": audiomentations(
                "gain", "noise", "pitch", "stretch", "mask"
            ),
        }
    )
    light = least_milliseconds(
        {
            "mmcon: gain, noise, mask": ours(gain, noise, mask),
            "torch-audiomentations: gain, noise, splice": torch_audiomentations("gain", "noise", "splice"),
            "torch-audiomentations: gain, noise": torch_audiomentations("gain", "noise"),
            "audiomentations: gain, noise, mask": audiomentations("gain", "noise", "mask"),
        },
        repeats=30,
    )
    for group in (full, light):
        base = next(iter(group.values()))
        for name, value in group.items():
            print(f"{name:<52} {value:8.2f} ms   {value / base:5.2f} × ours")
    print(json.dumps(full | light))


if __name__ == "__main__":
    main()
