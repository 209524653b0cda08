"""Several instances of one sample: recordings of one word, captions of one picture, photographs of one thing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

from mmcon.errors import InputError


@final
class Instances:
    """Handles on all instances of a sample; `any/instance` draws one for each view.

    Args:
        instances: handles of one kind, one at least.
        widest: as how many instances the facts are told, the same for all samples of a source; the last is repeated.
    """

    def __init__(self, instances: Sequence[Any], *, widest: int) -> None:
        if not 1 <= len(instances) <= widest:
            raise InputError("Instances", expected=f"1 to {widest} instances", got=str(len(instances)))
        self.instances, self.widest = list(instances), widest

    @cached_property
    def facts(self) -> dict[str, int | float]:
        """How many there are, and of each what its header says: `0/length`, `1/length`, and so on."""
        told: dict[str, int | float] = {"instances": len(self.instances)}
        for number in range(self.widest):
            of = getattr(self.instances[min(number, len(self.instances) - 1)], "facts", {})
            told |= {f"{number}/{name}": value for name, value in of.items()}
        return told

    def decode(self) -> Any:
        """The first instance."""
        return self.instances[0].decode()

    def __repr__(self) -> str:
        return f"Instances({self.instances!r})"
