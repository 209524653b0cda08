"""A predictor after the projection head: the online network of BYOL and SimSiam."""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import ConfigError
from mmcon.models.projection_heads import ProjectionHead
from mmcon.models.shared_spaces import SharedSpace


def predicted(space: str) -> str:
    """The name under which the predictions of a space are among the embeddings."""
    return f"{space} (predicted)"


@final
class Predictor(nn.Module):
    """A model whose embeddings have predictions beside them (Grill et al. 2020, BYOL; Chen and He 2021, SimSiam).

    The predictor has one hidden layer with batch norm and ReLU, as in both papers. Two deviations: it receives rows of
    length one, since embeddings are, and its weights are shared by the modalities of the space.

    Args:
        model: a `ContrastiveModel`; it is not copied, and what is evaluated later.
        space: the space whose embeddings are predicted.
        hidden_dim: width of the hidden layer: 4,096 in BYOL, for embeddings of 256; a quarter of the embeddings in
            SimSiam.

    Raises:
        ConfigError: the model lacks the space.
    """

    def __init__(self, model: nn.Module, *, hidden_dim: int, space: str = "shared") -> None:
        super().__init__()
        spaces: dict[str, SharedSpace] = getattr(model, "spaces", {})
        if space not in spaces:
            raise ConfigError("Predictor", expected=f"a space among {sorted(spaces)}", got=repr(space))
        self.model, self.space = model, space
        dim = spaces[space].dim
        self.predictor = ProjectionHead(dim, SharedSpace(dim=dim, head="mlp-batch-norm", hidden_dim=hidden_dim))

    def forward(self, batch: Any) -> dict[str, dict[str, Float[Tensor, "_ d"]]]:
        """The embeddings of the model, and under `predicted(space)` the predictions of the same rows, of length one."""
        embeddings = self.model(batch)
        found = {modality: self.predictor(rows) for modality, rows in embeddings[self.space].items()}
        return {**embeddings, predicted(self.space): found}
