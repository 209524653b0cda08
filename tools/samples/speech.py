"""Telephone prompts, the same ones spoken in English, Spanish and French: numbers, dates, letters, code words, phrases.

Each language is one voice and one recording chain, so that a classifier of languages is one of speakers. The set is for
the same prompt across languages. The split is by prompt.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import soundfile

from samples import packages, writing

LANGUAGES = ("en", "es", "fr")
PATTERNS = {
    "number": r"digits/(\d+|hundred|thousand|million)",
    "date": r"digits/(day-\d+|mon-\d+|today|tomorrow|yesterday)",
    "letter": r"letters/[a-z]",
    "phonetic": r"phonetic/[a-z]_p",
    "phrase": r"(?!beep|.*tone|tt-monkeys$|spy-)[^/]+",
}
PHRASES = 42
PHRASE_SECONDS = (0.4, 1.6)
TEST_SHARE = 0.2


def build(work: Path, folder: Path) -> None:
    sounds = {language: recordings(language, work) for language in LANGUAGES}
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for category, prompts in choose(sounds).items():
        for prompt, split in writing.split(prompts, TEST_SHARE).items():
            rows[split] += [row(prompt, category, language, sounds[language][prompt]) for language in LANGUAGES]
    for split, chosen in rows.items():
        writing.write_rows(sorted(chosen, key=lambda r: r["id"]), folder / f"{split}.parquet")
    notice = packages.copyright_of(package("en"), work)
    (folder / "LICENSE").write_text(notice, encoding="utf-8")
    writing.write_card(
        folder,
        title="Telephone prompts spoken in English, Spanish and French: numbers, dates, letters, code words, phrases",
        licence="CC-BY-SA-3.0; recorded by Allison Smith (en, es) and June Wallack (fr); re-encoded without loss",
        source=", ".join(f"Debian package {package(code)} {packages.DEBIAN[package(code)]}" for code in LANGUAGES),
        synthetic=False,
        counts={split: len(chosen) for split, chosen in rows.items()},
        columns={
            "id": "language and prompt, such as en/digits/7",
            "audio": "FLAC, 8 kHz, mono, 16 bits",
            "prompt": "what is said, the same in each language, such as digits/7; no prompt is in both splits",
            "category": "number, date, letter, phonetic or phrase",
            "language": "en, es or fr; each is one voice",
            "voice": "locale, sex and name of the speaker",
            "seconds": "length",
        },
    )


def package(language: str) -> str:
    return f"asterisk-core-sounds-{language}-wav"


def recordings(language: str, work: Path) -> dict[str, Path]:
    """By prompt, the file of a language."""
    (voice,) = (packages.debian(package(language), work) / "usr/share/asterisk/sounds").iterdir()
    return {str(file.relative_to(voice).with_suffix("")): file for file in sorted(voice.rglob("*.wav"))}


def choose(sounds: dict[str, dict[str, Path]]) -> dict[str, list[str]]:
    """By category, the prompts that every language has: all of the short ones, and a subset of the phrases.

    Where two prompts are one recording in some language, the later is left out: the split might separate them.
    """
    shared = sorted(set.intersection(*(set(files) for files in sounds.values())))
    chosen: dict[str, list[str]] = {}
    seen: set[bytes] = set()
    for category, pattern in PATTERNS.items():
        fitting = [prompt for prompt in shared if re.fullmatch(pattern, prompt)]
        if category == "phrase":
            fitting = sorted(filter(lambda p: phrase_fits(p, sounds), fitting), key=writing.rank)
        kept = []
        for prompt in fitting:
            takes = {files[prompt].read_bytes() for files in sounds.values()}
            if not takes & seen:
                kept.append(prompt)
                seen |= takes
        chosen[category] = sorted(kept[:PHRASES] if category == "phrase" else kept)
    return chosen


def phrase_fits(prompt: str, sounds: dict[str, dict[str, Path]]) -> bool:
    """Whether the phrase has a fitting length in every language."""
    low, high = PHRASE_SECONDS
    return all(low <= soundfile.info(files[prompt]).duration <= high for files in sounds.values())


def row(prompt: str, category: str, language: str, file: Path) -> dict:
    samples, rate = soundfile.read(file, dtype="int16")
    assert rate == 8000, file
    assert samples.ndim == 1, file
    return {
        "id": f"{language}/{prompt}",
        "audio": flac(samples, rate),
        "prompt": prompt,
        "category": category,
        "language": language,
        "voice": file.parents[prompt.count("/")].name,
        "seconds": len(samples) / rate,
    }


def flac(samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return buffer.getvalue()
