"""DeCLUTR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from mmcon.errors import InputError
from mmcon.media.text import TextHandle, as_text_handles
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator


@final
@register_view("text/declutr", modality="text")
class Declutr(ViewGenerator):
    """A span of a document as DeCLUTR draws it (Giorgi et al. 2021, section 3.1), counted in words.

    An anchor's length is min + (max - min)·Beta(4, 2), a positive's min + (max - min)·Beta(2, 4), so that anchors are
    long and positives short; a positive begins anywhere from its own length before the anchor to the anchor's end, so
    it is adjacent to, overlaps or lies within the anchor. A Beta of whole parameters is an order statistic of uniforms.
    Deviations: words split at white space stand for tokens; a text of fewer than `shortest` words is taken whole.

    Args:
        role: "anchor" or "positive". Both take the sample's anchor from the same draw.
        shortest: words in a span at least.
        longest: words in a span at most.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def __init__(self, role: str, shortest: int = 32, longest: int = 512) -> None:
        if role not in ("anchor", "positive") or not 1 <= shortest <= longest:
            raise InputError(
                "text/declutr",
                expected="role anchor or positive, 1 <= shortest <= longest",
                got=f"role={role!r}, shortest={shortest}, longest={longest}",
            )
        self.role, self.shortest, self.longest = role, shortest, longest

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw lengths and places, each `b` float64 in [0, 1); the anchor's are those of view 0."""
        fields = keys.fields.clone()
        fields[:, 4] = 0
        shared = Keys(fields, step=keys.step).child("text/declutr")
        params = {
            "anchor_length": shared.uniform("anchor length", shape=(5,)).sort(1).values[:, 3],  # Beta(4, 2)
            "anchor_place": shared.uniform("anchor place"),
        }
        if self.role == "positive":
            params["length"] = keys.uniform("length", shape=(5,)).sort(1).values[:, 1]  # Beta(2, 4)
            params["place"] = keys.uniform("place")
        return params

    def apply(self, batch: Sequence[TextHandle | str], params: Params) -> list[TextHandle]:
        """Cut the spans out."""
        rows = [{name: float(values[i]) for name, values in params.items()} for i in range(len(batch))]
        return [text.only(self._cut(text.value, row)) for text, row in zip(as_text_handles(batch), rows, strict=True)]

    def _cut(self, text: str, row: dict[str, float]) -> str:
        words = text.split()
        if len(words) < self.shortest:
            return text
        most = min(self.longest, len(words))
        length = self.shortest + round((most - self.shortest) * row["anchor_length"])
        start = int(row["anchor_place"] * (len(words) - length + 1))
        if self.role == "positive":
            end, own = start + length, self.shortest + round((most - self.shortest) * row["length"])
            low, high = max(0, start - own), min(end, len(words) - own)
            start, length = low + int(row["place"] * (high - low + 1)), own
        return " ".join(words[start : start + length])
