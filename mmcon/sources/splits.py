"""Which samples a split holds: by the names that data give their splits, or by identity where they give none.

Names: a folder, a value of a split column, the prefix of a shard and the split of a data set on a hub are matched by
one rule (`match_split`): `training_set`, `Train` and `TRAIN` are the training split, and a held-out split is found by
any of its usual names.

Identity, for data without splits of their own:

- `held_out` decides for each sample by a hash of its own id, so that samples which are added later move no other. The
  number that is held out varies as a binomial does, which is of no matter for thousands of samples.
- `held_out_fold` ranks all samples by their hashes and holds out every k-th rank. It is for few samples, such as a
  dozen videos, where `held_out` may leave a split empty. Added samples move others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import keys, stable_ids

# Spellings of the usual splits, in lower case and without separators. Held-out splits are in the order of preference.
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
    """The name among those available that means a split; None where none does.

    The name itself comes first, then another spelling of it, then, for a held-out split, any other held-out one.

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
    """Which samples a split by identity holds out: each by its own id, so that added samples move none.

    >>> held_out(stable_ids(["a.png", "b.png", "c.png"]), share=0.5).dtype
    torch.bool
    """
    if not 0 < share < 1:
        raise InputError("held_out", expected="a share between 0 and 1", got=str(share))
    return keys(sample=ids).child("split").bernoulli("held out", share)


def held_out_fold(ids: Int[Tensor, " n"], fold: int, folds: int) -> Bool[Tensor, " n"]:
    """Which samples a fold holds out: every `folds`-th from the `fold`-th on, in a keyed order of all samples."""
    if folds < 2:
        raise InputError("held_out_fold", expected="2 folds or more", got=str(folds))
    rank = keys(sample=ids).child("split").bits("fold").argsort().argsort()
    return rank % folds == fold % folds


def split_by_name(where: str, names: Sequence[str], split: str) -> tuple[list[int], str]:
    """The positions whose own split is the one asked for, and a note on it.

    Args:
        where: the source, for messages.
        names: the split of each sample.
        split: the split asked for; "all": every sample.

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
    """The positions of a split that the data do not have themselves, and a note on it.

    Args:
        where: the source, for messages.
        names: what decides for each sample; samples of equal names stay in one split.
        split: "train", a held-out split under any name, or "all".
        test_share: how much is held out.
        fold: (k, folds): hold out the k-th fold instead.
        by: what the names are, for the note.

    Raises:
        DataError: the split is another, or no sample falls into it.
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
