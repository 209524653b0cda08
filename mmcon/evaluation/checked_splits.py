"""Checks before an evaluation starts: the model encodes samples of the splits, and the splits have the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from mmcon.errors import DataError, InputError, MmconError
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.second_stage import Encode
from mmcon.loading.loader import one_pass
from mmcon.sources.base import Source, Subset
from mmcon.views import ViewGenerator

#: Samples that are tried until one can be read.
TRIED = 10


def check_encoded(
    encode: Encode, source: Source, views: Sequence[ViewGenerator], *, device: torch.device | str = "cpu"
) -> None:
    """Encode the first sample that can be read: a model may take images of one size, or of a number of channels.

    Raises:
        InputError: the model cannot encode it.
        MmconError: another error of the package, such as a package that is missing or a feature that is not finite.
    """
    for row in range(min(len(source), TRIED)):
        with suppress(DataError):  # a sample that cannot be read is named in the extraction
            batches = one_pass(Subset(source, [row]), {source.modality: list(views)}, device=device)
            try:
                extract_features(encode, batches, modality=source.modality, device=device, show_progress=False)
            except Exception as error:  # any library's model may be behind it
                known = isinstance(error, InputError)
                if isinstance(error, MmconError) and not known:
                    raise  # it is not about the size or the channels, and has a fix of its own
                got, fix = (str(error), error.fix) if known else (f"{type(error).__name__}: {error}", "")
                raise InputError(
                    f"evaluate {source.name}",
                    expected="samples that the model takes",
                    got=got.partition("\n")[0],
                    fix=fix or "choose data of the size and the channels of its training, or another model",
                ) from error
            return


def check_labels(train: Source, test: Source) -> None:
    """Check that the splits have the same classes; the labels of the test split are numbered as the training split's.

    Raises:
        DataError: there is one class only, or a class of the test split is not in the training split.
    """
    assert train.labels is not None
    assert test.labels is not None
    known = {train.classes[label] for label in train.labels.unique().tolist()}
    used = {test.classes[label] for label in test.labels.unique().tolist()}
    if len(known) < 2:
        raise DataError(train.name, expected="labels of two classes or more", got=f"one, {min(known)!r}")
    if used - known:
        raise DataError(
            test.name,
            expected=f"the {len(known)} classes of the training split",
            got=f"{len(used - known)} others: {', '.join(sorted(used - known)[:5])}",
            fix="take both splits from one source, or leave these classes out",
        )
    if test.classes != train.classes:
        number = torch.tensor([train.classes.index(name) if name in known else -1 for name in test.classes])
        test.columns["label"], test.classes = number[test.labels], train.classes
