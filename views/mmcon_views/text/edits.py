"""Edits of words and characters: deletion, swap, case noise, typos.

Edits take text handles and return text handles; `text/tokens` converts the edited strings to token ids.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, final

from jaxtyping import Int
from torch import Tensor

from mmcon.media.text import TextHandle, as_text_handles
from mmcon.random import Keys, keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.text.tokens import check_share

# uniforms(name, n): n uniforms in [0, 1) of one text, independent between names.
Uniforms = Callable[[str, int], list[float]]


class TextEdit(ViewGenerator):
    """Base class: draws one seed per text; a subclass edits a string with uniforms that are generated from the seed.

    The uniforms of a text depend only on its seed, not on the other texts of the batch.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw one seed per text, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Sequence[TextHandle | str], params: Params) -> list[TextHandle]:
        """Edit each text."""
        texts = as_text_handles(batch)
        table = _UniformTable(params["seed"], longest=2 + max((len(text.value) for text in texts), default=0))
        return [text.only(self.edit(text.value, partial(table.row, i))) for i, text in enumerate(texts)]

    @abstractmethod
    def edit(self, text: str, uniforms: Uniforms) -> str:
        """The edited text: a function of the text and of its uniforms."""


@final
@register_view("text/word-delete", modality="text")
class WordDelete(TextEdit):
    """Delete each word with a probability (EDA's random deletion, Wei and Zou 2019); at least one word is kept.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = check_share("text/word-delete", share)

    def edit(self, text: str, uniforms: Uniforms) -> str:
        """Delete words."""
        words = text.split()
        u = uniforms("word", len(words))
        kept = [word for word, value in zip(words, u, strict=True) if value >= self.share]
        return " ".join(kept or [words[u.index(max(u))]])


@final
@register_view("text/word-swap", modality="text")
class WordSwap(TextEdit):
    """Swap pairs of words, share × words times (EDA's random swap), at least once in a text of two words or more.

    Args:
        share: swaps per word.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = check_share("text/word-swap", share)

    def edit(self, text: str, uniforms: Uniforms) -> str:
        """Swap words."""
        words = text.split()
        swaps = max(1, round(self.share * len(words))) if len(words) > 1 and self.share else 0
        positions = uniforms("place", 2 * swaps)
        for u, v in zip(positions[::2], positions[1::2], strict=True):
            i = int(u * len(words))
            j = (i + 1 + int(v * (len(words) - 1))) % len(words)
            words[i], words[j] = words[j], words[i]
        return " ".join(words)


@final
@register_view("text/case-noise", modality="text")
class CaseNoise(TextEdit):
    """Change each word, with a probability, to lower case, upper case or a capital first letter.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.2) -> None:
        self.share = check_share("text/case-noise", share)

    def edit(self, text: str, uniforms: Uniforms) -> str:
        """Change the case of words."""
        words = text.split()
        cases: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.capitalize)
        changed, case = uniforms("word", len(words)), uniforms("way", len(words))
        return " ".join(
            cases[int(v * 3)](word) if u < self.share else word for word, u, v in zip(words, changed, case, strict=True)
        )


@final
@register_view("text/typos", modality="text")
class Typos(TextEdit):
    """Delete each inner character of a word, double it or swap it with the next one, with a probability.

    Args:
        share: the probability per character.
    """

    def __init__(self, share: float = 0.03) -> None:
        self.share = check_share("text/typos", share)

    def edit(self, text: str, uniforms: Uniforms) -> str:
        """Make typing mistakes."""
        changed, kind = uniforms("character", len(text)), uniforms("kind", len(text))
        out, i = [], 0
        while i < len(text):
            inner = 0 < i < len(text) - 1 and not (text[i - 1].isspace() or text[i].isspace() or text[i + 1].isspace())
            if not inner or changed[i] >= self.share:
                out.append(text[i])
            elif kind[i] >= 2 / 3:
                out.append(text[i] * 2)
            elif kind[i] >= 1 / 3:
                out.append(text[i + 1] + text[i])
                i += 1
            i += 1
        return "".join(out)


class _UniformTable:
    """Uniforms by seed and name, generated for all texts at once, since a call per text takes a millisecond.

    Args:
        seeds: one seed per text.
        longest: the highest number of uniforms per call; the first n uniforms do not depend on it.
    """

    def __init__(self, seeds: Int[Tensor, " b"], *, longest: int) -> None:
        self.key, self.longest = keys(sample=seeds).child("text"), longest
        self._tables: dict[str, Tensor] = {}

    def row(self, i: int, name: str, n: int) -> list[float]:
        """The first n uniforms of text i."""
        if name not in self._tables:
            self._tables[name] = self.key.uniform(name, shape=(self.longest,))
        return self._tables[name][i, :n].tolist()
