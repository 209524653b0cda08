"""Emoji: two vendors' drawings of each, its name and keywords in six languages, its group and subgroup.

Image–text pairs, parallel texts and hierarchical labels in one table. The split is by concept: "farmer", "woman farmer"
and "man farmer" are one, so that no near copy of a test emoji is trained on.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from samples import packages, writing

VENDORS = {"noto": "google", "twemoji": "twitter"}
LANGUAGES = ("en", "de", "fr", "es", "ja", "ar")
SIZE = 32
COLORS = 48
TEST_SHARE = 0.2

LICENSE_NOTICE = """The drawings in the column "noto" are Noto Emoji, copyright Google LLC, under the Apache License 2.0
(LICENSE-Apache-2.0).

The drawings in the column "twemoji" are Twemoji, copyright Twitter, Inc and other contributors, under the Creative
Commons Attribution 4.0 International licence: https://creativecommons.org/licenses/by/4.0/

Both were taken at 64 pixels from the npm packages {google} and {twitter} (themselves under the MIT licence, copyright
2013 Cal Henderson), laid on white, scaled to {size} pixels and reduced to {colours} colours each: they are changed.

Names and keywords are from the Unicode Common Locale Data Repository, npm package {cldr}, under the Unicode License v3
(LICENSE-Unicode-3.0).
"""


def build(work: Path, folder: Path) -> None:
    rows = tables(work)
    for split, part in rows.items():
        drawn = [{**row, **drawings(row["id"], work)} for row in part]
        writing.write_rows(drawn, folder / f"{split}.parquet")
    write_licenses(work, folder)
    groups = {row["label"]: row["group"] for part in rows.values() for row in part}
    sources = [f"npm package {name} {packages.NPM[name]}" for name in packages.NPM]
    writing.write_card(
        folder,
        title="Emoji: two vendors' drawings, names and keywords in six languages, groups and subgroups",
        licence="Apache-2.0 (Noto drawings), CC-BY-4.0 (Twemoji drawings), Unicode-3.0 (names and keywords)",
        source=", ".join(sources),
        synthetic=False,
        counts={split: len(part) for split, part in rows.items()},
        columns={
            "id": "code points in hexadecimal, such as 1f600",
            "emoji": "the character",
            **{vendor: f"PNG, {SIZE}×{SIZE}, colour on white: {vendor}'s drawing" for vendor in VENDORS},
            **{f"name_{code}": f"short name, {code}" for code in LANGUAGES},
            **{f"keywords_{code}": f"list of keywords, {code}" for code in LANGUAGES},
            "group": "the upper level of two",
            "subgroup": "the lower level",
            "label": "position of the group in classes",
            "concept": "the emoji without the person's sex; no concept is in both splits",
        },
        classes=[groups[label] for label in sorted(groups)],
        languages=list(LANGUAGES),
    )


def tables(work: Path) -> dict[str, list[dict]]:
    """By split, a row for each emoji, without its drawings."""
    names = {language: annotations(language, work) for language in LANGUAGES}
    listed = json.loads((vendor_folder("noto", work) / "emoji.json").read_text(encoding="utf-8"))
    chosen = sorted((entry for entry in listed if complete(entry, names)), key=lambda entry: entry["sort_order"])
    groups = list(dict.fromkeys(entry["category"] for entry in chosen))
    splits = split_by_concept(chosen)
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for entry in chosen:
        rows[splits[concept(entry)]].append(row(entry, names, groups))
    return rows


def vendor_folder(vendor: str, work: Path) -> Path:
    return packages.npm(f"emoji-datasource-{VENDORS[vendor]}", work)


def annotations(language: str, work: Path) -> dict[str, dict[str, list[str]]]:
    """By character, a language's names ("tts") and keywords ("default")."""
    file = packages.npm("cldr-annotations-full", work) / "annotations" / language / "annotations.json"
    return json.loads(file.read_text(encoding="utf-8"))["annotations"]["annotations"]


def character(entry: dict) -> str:
    """The emoji without variation selectors, as the names are keyed."""
    return "".join(chr(int(code, 16)) for code in entry["unified"].split("-") if code != "FE0F")


def complete(entry: dict, names: dict[str, dict]) -> bool:
    """Whether both vendors draw it and every language names it (most flags and families are named by rule alone).

    Components, such as a colour of hair, are no emoji by themselves.
    """
    drawn = all(entry[f"has_img_{vendor}"] for vendor in VENDORS.values()) and entry["category"] != "Component"
    return drawn and all(character(entry) in known for known in names.values())


def concept(entry: dict) -> str:
    """The code points with man and woman replaced by person, and without the signs that mark a sex."""
    codes = [code for code in entry["unified"].split("-") if code not in ("FE0F", "200D", "2640", "2642")]
    return "-".join("1F9D1" if code in ("1F468", "1F469") else code for code in codes).lower()


def split_by_concept(entries: list[dict]) -> dict[str, str]:
    """By concept, its split, in the same share for each group."""
    by_group: dict[str, list[str]] = {}
    for name, group in {concept(entry): entry["category"] for entry in entries}.items():
        by_group.setdefault(group, []).append(name)
    return {name: side for names in by_group.values() for name, side in writing.split(names, TEST_SHARE).items()}


def row(entry: dict, names: dict[str, dict], groups: list[str]) -> dict:
    said = {language: known[character(entry)] for language, known in names.items()}
    return {
        "id": entry["unified"].lower(),
        "emoji": "".join(chr(int(code, 16)) for code in entry["unified"].split("-")),
        **{f"name_{language}": texts["tts"][0] for language, texts in said.items()},
        **{f"keywords_{language}": texts["default"] for language, texts in said.items()},
        "group": entry["category"],
        "subgroup": entry["subcategory"],
        "label": groups.index(entry["category"]),
        "concept": concept(entry),
    }


def drawings(name: str, work: Path) -> dict[str, bytes]:
    """By vendor, the drawing of an emoji."""
    return {
        vendor: small_png(vendor_folder(vendor, work) / "img" / folder / "64" / f"{name}.png")
        for vendor, folder in VENDORS.items()
    }


def small_png(file: Path) -> bytes:
    """The drawing on white, scaled with premultiplied alpha, in a palette of its own."""
    drawn = Image.open(file).convert("RGBA").convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn.convert("RGBA"))
    buffer = io.BytesIO()
    page.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_licenses(work: Path, folder: Path) -> None:
    named = {
        key: f"{name} {packages.NPM[name]}"
        for key, name in zip(("google", "twitter", "cldr"), packages.NPM, strict=True)
    }
    (folder / "LICENSE").write_text(LICENSE_NOTICE.format(size=SIZE, colours=COLORS, **named), encoding="utf-8")
    unicode_license = packages.npm("cldr-annotations-full", work) / "LICENSE"
    (folder / "LICENSE-Unicode-3.0").write_bytes(unicode_license.read_bytes())
    # The same text as the one that the package itself is under.
    apache = Path(__file__).resolve().parents[2] / "LICENSE"
    (folder / "LICENSE-Apache-2.0").write_bytes(apache.read_bytes())
