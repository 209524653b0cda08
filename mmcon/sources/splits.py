"""Train/test splits: the data's own split names, or else a hash of sample ids.

Names: split folders, values of a split column, prefixes of shards and splits of a hub data set are matched by one rule
(`match_split`): `training_set`, `Train`, `TRAIN` and `train_images` are the training split, and a held-out split
matches any of its common names.

Hash, for data without split names:

- `held_out_of_classes` hashes the id of each sample and holds out those whose hash is below the share. A class of which
  these are less than ¾ or more than 1½ of its share is corrected, so that every class of two samples or more is in both
  splits. Samples without labels are one class. Added samples move others between splits only in a class that is
  corrected, as small ones are.
- `held_out` is the same without the correction, for samples by the thousand.
- `held_out_fold` sorts all samples by their hashes and holds out every k-th. It is meant for the cross-validation of
  few samples. Added samples may move others between splits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import keys, stable_ids

# Words for common splits, in lower case. Held-out splits are in order of preference.
TRAIN = ("train", "training", "trainset", "trainingset")
TEST = ("test", "testing", "testset", "holdout", "heldout")
VALIDATION = ("val", "validation", "valid", "valset", "validationset", "dev", "devset", "eval", "evaluation")
HELD_OUT = (*TEST, *VALIDATION)
ALL = "all"
# Words beside that of the split, as in `train_images` and `dataset-val`; a year, as in COCO's `train2017`, is one too.
_OTHER_WORDS = {"set", "data", "dataset", "split", "folder", "images", "image", "imgs", "img", "photos", "pictures"}
_OTHER_WORDS |= {"audio", "sounds", "recordings", "videos", "video", "clips", "texts", "files", "samples"}
_WORD = re.compile(r"[^\W\d_]+|\d+")
_YEAR = re.compile(r"(19|20)\d\d")


def is_train(name: str) -> bool:
    """Whether a name means the training split."""
    return _kind(name) is TRAIN


def is_held_out(name: str) -> bool:
    """Whether a name means a test or a validation split."""
    return _kind(name) in (TEST, VALIDATION)


def match_split(available: Iterable[str], split: str) -> str | None:
    """The available name that matches a split, or None.

    In order of preference: the name itself, another spelling of it, and, for a held-out split, any other held-out one.

    >>> match_split(["Training", "VAL"], "train"), match_split(["Training", "VAL"], "test")
    ('Training', 'VAL')
    """
    names, kind = list(available), _kind(split)
    if split in names:
        return split
    spellings = [_plain(split), *(kind or ()), *(HELD_OUT if kind in (TEST, VALIDATION) else ())]
    exact = (name for spelling in spellings for name in names if _plain(name) == spelling)
    return next(exact, next((name for spelling in spellings for name in names if _word(name) == spelling), None))


def held_out(ids: Int[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """A mask of held-out samples, by a hash of each id, so that added samples do not move others between splits.

    >>> held_out(stable_ids(["a.png", "b.png", "c.png"]), share=0.5).dtype
    torch.bool
    """
    if not 0 < share < 1:
        raise InputError("held_out", expected="a share between 0 and 1", got=str(share))
    return keys(sample=ids).child("split").bernoulli("held out", share)


def held_out_of_classes(ids: Int[Tensor, " n"], share: float, classes: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """`held_out`, where every class holds out from ¾ to 1½ times its share, rounded up, but never all.

    Where the hashes give fewer or more, the samples of the class with the lowest hashes are held out. Samples with
    equal ids count as one sample, of the class with the lowest number.
    """
    known, place = ids.unique(return_inverse=True)
    of = torch.full_like(known, torch.iinfo(torch.int64).max).scatter_reduce(0, place, classes, "amin")
    _, of = of.unique(return_inverse=True)
    below = held_out(known, share)
    counts, low = torch.bincount(of).double(), torch.bincount(of, weights=below.double())
    # Rounded to decimals first, since the product of a share may be a little above a whole number.
    least, most = ((counts * share * factor).round(decimals=6).ceil() for factor in (0.75, 1.5))
    number = torch.minimum(low.clamp(min=least, max=most), counts - 1)
    order = keys(sample=known).child("split").uniform("held out").argsort(stable=True)
    order = order[of[order].argsort(stable=True)]
    rank = torch.empty_like(known)
    rank[order] = torch.arange(len(known)) - (counts.cumsum(0) - counts).long()[of[order]]
    return (rank < number[of])[place]


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
    same = [name for name in available if name == wanted or (_kind(name) and _kind(name) == _kind(wanted))]
    keep = [i for i, name in enumerate(names) if name in same]
    counts = ", ".join(f"{name!r} {count:,}" for name, count in Counter(names).most_common(6))
    return keep, f"split {wanted!r}: {len(keep):,} of {len(names):,} samples, by the split column ({counts})"


def split_by_identity(
    where: str,
    names: Sequence[str],
    split: str,
    *,
    test_share: float,
    fold: tuple[int, int] | None = None,
    classes: Int[Tensor, " n"] | None = None,
    by: str = "identity",
) -> tuple[list[int], str]:
    """Indices of a split made by hashing ids, and a note on it.

    Args:
        where: the source, for messages.
        names: the values that are hashed; samples with equal names stay in one split.
        split: "train", a held-out split by any name, or "all".
        test_share: the held-out share.
        fold: (k, folds): hold out the k-th fold instead.
        classes: the class of each sample, if every class is to be in both splits; None: all samples are one class.
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
    classes = torch.zeros_like(ids) if classes is None else classes
    out = held_out_of_classes(ids, test_share, classes) if fold is None else held_out_fold(ids, *fold)
    keep = (~out if is_train(split) else out).nonzero()[:, 0].tolist()
    if not keep:
        raise DataError(
            where,
            expected=f"samples of split {split!r}",
            got=f"none by {by}, of {len(names):,} samples",
            fix="add samples, or name a test set of its own: a folder test/, or a column `split` of a table",
        )
    how = f"{test_share:.0%} held out" if fold is None else f"fold {fold[0]} of {fold[1]} held out"
    return keep, f"split {split!r}: {len(keep):,} of {len(names):,} samples, by {by}, {how}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.strip().lower() if letter not in "_- ")


def _word(name: str) -> str:
    """The word of a name that may be a split: `train_images`, `TRAIN` and `train2017` give `train`."""
    words = [word for word in _WORD.findall(name.lower()) if word not in _OTHER_WORDS and not _YEAR.fullmatch(word)]
    return words[0] if len(words) == 1 else _plain(name)


def _kind(name: str) -> tuple[str, ...] | None:
    """The common split that a name means: the training, test or validation split, or None."""
    return next((kind for kind in (TRAIN, TEST, VALIDATION) if _word(name) in kind), None)
