"""Handles on text: strings before tokenization, possibly in several versions (title and body, translations).

>>> TextHandle(("Apples are red.", "Äpfel sind rot."), names=("en", "de")).version("de").decode()
'Äpfel sind rot.'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from mmcon.errors import DataError, InputError


@final
@dataclass(frozen=True)
class TextHandle:
    """A text before tokenization. Views that edit words and characters take and return handles.

    Attributes:
        versions: the text in each column; the first is the current one.
        names: the names of the columns.
        id: the name of the sample in messages.
    """

    versions: tuple[str, ...]
    names: tuple[str, ...] = ("text",)
    id: str = ""

    @property
    def value(self) -> str:
        """The current version."""
        return self.versions[0]

    @property
    def facts(self) -> Mapping[str, int]:
        """The number of characters and of words."""
        return {"characters": len(self.value), "words": len(self.value.split())}

    def decode(self) -> str:
        """The current version, as a string."""
        return self.value

    def version(self, name: str) -> TextHandle:
        """The same text with another column as the current version."""
        if name not in self.names:
            raise DataError(f"text {self.id!r}", expected=f"a column among {list(self.names)}", got=repr(name))
        return self.only(self.versions[self.names.index(name)])

    def only(self, value: str) -> TextHandle:
        """A handle on a changed text, without the other columns."""
        return replace(self, versions=(value,), names=self.names[:1])


def as_text_handles(samples: Sequence[TextHandle | str]) -> list[TextHandle]:
    """Convert texts, some of which may be plain strings, to handles."""
    check_is_list("texts", samples)
    return [sample if isinstance(sample, TextHandle) else TextHandle((sample,)) for sample in samples]


def check_is_list(where: str, texts: object) -> None:
    """Raise InputError for one string in place of a list of texts, which would be read letter by letter."""
    if isinstance(texts, str):
        raise InputError(where, expected="a list of texts", got=f"one text, {texts[:40]!r}", fix="a list of it: [text]")
