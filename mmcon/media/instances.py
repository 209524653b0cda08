"""Several instances of one sample: recordings of one word, captions of one image, photos of one object."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

from mmcon.errors import InputError


@final
class Instances:
    """Handles on all instances of a sample; the generator `any/instance` draws one of them for each view.

    Args:
        instances: at least one handle, all of one modality.
        max_instances: the number of instances in `facts`, the same for all samples of a source; the facts of the last
            instance are repeated up to this number.
    """

    def __init__(self, instances: Sequence[Any], *, max_instances: int) -> None:
        if not 1 <= len(instances) <= max_instances:
            raise InputError("Instances", expected=f"1 to {max_instances} instances", got=str(len(instances)))
        self.instances, self.max_instances = list(instances), max_instances

    @cached_property
    def facts(self) -> dict[str, int | float]:
        """The number of instances, and the facts of each: `0/length`, `1/length`, and so on."""
        facts: dict[str, int | float] = {"instances": len(self.instances)}
        for number in range(self.max_instances):
            of = getattr(self.instances[min(number, len(self.instances) - 1)], "facts", {})
            facts |= {f"{number}/{name}": value for name, value in of.items()}
        return facts

    def decode(self) -> Any:
        """Decode the first instance."""
        return self.instances[0].decode()

    def __repr__(self) -> str:
        return f"Instances({self.instances!r})"
