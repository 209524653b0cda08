"""Losses of pytorch-metric-learning as baselines, with the calls of this package.

`uv pip install "mmcon[metric-learning]"` installs that library, which computes them.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.affinity import SameLabel
from mmcon.affinity.pairwise import Numbers
from mmcon.errors import InputError, MissingDependencyError
from mmcon.losses.settings import check_options
from mmcon.losses.supcon import view_major

#: The classes of pytorch-metric-learning by name.
CLASSES = {
    "multi-similarity": "MultiSimilarityLoss",
    "circle": "CircleLoss",
    "proxy-anchor": "ProxyAnchorLoss",
}


@final
class MetricLearningLoss(torch.nn.Module):
    """A loss of pytorch-metric-learning, called as `SupConLoss` is, to compare with.

    - `multi-similarity` (Wang et al. 2019): `alpha=2`, `beta=50`, `base=0.5`.
    - `circle` (Sun et al. 2020): the margin `m=0.4` and the scale `gamma=80`.
    - `proxy-anchor` (Kim et al. 2020): `num_classes`, `embedding_size`, `margin=0.1`, `alpha=32`. Its proxies are
      parameters: pass `loss.parameters()` to an optimizer, in the paper with 100 times the learning rate.

    All compare rows by cosine similarity. Each rank computes the loss of its own rows.

    Args:
        name: `multi-similarity`, `circle` or `proxy-anchor`.
        options: of the class in that library, such as a `distance` or a `reducer` too.

    Raises:
        InputError: the name is unknown, or a required option is missing.
        ConfigError: an option is unknown.
        MissingDependencyError: pytorch-metric-learning is not installed.

    >>> loss = MetricLearningLoss("multi-similarity", alpha=2, beta=50)
    >>> z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    >>> value = loss(z, torch.arange(8) // 2)
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        if name not in CLASSES:
            known = ", ".join(CLASSES)
            raise InputError("MetricLearningLoss", expected=f"one of {known}", got=repr(name), fix="see its docstring")
        try:
            library = importlib.import_module("pytorch_metric_learning.losses")
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"MetricLearningLoss({name!r})",
                expected="pytorch-metric-learning",
                got=f"{error}",
                fix='uv pip install "mmcon[metric-learning]"',
            ) from error
        target = getattr(library, CLASSES[name])
        required = _check_own_options(name, target, options)
        missing = [option for option in required if option not in options]
        if missing:
            call = ", ".join([repr(name), *(f"{option}=..." for option in missing)])
            got = f"{sorted(options) or 'none'}"
            fix = f"MetricLearningLoss({call})"
            raise InputError(f"MetricLearningLoss({name!r})", expected=f"the options {missing}", got=got, fix=fix)
        self.name, self.loss = name, target(**options)

    def forward(self, features: Shaped[Tensor, "..."], labels: Numbers) -> Float[Tensor, ""]:
        """The loss of `b` samples.

        Args:
            features: `b d`, or `b v d` for several views of each sample.
            labels: integers `b` in a tensor, an array or a list.

        Raises:
            InputError: shapes that do not fit, labels that are not integers, or features that are not finite.
        """
        features = features[:, None] if features.ndim == 2 else features
        rows, numbers = view_major(features), SameLabel(labels).column_pairs[0].rows
        if not isinstance(numbers, Tensor) or len(numbers) != len(features):
            expected, got = f"{len(features)} labels, one a sample", str(labels)[:60]
            raise InputError("MetricLearningLoss", expected=expected, got=got)
        if not rows.is_cuda and not bool(torch.isfinite(rows.detach()).all()):
            raise InputError("MetricLearningLoss", expected="finite features", got="NaN or infinite values")
        wide = rows if rows.dtype == torch.float64 else rows.float()
        with torch.autocast(rows.device.type, enabled=False):
            return self.loss(wide, numbers.to(rows.device).repeat(features.shape[1]))


def _check_own_options(name: str, target: type, options: dict[str, Any]) -> list[str]:
    """Check names of options against the classes that read them; return those without a default."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in target.__mro__[:-1]:
        parameters |= {**inspect.signature(base.__init__).parameters, **parameters}
    named = {p.name: p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"}
    check_options(f"MetricLearningLoss({name!r})", options, named)
    own = inspect.signature(target.__init__).parameters.values()
    return [p.name for p in own if p.default is p.empty and p.name in named]
