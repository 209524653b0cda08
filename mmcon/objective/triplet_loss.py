"""The triplet loss as an objective: a baseline of the contrastive losses."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import ConfigError, InputError
from mmcon.losses.baselines import triplet
from mmcon.objective.candidates import Embeddings, rows_by_name, tables_by_modality


@final
class TripletLoss(nn.Module):
    """The triplet loss of each row's farthest positive and nearest negative (Hermans et al. 2017, batch hard).

    Positives and negatives are found among the rows of all ranks.

    Args:
        margin: by how much the negative must be farther than the positive, as a Euclidean distance of embeddings, of
            which unit rows have at most 2.
    """

    def __init__(self, *, margin: float) -> None:
        super().__init__()
        if not margin > 0:
            raise ConfigError("triplet", expected="a margin above 0", got=str(margin))
        self.margin = margin

    def forward(self, embeddings: Embeddings, batch: ViewBatch) -> Float[Tensor, ""]:
        """The loss of embeddings in one space and of one modality.

        Raises:
            InputError: there are several spaces or modalities, or samples are mixed and have two labels.
        """
        tables = tables_by_modality(embeddings, batch)
        # Each rank computes the loss of all rows. The gather sums the gradients of the ranks, and their average over
        # ranks, which data parallelism takes, is then that of one rank with the whole batch.
        gathered = collectives.gather(*rows_by_name(embeddings, tables, None))
        if len(gathered.embeddings) != 1:
            raise InputError("triplet", expected="one space, one modality", got=str(sorted(gathered.embeddings)))
        ((name, rows),) = gathered.embeddings.items()
        table = gathered.tables[name]
        if "partner_label" in table:
            fix = "--mix none, or --objective supcon"
            raise InputError("triplet", expected="one label a sample", got="mixed samples", fix=fix)
        return triplet(rows, table["label"], margin=self.margin)
