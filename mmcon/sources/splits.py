"""Train/test splits: the data's own split names, or else a hash of sample ids.

Names: split folders, values of a split column, prefixes of shards and splits of a hub data set are matched by one rule
(`match_split`): `training_set`, `Train` and `TRAIN` are the training split, and a held-out split matches any of its
common names.

Hash, for data without split names:

- `held_out` hashes the id of each sample, so that added samples do not move others between splits. The test size is
  binomial, which is negligible for thousands of samples.
- `held_out_fold` sorts all samples by their hashes and holds out every k-th. It is meant for few samples, such as a
  dozen videos, for which `held_out` may return an empty split. Added samples may move others between splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import keys, stable_ids

# Spellings of common splits, in lower case and without separators. Held-out splits are in order of preference.
TRAIN = ("train", "training", "trainset", "trainingset")
TEST = ("test", "testing", "testset")
VALIDATION = ("val", "validation", "valid", "valset", "validationset", "dev", "devset")
HELD_OUT = (*TEST, *VALIDATION)
ALL = "all"


def is_train(name: str) -> bool:
    """Whether a name means the training split."""
    return _plain(name) in TRAIN


def is_held_out(name: str) -> bool:
    """Whether a name means a test or a validation split."""
    return _plain(name) in HELD_OUT


def match_split(available: Iterable[str], split: str) -> str | None:
    """The available name that matches a split, or None.

    In order of preference: the name itself, another spelling of it, and, for a held-out split, any other held-out one.

    >>> match_split(["Training", "VAL"], "train"), match_split(["Training", "VAL"], "test")
    ('Training', 'VAL')
    """
    names, wanted = list(available), _plain(split)
    if split in names:
        return split
    same_kind = next((kind for kind in (TRAIN, TEST, VALIDATION) if wanted in kind), (wanted,))
    spellings = dict.fromkeys([wanted, *same_kind, *(HELD_OUT if wanted in HELD_OUT else ())])
    return next((name for spelling in spellings for name in names if _plain(name) == spelling), None)


def held_out(ids: Int[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """A mask of held-out samples, by a hash of each id, so that added samples do not move others between splits.

    >>> held_out(stable_ids(["a.png", "b.png", "c.png"]), share=0.5).dtype
    torch.bool
    """
    if not 0 < share < 1:
        raise InputError("held_out", expected="a share between 0 and 1", got=str(share))
    return keys(sample=ids).child("split").bernoulli("held out", share)


def held_out_fold(ids: Int[Tensor, " n"], fold: int, folds: int) -> Bool[Tensor, " n"]:
    """A mask of the samples of a fold: every `folds`-th from index `fold` on, in a keyed order of all samples."""
    if folds < 2:
        raise InputError("held_out_fold", expected="2 folds or more", got=str(folds))
    rank = keys(sample=ids).child("split").bits("fold").argsort().argsort()
    return rank % folds == fold % folds


def split_by_name(where: str, names: Sequence[str], split: str) -> tuple[list[int], str]:
    """Indices of a split given by a split column, and a note on it.

    Args:
        where: the source, for messages.
        names: the split of each sample.
        split: the requested split; "all": every sample.

    Raises:
        DataError: no sample has this split.
    """
    available = sorted(set(names))
    if split == ALL and ALL not in available:
        return list(range(len(names))), f"all {len(names):,} samples"
    wanted = match_split(available, split)
    if wanted is None:
        fix = "choose one of these splits, or correct the split column"
        raise DataError(where, expected=f"samples of split {split!r}", got=f"splits {available}", fix=fix)
    keep = [i for i, name in enumerate(names) if name == wanted]
    return keep, f"split {wanted!r}: {len(keep):,} of {len(names):,} samples, by the split column"


def split_by_identity(
    where: str,
    names: Sequence[str],
    split: str,
    *,
    test_share: float,
    fold: tuple[int, int] | None = None,
    by: str = "identity",
) -> tuple[list[int], str]:
    """Indices of a split made by hashing ids, and a note on it.

    Args:
        where: the source, for messages.
        names: the values that are hashed; samples with equal names stay in one split.
        split: "train", a held-out split by any name, or "all".
        test_share: the held-out share.
        fold: (k, folds): hold out the k-th fold instead.
        by: what the names are, for the note.

    Raises:
        DataError: there is no such split, or it is empty.
    """
    if split == ALL:
        return list(range(len(names))), f"all {len(names):,} samples"
    if not (is_train(split) or is_held_out(split)):
        expected = "split 'train', 'test' or 'all' of data without splits of their own"
        raise DataError(where, expected=expected, got=repr(split), fix="choose one of these")
    ids = stable_ids(names)
    out = held_out(ids, test_share) if fold is None else held_out_fold(ids, *fold)
    keep = (~out if is_train(split) else out).nonzero()[:, 0].tolist()
    if not keep:
        raise DataError(
            where,
            expected=f"samples of split {split!r}",
            got=f"none by {by}, of {len(names):,} samples",
            fix="write the split of each sample into a column `split`, or raise test_share",
        )
    how = f"{test_share:.0%} held out" if fold is None else f"fold {fold[0]} of {fold[1]} held out"
    return keep, f"split {split!r}: {len(keep):,} of {len(names):,} samples, by {by}, {how}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.strip().lower() if letter not in "_- ")
