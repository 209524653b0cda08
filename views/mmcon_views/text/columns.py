"""Views of a text from parallel columns: translations, title and body, question and answer."""

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
    """A fixed column of the text as the view, such as a translation, the body or the answer.

    Args:
        column: the name of the column.
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
        """Select the column of every text."""
        return [text.version(self.column) for text in batch]


@final
@register_view("text/any-column", modality="text")
class AnyColumn(ViewGenerator):
    """A uniformly drawn column for each view, so that training sees all pairs of columns.

    Args:
        columns: the names of the columns; by default all columns of the text.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.names = tuple(columns)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `position`, `b` float64 in [0, 1), as a fraction of the list of columns."""
        return {"position": keys.uniform("place")}

    def apply(self, batch: Sequence[TextHandle], params: Params) -> list[TextHandle]:
        """Select the drawn column of every text."""
        out = []
        for text, position in zip(batch, params["position"].tolist(), strict=True):
            names = self.names or text.names
            out.append(text.version(names[int(position * len(names))]))
        return out
