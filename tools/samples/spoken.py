"""Names of emoji, spoken by a synthesizer in four languages and voices: a third modality beside drawings and names.

Of each emoji's names about one in four is spoken, so that many emoji have several recordings and some have none, as
real collections do. Synthetic, and declared so: no figure on it says anything about people's speech.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import numpy as np
import soundfile
from scipy.signal import resample_poly

from samples import emoji, packages, writing

LANGUAGES = {"en": "en-us", "de": "de", "fr": "fr", "es": "es"}
VOICES = ("m1", "m3", "f2", "f4")
ONE_IN = 4
LONGEST_NAME = 28
RATE = 16_000

LICENSE_NOTICE = """Synthetic speech, made for mmcon with the program espeak-ng {version} and, like mmcon,
under the Apache License 2.0.

The names that are spoken are from the Unicode Common Locale Data Repository, npm package cldr-annotations-full {cldr},
under the Unicode License v3 (the text lies beside the sample "emoji").
"""


def build(work: Path, folder: Path) -> None:
    counts = {}
    for split, rows in emoji.tables(work).items():
        spoken = [
            utterance(row["id"], language, row[f"name_{language}"])
            for row in rows
            for language in LANGUAGES
            if is_spoken(row["id"], language, row[f"name_{language}"])
        ]
        writing.write_rows(spoken, folder / f"{split}.parquet")
        counts[split] = len(spoken)
    notice = LICENSE_NOTICE.format(version=packages.PROGRAMS["espeak-ng"], cldr=packages.NPM["cldr-annotations-full"])
    (folder / "LICENSE").write_text(notice, encoding="utf-8")
    writing.write_card(
        folder,
        title="Names of emoji, spoken by a synthesiser in English, German, French and Spanish",
        licence="Apache-2.0 (speech), Unicode-3.0 (names)",
        source=f"Debian package espeak-ng {packages.PROGRAMS['espeak-ng']}, "
        f"npm package cldr-annotations-full {packages.NPM['cldr-annotations-full']}",
        synthetic=True,
        counts=counts,
        columns={
            "id": "emoji and language, such as 1f600/en",
            "emoji": "id of the emoji in the sample emoji, whose split this one follows",
            "audio": f"Ogg Opus, {RATE // 1000} kHz, mono",
            "text": "the name that is spoken",
            "language": "en, de, fr or es",
            "voice": f"one of {', '.join(VOICES)}",
            "seconds": "length",
        },
    )


def is_spoken(name: str, language: str, text: str) -> bool:
    return len(text) <= LONGEST_NAME and writing.rank(f"spoken {name} {language}") % ONE_IN == 0


def utterance(name: str, language: str, text: str) -> dict:
    voice = VOICES[writing.rank(f"voice {name} {language}") % len(VOICES)]
    sound = speak(text, f"{LANGUAGES[language]}+{voice}")
    return {
        "id": f"{name}/{language}",
        "emoji": name,
        "audio": opus(sound),
        "text": text,
        "language": language,
        "voice": voice,
        "seconds": len(sound) / RATE,
    }


def speak(text: str, voice: str) -> np.ndarray:
    """The spoken text, `t` int16 at the sample's rate."""
    command = [packages.program("espeak-ng"), "-v", voice, "-s", "160", "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    sound, rate = soundfile.read(io.BytesIO(wav), dtype="float64")
    shrunk = resample_poly(sound, RATE, rate)
    return np.round(shrunk.clip(-1, 1) * 32767).astype(np.int16)


def opus(sound: np.ndarray) -> bytes:
    """Ogg Opus without what would differ between two runs (the program's name, a random serial number).

    Pages are short, since libsndfile misreads the length of a sound whose only page of data is also its last.
    """
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact", "serial_offset": "1", "page_duration": "200000"}
    with av.open(buffer, "w", format="ogg", options=options) as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = 14_000
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
