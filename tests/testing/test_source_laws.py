"""Sources obey the laws, and for each law one that violates it is found."""

import pytest
import torch

import mmcon
from mmcon.testing import LawBroken, check_source

VALUES = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ids_of(split):
    return torch.arange(6) + (100 if split == "test" else 0)


def sound(split, **changes):
    options = {"ids": ids_of(split), "labels": torch.arange(6) % 2, "classes": ["a", "b"], **changes}
    return mmcon.TensorSource(VALUES, **options)


class Opens(mmcon.Source):
    """Samples that a function of a row returns."""

    def __init__(self, split, sample, **options):
        self.sample = sample
        super().__init__(ids=ids_of(split), modality="image", **options)

    def open(self, rows):
        return [self.sample(int(row), len(torch.as_tensor(rows))) for row in rows]


class Handle:
    def __init__(self):
        self.facts = {"height": 5}

    def decode(self):
        return VALUES[0]


def random_ids(split):
    return sound(split, ids=torch.randint(0, 2**40, (6,)))


def one_class_first(split):
    return sound(split, classes=["a", "b"] if split == "train" else ["b", "a"])


def depends_on_others(row, count):
    return VALUES[row] + count


def draws(row, count):
    return torch.rand(3, 4, 4)


def handle(row, count):
    return Handle()


BROKEN = {
    "samples are stable": random_ids,
    "splits are disjoint": lambda split: sound(split, ids=torch.arange(6)),
    "splits number the classes alike": one_class_first,
    "open is a function": lambda split: Opens(split, depends_on_others),
    "no global randomness": lambda split: Opens(split, draws),
    "facts are true": lambda split: Opens(split, handle, facts={"height": torch.full((6,), 4)}),
    "pickles for workers": lambda split: Opens(split, lambda row, count: VALUES[row]),
}


def test_a_source_that_obeys_the_laws_passes():
    check_source(sound)
    check_source(lambda split: Opens(split, handle, facts={"height": torch.full((6,), 5)}))


def test_splits_may_have_other_classes():
    check_source(lambda split: sound(split, classes=[f"{split} a", f"{split} b"]))


@pytest.mark.parametrize("law", BROKEN)
def test_a_violated_law_is_named(law):
    with pytest.raises(LawBroken, match=law):
        check_source(BROKEN[law])


@pytest.mark.parametrize("name", ["samples/emoji-texts", "samples/speech"])
def test_bundled_sources_obey_the_laws(name):
    check_source(lambda split: mmcon.create_source(name, split=split))
