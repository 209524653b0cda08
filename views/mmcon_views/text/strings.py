"""Views of texts as strings: which version, which span, which words, which characters.

    view = Chain(create_view("text/word-delete"), create_view("text/tokens", max_tokens=32))

They take handles (mmcon.media.text.TextHandle) and give handles; views/tokens.py makes numbers of them. A text's random
choices are expanded from one drawn seed, number by number, so that they do not depend on the other texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, final

from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.text import TextHandle, as_text_handles
from mmcon.random import Keys, keys
from mmcon.registry import register_view
from mmcon.views import Chain, Meta, Params, ViewGenerator
from mmcon_views.text.tokens import TokenView

# dice(name, n): n uniforms of a text, under a name.
Dice = Callable[[str, int], list[float]]


class _OfStrings(ViewGenerator):
    """Draws a seed a text; a subclass changes strings with uniforms that the seed expands to."""

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw one seed a text, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Sequence[TextHandle | str], params: Params) -> list[TextHandle]:
        """Change text by text."""
        texts = as_text_handles(batch)
        dice = _Dice(params["seed"], widest=2 + max((len(text.value) for text in texts), default=0))
        return [text.only(self.change(text.value, partial(dice.row, i))) for i, text in enumerate(texts)]

    def change(self, text: str, dice: Dice) -> str:
        """The changed text: a function of the text and of uniforms."""
        raise NotImplementedError


class _Dice:
    """Uniforms that each seed expands to, by name, for all texts at once: one by one they cost a millisecond each.

    Args:
        seeds: `b` int64.
        widest: the most numbers that are asked for; the first ones do not depend on it.
    """

    def __init__(self, seeds: Tensor, *, widest: int) -> None:
        self.key, self.widest = keys(sample=seeds).child("text"), widest
        self._tables: dict[str, Tensor] = {}

    def row(self, i: int, name: str, n: int) -> list[float]:
        """The first n numbers of text i."""
        if name not in self._tables:
            self._tables[name] = self.key.uniform(name, shape=(self.widest,))
        return self._tables[name][i, :n].tolist()


def _share(where: str, share: float) -> float:
    if not 0 <= share < 1:
        raise InputError(where, expected="0 <= share < 1", got=str(share))
    return share


# --- which version, which span ---------------------------------------------------------------------------------------


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


# --- words and characters --------------------------------------------------------------------------------------------


@final
@register_view("text/word-delete", modality="text")
class WordDelete(_OfStrings):
    """Each word is left out with a probability (EDA's random deletion, Wei and Zou 2019); one word always stays.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = _share("text/word-delete", share)

    def change(self, text: str, dice: Dice) -> str:
        """Leave words out."""
        words = text.split()
        dropped = dice("word", len(words))
        kept = [word for word, u in zip(words, dropped, strict=True) if u >= self.share]
        return " ".join(kept or [words[dropped.index(max(dropped))]])


@final
@register_view("text/word-swap", modality="text")
class WordSwap(_OfStrings):
    """Pairs of words change places, share × words times (EDA's random swap), at least once where there are two.

    Args:
        share: swaps per word.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = _share("text/word-swap", share)

    def change(self, text: str, dice: Dice) -> str:
        """Swap words."""
        words = text.split()
        swaps = max(1, round(self.share * len(words))) if len(words) > 1 and self.share else 0
        places = dice("place", 2 * swaps)
        for u, v in zip(places[::2], places[1::2], strict=True):
            i = int(u * len(words))
            j = (i + 1 + int(v * (len(words) - 1))) % len(words)
            words[i], words[j] = words[j], words[i]
        return " ".join(words)


@final
@register_view("text/case-noise", modality="text")
class CaseNoise(_OfStrings):
    """Each word is written in lower case, in capitals or with a capital first letter, with a probability.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.2) -> None:
        self.share = _share("text/case-noise", share)

    def change(self, text: str, dice: Dice) -> str:
        """Change the case of words."""
        words = text.split()
        ways: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.capitalize)
        chosen, way = dice("word", len(words)), dice("way", len(words))
        return " ".join(
            ways[int(v * 3)](word) if u < self.share else word for word, u, v in zip(words, chosen, way, strict=True)
        )


@final
@register_view("text/typos", modality="text")
class Typos(_OfStrings):
    """Each character between the ends of a word is left out, doubled or exchanged with the next, with a probability.

    Args:
        share: the probability for a character.
    """

    def __init__(self, share: float = 0.03) -> None:
        self.share = _share("text/typos", share)

    def change(self, text: str, dice: Dice) -> str:
        """Make mistakes."""
        chosen, kind = dice("character", len(text)), dice("kind", len(text))
        out, i = [], 0
        while i < len(text):
            inside = 0 < i < len(text) - 1 and not (text[i - 1].isspace() or text[i].isspace() or text[i + 1].isspace())
            if not inside or chosen[i] >= self.share:
                out.append(text[i])
            elif kind[i] >= 2 / 3:
                out.append(text[i] * 2)
            elif kind[i] >= 1 / 3:
                out.append(text[i + 1] + text[i])
                i += 1
            i += 1
        return "".join(out)


# --- whole chains ----------------------------------------------------------------------------------------------------


@register_view("text/words", modality="text")
def words(*, word_delete: float = 0.1, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """Any version of the text, some of its words left out, as tokens: a plain view for training.

    Args:
        word_delete: the share of words left out.
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    tokens = TokenView(tokenizer, max_tokens)
    parts = ("version", AnyColumn()), ("word-delete", WordDelete(share=word_delete)), ("tokens", tokens)
    return Chain(*parts, name="text/words")


@register_view("text/plain", modality="text")
def plain(*, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """The first version of the text as tokens: nothing drawn, for evaluation.

    Args:
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    return Chain(("tokens", TokenView(tokenizer, max_tokens)), name="text/plain")
