"""Affinities obey the laws, and for each law one that violates it is found."""

import pytest
import torch
from loss_cases import TABLE, columns

from mmcon.affinity import (
    Affinity,
    ClassFactor,
    Computed,
    Dense,
    Hierarchy,
    LabelKernel,
    MixedLabel,
    MultiLabel,
    SameLabel,
    SameSample,
    SideFeatures,
    TimeKernel,
)
from mmcon.batch import Index
from mmcon.testing import LawBroken, check_affinity

C = columns(12)
OTHER = columns(10, seed=1)
BUILT_IN = {
    "label": SameLabel(C["label"]),
    "sample": SameSample(C["sample"], OTHER["sample"]),
    "mixed": MixedLabel(C["label"], C["partner_label"], C["share"]),
    "multi-label": MultiLabel(C["labels"]),
    "jaccard": MultiLabel(C["labels"], measure="jaccard"),
    "tree": Hierarchy(C["label"], table=TABLE),
    "kernel": LabelKernel(C["time"], width=0.7),
    "kernel of others": LabelKernel(C["time"], OTHER["time"], width=0.7, kernel="linear"),
    "learnable kernel": LabelKernel(C["time"], width=torch.tensor(0.7, requires_grad=True)),
    "time in groups": TimeKernel(C["time"], group=C["group"], width_seconds=0.7),
    "side features": SideFeatures(C["side"], OTHER["side"]),
    "dense": Dense(torch.rand(5, 7, generator=torch.Generator().manual_seed(0))),
    "sum, product, complement": ~SameLabel(C["label"]) * LabelKernel(C["time"], width=0.7)
    + 0.5 * SameSample(C["sample"]),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_affinities_obey_the_laws(name):
    check_affinity(BUILT_IN[name])


class Custom(Affinity):
    """The class of each row; a subclass changes one method."""

    labels = torch.arange(6) // 2

    @property
    def shape(self):
        return (6, 6)

    @property
    def symmetric(self):
        return True

    def bind(self, rows, columns=None):
        return self

    def tile(self, rows, columns):
        return (self.labels[rows, None] == self.labels[columns]).float()


class Negative(Custom):
    def tile(self, rows, columns):
        return super().tile(rows, columns) - 0.5


class Whole(Custom):
    def tile(self, rows, columns):
        return super().tile(rows, columns).long()


class Random(Custom):
    def tile(self, rows, columns):
        return super().tile(rows, columns) * torch.rand(())


class ByTile(Custom):
    def tile(self, rows, columns):
        weights = super().tile(rows, columns)
        return weights / weights.numel()


class Lopsided(Custom):
    def tile(self, rows, columns):
        return super().tile(rows, columns) * torch.arange(1.0, 7)[rows, None]


class NeverZero(Custom):
    never_zero = True


class CountsItself(Custom):
    def row_sums(self, self_index=None):
        return super().row_sums(None)


class OtherFactors(Custom):
    def factors(self):
        return (ClassFactor(self.labels, self.labels, 3, scale=2.0),)


BROKEN = {
    "a weight for each pair": Whole,
    "weights are finite and >= 0": Negative,
    "no global randomness": Random,
    "tiles make the matrix": ByTile,
    "symmetric is as declared": Lopsided,
    "never_zero is as declared": NeverZero,
    "row sums are those of the matrix": CountsItself,
}


def test_an_affinity_of_ones_own_passes():
    check_affinity(Custom())
    check_affinity(Computed(lambda a, b: torch.ones(len(a["x"]), len(b["x"]))).bind(Index({"x": torch.arange(4)})))


@pytest.mark.parametrize("law", BROKEN)
def test_a_violated_law_is_named(law):
    with pytest.raises(LawBroken, match=law):
        check_affinity(BROKEN[law]())


def test_factors_that_differ_from_the_weights_are_found():
    class Factored(OtherFactors):
        def row_sums(self, self_index=None):
            return Custom().row_sums(self_index)

    with pytest.raises(LawBroken, match="factors make the matrix"):
        check_affinity(Factored())
