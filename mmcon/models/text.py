"""Text encoders: any of transformers by name or local folder, and a small embedding bag.

    encoder = create_encoder("text/transformer", modality="text", path="sentence-transformers/all-MiniLM-L6-v2",
                             pretrained=True, pooling="mean")

An encoder takes `{"input_ids": n t, "attention_mask": n t}` and gives features `n d`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.registry import register_encoder

POOLINGS = ("mean", "cls", "weighted", "last")


def pool(states: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"], pooling: str) -> Float[Tensor, "n d"]:
    """One vector a text from its tokens' states; padding never counts.

    "mean": of all tokens; "cls": the first; "last": the last; "weighted": a mean in which token i of the text weighs i
    (Muennighoff 2022, SGPT), for models that only look back.
    """
    number = mask.cumsum(1) * mask
    if pooling in ("mean", "weighted"):
        weight = (mask if pooling == "mean" else number).to(states.dtype)
        return (states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    at = mask.argmax(1) if pooling == "cls" else number.argmax(1)
    return states[torch.arange(len(states), device=states.device), at]


@final
@register_encoder("text/embedding-bag", modality="text")
class EmbeddingBag(nn.Module):
    """The mean of token embeddings and one hidden layer: seconds to train on a CPU.

    Args:
        vocabulary: how many numbers the tokenizer gives.
        feature_dim: width of embeddings and features.
        dropout: of tokens' embeddings and of the hidden layer while training, which makes two views of one text.
    """

    def __init__(self, vocabulary: int = 8192, feature_dim: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.embedding = nn.Embedding(vocabulary, feature_dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=feature_dim**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, feature_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(feature_dim, feature_dim)
        )

    def forward(self, tokens: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Features: the mean, and what the hidden layer adds to it."""
        mask = tokens["attention_mask"]
        width = max(1, int(mask.sum(0).gt(0).sum()))
        mask = mask[:, :width]
        states = self.dropout(self.embedding(tokens["input_ids"][:, :width]))
        mean = nn.functional.normalize(pool(states, mask, "mean"), dim=1)
        return mean + self.layers(mean)


@final
@register_encoder("text/transformer", modality="text")
class TextTransformer(nn.Module):
    """An encoder of transformers under a pooling.

    Args:
        path: a hub name or a local folder.
        pretrained: load the weights; otherwise only the configuration, with weights at random.
        pooling: "mean", "cls", "weighted" or "last".
        buckets: rows are sorted by length and go through in this many parts, each as wide as its longest text.
        padding_free: pack texts end to end into full rows with a mask that keeps them apart, where the model takes
            position numbers and a mask of rows × columns (BERT's family does); in place of buckets.
        dropout: the model's own dropout in place of what its configuration says, or None.
    """

    def __init__(
        self,
        path: str,
        *,
        pretrained: bool = False,
        pooling: str = "mean",
        buckets: int = 1,
        padding_free: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS or buckets < 1:
            raise InputError(
                "text/transformer",
                expected=f"pooling among {POOLINGS}, buckets >= 1",
                got=f"pooling={pooling!r}, buckets={buckets}",
            )
        self.model = _load(path, pretrained, dropout)
        self.path, self.pooling, self.buckets, self.padding_free = path, pooling, buckets, padding_free
        self.feature_dim = int(self.model.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)

    def forward(self, tokens: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Features `n d`."""
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        # A token that a view took out still keeps its place; only columns behind every text's end go.
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        if int(ends.max()) > self.max_tokens:
            raise InputError(
                "text/transformer",
                expected=f"texts of {self.max_tokens} tokens at most",
                got=f"{int(ends.max())} tokens",
                fix=f"text/tokens with max_tokens={self.max_tokens}",
            )
        if self.padding_free:
            return self._packed(ids, mask, ends)
        order = torch.argsort(ends)
        parts = order.chunk(self.buckets)
        features = torch.cat([self._rows(ids[part], mask[part], int(ends[part].max())) for part in parts])
        return torch.empty_like(features).index_copy(0, order, features)

    def _rows(self, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        ids, mask = ids[:, :width], mask[:, :width]
        return pool(self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self.pooling)

    def _packed(self, ids: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
        """Texts end to end in rows as wide as the longest, each attending to itself alone."""
        width, device = int(ends.max()), ids.device
        row, column = (x.to(device) for x in _first_fit(ends.cpu(), width))
        rows = int(row.max()) + 1
        reach = torch.arange(width, device=device)
        text, place = torch.nonzero(reach < ends[:, None], as_tuple=True)
        at = (row[text], column[text] + place)
        packed = {name: torch.zeros(rows, width, dtype=torch.int64, device=device) for name in ("ids", "place", "on")}
        owner = torch.full((rows, width), -1, device=device)
        packed["ids"][at], packed["place"][at], owner[at] = ids[text, place], place, text
        packed["on"][at] = mask[text, place].to(torch.int64)
        # Empty places attend to one another, so that no row of the softmax is empty.
        apart = owner[:, :, None] != owner[:, None, :]
        apart |= (packed["on"] == 0)[:, None, :] & (owner >= 0)[:, None, :]
        dtype = next(self.model.parameters()).dtype
        bias = torch.zeros(rows, 1, width, width, dtype=dtype, device=device)
        bias.masked_fill_(apart[:, None], torch.finfo(dtype).min)
        states = self.model(
            input_ids=packed["ids"], position_ids=packed["place"], attention_mask=bias
        ).last_hidden_state
        unpacked = states.new_zeros(len(ids), width, states.shape[-1])
        unpacked[text, place] = states[at]
        return pool(unpacked, mask[:, :width], self.pooling)


def _first_fit(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The row and the column where each text begins: longest first, each into the fullest row that has room."""
    row, column = torch.zeros_like(lengths), torch.zeros_like(lengths)
    free: list[int] = []
    for text in torch.argsort(lengths, descending=True).tolist():
        need = int(lengths[text])
        fitting = [(room, i) for i, room in enumerate(free) if room >= need]
        if not fitting:
            free.append(width)
            fitting = [(width, len(free) - 1)]
        room, i = min(fitting)
        row[text], column[text] = i, width - room
        free[i] -= need
    return row, column


def _load(path: str, pretrained: bool, dropout: float | None) -> Any:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(path)
        if dropout is not None:
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, dropout)
        return AutoModel.from_pretrained(path, config=config) if pretrained else AutoModel.from_config(config)
    except Exception as error:  # no such name, no network, a broken folder: many kinds
        raise DataError(
            f"text/transformer({path!r})",
            expected="a hub name that can be reached, or a local folder of a text model",
            got=str(error).strip().partition("\n")[0],
            fix=f"check the path{'' if Path(path).exists() else '; without a network give a local folder'}",
        ) from error
