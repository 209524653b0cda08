"""Columns of a source as views of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from mmcon.media.text import TextHandle
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator


@final
@register_view("text/column", modality="text")
class Column(ViewGenerator):
    """One column of the source as the view: a translation, the body under a title, the answer to a question.

    Args:
        column: its name.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def __init__(self, column: str) -> None:
        self.column = column

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Sequence[TextHandle], params: Params) -> list[TextHandle]:
        """The column of every text."""
        return [text.version(self.column) for text in batch]


@final
@register_view("text/any-column", modality="text")
class AnyColumn(ViewGenerator):
    """A column drawn evenly for each view, so that every pair of columns is learned from.

    Args:
        columns: from which; none: all that the text has.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.among = tuple(columns)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw a place in the list of columns, `b` float64 in [0, 1)."""
        return {"place": keys.uniform("place")}

    def apply(self, batch: Sequence[TextHandle], params: Params) -> list[TextHandle]:
        """The drawn column of every text."""
        out = []
        for text, place in zip(batch, params["place"].tolist(), strict=True):
            names = self.among or text.names
            out.append(text.version(names[int(place * len(names))]))
        return out
