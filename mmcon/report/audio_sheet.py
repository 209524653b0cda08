"""A contact sheet of a recording: spectrograms of its views as one image, and the views as wav files.

mmcon show audio/speech --input recording.flac --output views.png
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media import AudioFormat, AudioHandle
from mmcon.random import keys
from mmcon.sources.base import Source
from mmcon.views import Chain, Params, ViewGenerator, as_chain, collate, meta_of

# The rate to which the command decodes: the default of audio views.
SHOWN_RATE_HZ = 16_000


def open_sample(path: Path) -> AudioHandle:
    """Open a recording, or the audio of a video, at 16,000 Hz in one channel.

    Raises:
        DataError: it cannot be read.
    """
    recording = AudioHandle(path, audio_format=AudioFormat(rate_hz=SHOWN_RATE_HZ), id=path.name)
    recording.header  # noqa: B018 (an unreadable file raises here, before parameters are drawn)
    return recording


def write_sheet(
    output: Path,
    sample: AudioHandle,
    views: Any,
    captions: Sequence[str],
    title: str,
    *,
    view: ViewGenerator,
    params: Params,
) -> None:
    """Write the sheet, and in its folder a wav file of the recording and of each view.

    For a chain that ends in spectrograms, the wav files have its last waveforms.

    Args:
        output: the file, in the format of its ending: .png, .jpg, .pdf or .svg.
        sample: the recording.
        views: waveforms or log-mel spectrograms.
        captions: the parameters of each view, one per line.
        title: the title of the sheet.
        view: the generator; it recomputes the last waveforms.
        params: its parameters.
    """
    from matplotlib.figure import Figure

    waveform, _ = _stages(view, [sample] * len(captions), params)
    whole = sample.decode()
    original, shown = _spectrograms(whole[None], SHOWN_RATE_HZ), _spectrograms(views, SHOWN_RATE_HZ)
    long = whole.shape[-1] / SHOWN_RATE_HZ
    wide = waveform["signal"].shape[-1] / SHOWN_RATE_HZ
    panels = [(original, 0, long), *((shown, number, wide) for number in range(len(captions)))]
    texts = ["original", *captions]
    lines = max(text.count("\n") + 1 for text in texts)
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(10, rows * (2.0 + 0.11 * lines) + 0.4), layout="constrained")
    figure.suptitle(title)
    for position, ((of, number, seconds), text) in enumerate(zip(panels, texts, strict=True), start=1):
        axes = figure.add_subplot(rows, 3, position)
        _draw(axes, of, number, seconds=seconds)
        axes.set_xlabel(text, fontsize=6, loc="left", family="monospace")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(output, dpi=130)
    except (OSError, ValueError) as error:
        raise InputError("audio sheet", expected="a .png, .jpg, .pdf or .svg to write", got=str(error)) from error
    _wav(output.with_name(f"{output.stem}-recording.wav"), whole, SHOWN_RATE_HZ)
    for number, (signal, length) in enumerate(zip(waveform["signal"], waveform["length"], strict=True)):
        _wav(output.with_name(f"{output.stem}-view{number}.wav"), signal[:, : int(length)], SHOWN_RATE_HZ)


def write_audio_views(
    view: ViewGenerator,
    source: Source,
    folder: str | Path,
    *,
    rows: Sequence[int] = (0, 1, 2),
    views: int = 3,
    seed: int = 0,
) -> list[Path]:
    """Draw views of some samples and write `views.png`, and a wav file for each view.

    For a chain that ends in spectrograms, the wav files have its last waveforms.

    Args:
        view: the generator.
        source: recordings.
        folder: the output folder.
        rows: indices into the source, one per row of the figure.
        views: the number of views of each, one per column.
        seed: the seed of the keys.

    Returns:
        The written files, the figure first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rate_hz, waveforms, final = 0, [], []
    for number in range(views):
        samples = source.open(list(rows))
        rate_hz = int(meta_of(samples, "audio").get("rate_hz", torch.tensor([16_000]))[0])
        table = keys(seed=seed, sample=source.ids[list(rows)], view=number, step=0)
        params = as_chain(view).draw(table, meta_of(samples, "audio"))
        waveform, out = _stages(as_chain(view), samples, params)
        waveforms.append(waveform)
        final.append(out)
    widths = [part["signal"].shape[-1] / rate_hz for part in waveforms]
    columns = [(_spectrograms(part, rate_hz), wide) for part, wide in zip(final, widths, strict=True)]
    files = [_write_figure(folder / "views.png", columns, rows)]
    for number, part in enumerate(waveforms):
        for row, (signal, length) in zip(rows, zip(part["signal"], part["length"], strict=True), strict=True):
            name = re.sub(r"[^\w.-]+", "_", f"row{row}_view{number}.wav")
            files.append(_wav(folder / name, signal[:, : int(length)], rate_hz))
    return files


