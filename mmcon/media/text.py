"""Handles on texts: a text, or several versions of it (title and body, translations), still as strings.

TextHandle(("Apples are red.", "Äpfel sind rot."), names=("en", "de")).decode()   # the first version
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from mmcon.errors import DataError


@final
@dataclass(frozen=True)
class TextHandle:
    """A text that is not yet tokenised; views of words and characters work on it.

    Attributes:
        versions: the text in each of its columns; the first one is the text at hand.
        names: what the columns are called.
        id: what the sample is called in messages.
    """

    versions: tuple[str, ...]
    names: tuple[str, ...] = ("text",)
    id: str = ""

    @property
    def value(self) -> str:
        """The text at hand."""
        return self.versions[0]

    @property
    def facts(self) -> Mapping[str, int]:
        """The number of characters and of words."""
        return {"characters": len(self.value), "words": len(self.value.split())}

    def decode(self) -> str:
        """The text at hand, as a string."""
        return self.value

    def version(self, name: str) -> TextHandle:
        """Another column as the text at hand."""
        if name not in self.names:
            raise DataError(f"text {self.id!r}", expected=f"a column among {list(self.names)}", got=repr(name))
        return self.only(self.versions[self.names.index(name)])

    def only(self, value: str) -> TextHandle:
        """A changed text; the other columns stay behind."""
        return replace(self, versions=(value,), names=self.names[:1])


def as_text_handles(samples: Sequence[TextHandle | str]) -> list[TextHandle]:
    """Handles, also for plain strings."""
    return [sample if isinstance(sample, TextHandle) else TextHandle((sample,)) for sample in samples]
