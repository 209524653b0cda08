"""Text encoders: any transformers model by hub name or local folder, and a small embedding bag.

    encoder = create_encoder("sentence-transformers/all-MiniLM-L6-v2", modality="text", pretrained=True, pooling="mean")

An encoder takes `{"input_ids": n t, "attention_mask": n t}` and returns features `n d`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.pretrained import model_load_errors
from mmcon.registry import register_encoder

POOLINGS = ("mean", "cls", "weighted", "last")


def pool_tokens(states: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"], pooling: str) -> Float[Tensor, "n d"]:
    """Pool token states to one vector per text, without padding.

    "mean": over all tokens; "cls": the first token; "last": the last token; "weighted": a weighted mean with weight i
    for token i (Muennighoff 2022, SGPT), for models with causal attention.
    """
    position = mask.cumsum(1) * mask
    if pooling in ("mean", "weighted"):
        weight = (mask if pooling == "mean" else position).to(states.dtype)
        return (states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    token = mask.argmax(1) if pooling == "cls" else position.argmax(1)
    # Not len(): it would fix the batch size of an exported program.
    return states[torch.arange(states.shape[0], device=states.device), token]


@final
@register_encoder("text/embedding-bag", modality="text")
class EmbeddingBag(nn.Module):
    """The mean of token embeddings, plus an MLP with one hidden layer on it; a CPU trains it in seconds.

    Args:
        vocabulary: number of token ids.
        feature_dim: width of embeddings and features.
        dropout: dropout on token embeddings and the hidden layer, which makes two views of one text differ in training.
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

    def forward(self, tokens: Mapping[str, Int[Tensor, "n t"]]) -> Float[Tensor, "n d"]:
        """Features of the texts: the normalized mean embedding plus the output of the MLP."""
        mask = tokens["attention_mask"]
        # Views pad to a fixed width; columns that are padding in the whole batch are dropped here. An exported program
        # has no widths that depend on values.
        width = mask.shape[1] if torch.compiler.is_exporting() else max(1, int(mask.sum(0).gt(0).sum()))
        mask = mask[:, :width]
        states = self.dropout(self.embedding(tokens["input_ids"][:, :width]))
        mean = nn.functional.normalize(pool_tokens(states, mask, "mean"), dim=1)
        return mean + self.layers(mean)


@final
@register_encoder("text/transformer", modality="text")
class TextTransformer(nn.Module):
    """A text model of transformers with pooling over tokens.

    Args:
        path: a hub name or a local folder.
        pretrained: load the weights; otherwise the published configuration with random weights.
        pooling: "mean", "cls", "weighted" or "last".
        buckets: number of forward passes over the batch; texts are sorted by length, and each pass is as wide as its
            longest text.
        padding_free: pack several texts into a row with a block-diagonal attention mask, instead of buckets. The model
            must take position ids and a mask `n 1 t t`, as the BERT family does.
        dropout: replaces the dropout of the model's configuration; None keeps it.
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
        """The longest text, in tokens, that the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)

    def forward(self, tokens: Mapping[str, Int[Tensor, "n t"]]) -> Float[Tensor, "n d"]:
        """Features of the texts."""
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if torch.compiler.is_exporting():  # a program has no widths and no checks that depend on values
            return self._encode(ids, mask, mask.shape[1])
        # A masked token keeps its position, so a text ends at its last unmasked token, not at its number of tokens.
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        if int(ends.max()) > self.max_tokens:
            raise InputError(
                "text/transformer",
                expected=f"texts of {self.max_tokens} tokens at most",
                got=f"{int(ends.max())} tokens",
                fix=f"text/tokens with max_tokens={self.max_tokens}",
            )
        if self.padding_free:
            return self._encode_packed(ids, mask, ends)
        order = torch.argsort(ends)
        features = torch.cat(
            [self._encode(ids[texts], mask[texts], int(ends[texts].max())) for texts in order.chunk(self.buckets)]
        )
        return torch.empty_like(features).index_copy(0, order, features)

    def _encode(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"], width: int) -> Float[Tensor, "n d"]:
        ids, mask = ids[:, :width], mask[:, :width]
        return pool_tokens(self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self.pooling)

    def _encode_packed(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"], ends: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Encode texts packed end to end into rows as wide as the longest; a token attends to its own text only."""
        width, device = int(ends.max()), ids.device
        row, start = (x.to(device) for x in _best_fit(ends.cpu(), width))
        text, position = torch.nonzero(torch.arange(width, device=device) < ends[:, None], as_tuple=True)
        packed = (row[text], start[text] + position)  # row and column of every token
        blank = torch.zeros(int(row.max()) + 1, width, dtype=torch.int64, device=device)
        input_ids = blank.index_put(packed, ids[text, position])
        position_ids = blank.index_put(packed, position)
        unmasked = blank.index_put(packed, mask[text, position].to(torch.int64)) > 0
        text_of = (blank - 1).index_put(packed, text)
        # Empty positions attend to one another, so that every softmax has an unmasked position.
        blocked = text_of[:, :, None] != text_of[:, None, :]
        blocked |= (~unmasked & (text_of >= 0))[:, None, :]
        dtype = next(self.model.parameters()).dtype
        # The lowest finite number: a row of -inf alone would give NaN in the softmax.
        bias = torch.zeros(blocked.shape, dtype=dtype, device=device).masked_fill_(blocked, torch.finfo(dtype).min)
        states = self.model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=bias[:, None]
        ).last_hidden_state
        unpacked = states.new_zeros(len(ids), width, states.shape[-1])
        unpacked[text, position] = states[packed]
        return pool_tokens(unpacked, mask[:, :width], self.pooling)


def _best_fit(lengths: Int[Tensor, " n"], width: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Row and start of each text by best-fit decreasing bin packing: longest first, into the fullest row with room."""
    row, start = torch.zeros_like(lengths), torch.zeros_like(lengths)
    free: list[int] = []
    for text in torch.argsort(lengths, descending=True).tolist():
        length = int(lengths[text])
        fitting = [(room, i) for i, room in enumerate(free) if room >= length]
        if not fitting:
            free.append(width)
            fitting = [(width, len(free) - 1)]
        room, i = min(fitting)
        row[text], start[text] = i, width - room
        free[i] -= length
    return row, start


def _load(path: str, pretrained: bool, dropout: float | None) -> Any:
    from transformers import AutoConfig, AutoModel

    with model_load_errors(
        f"text/transformer({path!r})",
        expected="a hub name that can be reached, or a local folder of a text model",
        fix=f"check the path{'' if Path(path).exists() else '; without a network give a local folder'}",
    ):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if dropout is not None:
            # Each family of models has its own names for these options.
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, dropout)
        if pretrained:
            return AutoModel.from_pretrained(path, config=config, trust_remote_code=False)
        return AutoModel.from_config(config, trust_remote_code=False)
