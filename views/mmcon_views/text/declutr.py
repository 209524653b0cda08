"""DeCLUTR: spans of a document as anchor and positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from mmcon.errors import InputError
from mmcon.media.text import TextHandle, as_text_handles
from mmcon.random import FIELDS, Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator


@final
@register_view("text/declutr", modality="text")
class Declutr(ViewGenerator):
    """A span of a document, as in DeCLUTR (Giorgi et al. 2021, section 3.1), counted in words.

    The length of an anchor is min + (max - min)·Beta(4, 2), that of a positive min + (max - min)·Beta(2, 4), so that
    anchors are long and positives short. The start of a positive is between the anchor's start minus the positive's
    length and the anchor's end, so a positive is adjacent to the anchor, overlaps it or is inside it. A Beta with
    integer parameters is an order statistic of uniforms. Deviations: lengths count words, not tokens; a text of fewer
    than `shortest` words is used whole.

    Args:
        role: "anchor" or "positive"; both roles draw the same anchor for a sample.
        shortest: the fewest words in a span.
        longest: the most words in a span.
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
        """Draw lengths and positions, each `b` float64 in [0, 1); those of the anchor from the key of view 0."""
        fields = keys.fields.clone()
        # A positive must know the anchor's span, so both roles draw it from the key of view 0.
        fields[:, FIELDS.index("view")] = 0
        shared = Keys(fields, step=keys.step).child("text/declutr")
        params = {
            "anchor_length": shared.uniform("anchor length", shape=(5,)).sort(1).values[:, 3],  # Beta(4, 2)
            "anchor_position": shared.uniform("anchor place"),
        }
        if self.role == "positive":
            params["length"] = keys.uniform("length", shape=(5,)).sort(1).values[:, 1]  # Beta(2, 4)
            params["position"] = keys.uniform("place")
        return params

    def apply(self, batch: Sequence[TextHandle | str], params: Params) -> list[TextHandle]:
        """Extract the spans."""
        rows = [{name: float(values[i]) for name, values in params.items()} for i in range(len(batch))]
        return [text.only(self._cut(text.value, row)) for text, row in zip(as_text_handles(batch), rows, strict=True)]

    def _cut(self, text: str, row: dict[str, float]) -> str:
        words = text.split()
        if len(words) < self.shortest:
            return text
        most = min(self.longest, len(words))
        length = self.shortest + round((most - self.shortest) * row["anchor_length"])
        start = int(row["anchor_position"] * (len(words) - length + 1))
        if self.role == "positive":
            end, own = start + length, self.shortest + round((most - self.shortest) * row["length"])
            low, high = max(0, start - own), min(end, len(words) - own)
            start, length = low + int(row["position"] * (high - low + 1)), own
        return " ".join(words[start : start + length])
