"""Export a text encoder to a folder that sentence-transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from mmcon.errors import InputError
from mmcon.models.text import TextTransformer

_POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "weighted": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}


def export_sentence_transformers(
    encoder: nn.Module, tokenizer: Any, folder: str | Path, *, max_tokens: int = 256
) -> Path:
    """Write a text encoder, with tokenizer, pooling and L2 normalization, as three modules of sentence-transformers.

    Args:
        encoder: the trained `text/transformer`, without a projection head.
        tokenizer: the transformers tokenizer that it was trained with.
        folder: the output folder; `SentenceTransformer(folder)` loads it.
        max_tokens: length at which longer texts are truncated.

    Returns:
        The folder.

    Raises:
        InputError: the encoder is not a `text/transformer`.
    """
    if not isinstance(encoder, TextTransformer):
        raise InputError(
            "export_sentence_transformers",
            expected="an encoder text/transformer",
            got=type(encoder).__name__,
            fix="train with create_encoder('text/transformer', modality='text', path=...)",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
    pooling = {flag: name == encoder.pooling for name, flag in _POOLING_FLAGS.items()}
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": encoder.feature_dim, **pooling})
    (folder / "2_Normalize").mkdir(exist_ok=True)
    return folder


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
