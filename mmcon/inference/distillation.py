"""Features of a frozen teacher as a column of a source, from which a student learns."""

from __future__ import annotations

import torch

from mmcon.inference.loaded_model import LoadedModel
from mmcon.sources.base import Source, Subset


def with_teacher(
    source: Source,
    teacher: LoadedModel,
    *,
    column: str = "teacher",
    space: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Subset:
    """The samples of a source with the teacher's features of them, of length one, in a column.

    The teacher sees each sample once, by its own evaluation views, and not again during the training. On several
    ranks each computes all features.

    Args:
        source: of one modality.
        teacher: any model that `mmcon.load` opens; it stays in evaluation mode and receives no gradient.
        column: the name of the column.
        space: a shared space of the teacher; None: the features before its projection heads.
        batch_size: samples that are encoded at once.
        num_workers: processes that read and decode.

    Returns:
        The samples that the teacher could read, in their order.

    Raises:
        InputError: the teacher lacks the modality or the space.
        DataError: no sample can be read.
    """
    features = teacher.encode_source(source, space=space, batch_size=batch_size, num_workers=num_workers)
    row_of = {sample: row for row, sample in enumerate(source.ids.tolist())}
    subset = Subset(source, [row_of[sample] for sample in features.index["sample"].tolist()], name=source.name)
    subset.columns[column] = features.values.to(torch.float32)
    return subset
