"""The bundled emoji as sources that meet by sample: two vendors' drawings, and their names spoken by a synthesiser.

    picture = create_source("samples/emoji", split="train")                  # Noto's drawings
    unseen = create_source("samples/emoji", split="test", vendor="twemoji")  # a style that training need never see
    both = JoinedSource(picture, emoji_names("train"), create_source("samples/emoji-spoken", split="train"))

Names as texts are in mmcon.sources.text. No concept is in both splits: "farmer" and "woman farmer" are one concept.
"""

from __future__ import annotations

from typing import Literal

import torch

from mmcon.media import AudioFormat, AudioHandle
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.audio import SoundSource
from mmcon.sources.base import HELD_OUT, TensorSource
from mmcon.sources.grouped import GroupedSource
from mmcon.sources.text import number_classes


@register_source("samples/emoji", modality="image")
def emoji_drawings(
    split: Literal["train", "test"] = "train",
    vendor: Literal["noto", "twemoji"] = "noto",
    labels: Literal["group", "subgroup"] = "group",
) -> TensorSource:
    """Drawings of emoji, bundled: colour on white, `3 32 32`, labelled by group (9) or subgroup (96)."""
    import pyarrow.parquet as parquet
    from torchvision.io import ImageReadMode, decode_image

    both = {part: parquet.read_table(bundled.path("emoji", part)) for part in ("train", "test")}
    _, classes = number_classes([name for table in both.values() for name in table[labels].to_pylist()])
    part = "test" if split in HELD_OUT else split
    table = both[part]
    files = [torch.frombuffer(bytearray(drawing), dtype=torch.uint8) for drawing in table[vendor].to_pylist()]
    return TensorSource(
        torch.stack([decode_image(file, ImageReadMode.RGB) for file in files]),
        ids=stable_ids(f"emoji/{name}" for name in table["id"].to_pylist()),
        labels=torch.tensor([classes.index(name) for name in table[labels].to_pylist()]),
        classes=classes,
        name=f"samples/emoji ({part}, {vendor})",
    )


@register_source("samples/emoji-spoken", modality="audio")
def emoji_spoken(split: Literal["train", "test"] = "train", rate_hz: int = 16_000) -> GroupedSource:
    """Names of emoji, spoken by a synthesiser in up to four languages and voices: several instances of a sample.

    About a third of the emoji have none. Synthetic speech: a figure on it says nothing about people's.
    """
    part = "test" if split in HELD_OUT else split
    rows = bundled.rows("spoken", part, ["id", "emoji", "audio", "language"])
    audio_format = AudioFormat(rate_hz=rate_hz)
    spoken = SoundSource(
        [AudioHandle(row["audio"], audio_format=audio_format, id=f"spoken/{row['id']}") for row in rows],
        {"language": [row["language"] for row in rows]},
        name=f"samples/emoji-spoken ({part})",
    )
    return GroupedSource(spoken, stable_ids(f"emoji/{row['emoji']}" for row in rows))
