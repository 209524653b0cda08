"""Draw one instance of a sample for each view, for samples with several recordings, captions or photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.media.instances import Instances
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator


@final
@register_view("any/instance", modality="any")
class ChooseInstance(ViewGenerator):
    """A uniformly drawn instance of the sample for each view; a sample without instances is returned unchanged.

    >>> view = Chain(create_view("any/instance"), create_view("audio/speech"))

    Args:
        random: False always selects the first instance, for evaluation.
    """

    ragged: ClassVar[bool] = True

    def __init__(self, *, random: bool = True) -> None:
        self.random = random

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `instance`, `b` int64, the index of the instance."""
        count = meta["instances"] if self.random and "instances" in meta else 1
        return {"instance": keys.integers("instance", 0, count)}

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The header facts of the drawn instance."""
        if "instances" not in meta:
            return meta
        chosen: Meta = {name: column for name, column in meta.items() if "/" not in name and name != "instances"}
        for name in {name.partition("/")[2] for name in meta if "/" in name}:
            every = torch.stack([meta[f"{i}/{name}"] for i in range(_count(meta, name))], 1)
            chosen[name] = every.gather(1, params["instance"][:, None])[:, 0]
        return chosen

    def apply(self, batch: Sequence[Any] | Shaped[Tensor, "b ..."], params: Params) -> Any:
        """The handles of the drawn instances; other handles and stacked tensors are unchanged."""
        if isinstance(batch, Tensor):
            return batch
        return [
            sample.instances[number] if isinstance(sample, Instances) else sample
            for sample, number in zip(batch, params["instance"].tolist(), strict=True)
        ]


def _count(meta: Meta, name: str) -> int:
    return sum(known.partition("/")[2] == name for known in meta)
