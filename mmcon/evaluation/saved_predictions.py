"""The predictions of a classifier on held-out samples as a small file, which comparisons of runs read.

A run folder, or the folder of an evaluation, holds `predictions/NAME.parquet` with the columns `sample`, `label`,
`predicted` and `correct`, a line for each sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet

from mmcon.batch import Index
from mmcon.errors import DataError
from mmcon.evaluation.features import Features
from mmcon.evaluation.statistics import Classification
from mmcon.files import create_folder, replace_file

FOLDER = "predictions"
_COLUMNS = ("sample", "label", "predicted", "correct")


def save_predictions(folder: str | Path, classifications: Mapping[str, Classification], test: Features) -> None:
    """Write the predictions of classifiers on the samples of a table of features.

    Args:
        folder: a run folder, or the folder of an evaluation.
        classifications: the predictions by the name of the metric, such as "linear_probe".
        test: the samples with their labels, in the same order.
    """
    create_folder(Path(folder) / FOLDER)
    for metric, found in classifications.items():
        columns = test.index["sample"], test.labels, found.predicted, found.correct
        table = pa.table({name: column.cpu().numpy() for name, column in zip(_COLUMNS, columns, strict=True)})
        replace_file(Path(folder) / FOLDER / f"{metric}.parquet", partial(parquet.write_table, table))


def read_predictions(folder: str | Path) -> dict[str, Index]:
    """By metric, the columns of the predictions in a folder; empty if it has none.

    Raises:
        DataError: a file is damaged or lacks a column.
    """
    return {path.stem: _read(path) for path in sorted((Path(folder) / FOLDER).glob("*.parquet"))}


def _read(path: Path) -> Index:
    try:
        table = parquet.read_table(path, columns=list(_COLUMNS))
        columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in _COLUMNS}
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise DataError(
            str(path),
            expected=f"a Parquet file with the columns {list(_COLUMNS)}",
            got=str(error).partition("\n")[0],
            fix="evaluate the model again: mmcon evaluate MODEL --data DATA",
        ) from error
    return Index(columns)