def _stages(
    view: ViewGenerator, samples: Sequence[AudioHandle], params: Params
) -> tuple[Mapping[str, Shaped[Tensor, "..."]], Any]:
    """The last waveform of a generator, and its output."""
    waveform: Any = None
    batch: Any = samples
    for name, part in view.children():
        own_params = params[name] if isinstance(view, Chain) else params
        batch = current = collate(part.apply(batch if part.ragged else collate(batch), own_params))
        if isinstance(current, Tensor):
            current = {"signal": current, "length": torch.full((len(current),), current.shape[-1])}
        if "signal" in current:
            waveform = current
    if waveform is None:
        raise InputError(
            "write_audio_views", expected="a view of waveforms", got=repr(view), fix="begin with audio/crop"
        )
    return waveform, batch


@dataclass(frozen=True)
class _Spectrograms:
    """Log spectrograms `b f t` with NaN at padding, and the top and the unit of the frequency axis."""

    images: Tensor
    top: float
    unit: str


def _spectrograms(part: Any, rate_hz: int) -> _Spectrograms:
    """Spectrograms of waveforms; log-mel spectrograms are returned unchanged."""
    part = part if isinstance(part, Mapping) else {"signal": part, "length": torch.full((len(part),), part.shape[-1])}
    if "log_mel" in part:
        images, real = part["log_mel"].mean(1), part["length"]
        top, unit = float(images.shape[-2]), "mel band"
    else:
        # The next power of two above 25 ms, as for log-mels.
        n = 1 << (rate_hz // 40).bit_length()
        window, signal = torch.hann_window(n), part["signal"].mean(1)
        spectrum = torch.stft(signal, n, n // 4, window=window, return_complex=True, pad_mode="constant")
        images, real = spectrum.abs().clamp(min=1e-4).log(), part["length"] // (n // 4) + 1
        top, unit = rate_hz / 2_000, "kHz"
    padding = torch.arange(images.shape[-1]) >= real[:, None]
    return _Spectrograms(images.masked_fill(padding[:, None], torch.nan), top, unit)


def _draw(axes: Any, of: _Spectrograms, row: int, *, seconds: float) -> None:
    """Plot one spectrogram over seconds; the color range is that of the frames without padding, which is gray."""
    axes.set_facecolor("0.85")
    extent = (0.0, max(seconds, 1e-3), 0.0, of.top)
    axes.imshow(of.images[row].numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    axes.tick_params(labelsize=6)
    axes.set_ylabel(of.unit, fontsize=6)
    axes.xaxis.set_major_formatter(lambda second, _: f"{second:g} s")


def _write_figure(file: Path, columns: Sequence[tuple[_Spectrograms, float]], rows: Sequence[int]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(columns), 1.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for column, (of, seconds) in enumerate(columns):
        for row, number in enumerate(rows):
            _draw(axes[row, column], of, row, seconds=seconds)
            axes[row, column].set_title(f"row {number}, view {column}", fontsize=7)
    figure.savefig(file, dpi=110)
    return file


def _wav(file: Path, signal: Float[Tensor, "c t"], rate_hz: int) -> Path:
    import soundfile

    peak = float(signal.abs().max()) if signal.numel() else 0.0
    soundfile.write(file, (signal / max(1.0, peak)).T.numpy(), rate_hz)
    return file
