"""Encoders obey the laws, and for each law one that violates it is found."""

import pytest
import torch
from torch import nn

from mmcon.testing import LawBroken, check_encoder, conform

VIEWS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Sound(nn.Module):
    """Obeys all laws: a convolution, a batch norm, a mean."""

    def __init__(self):
        super().__init__()
        self.feature_dim = 6
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Dropout(0.1))

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class WrongWidth(Sound):
    def __init__(self):
        super().__init__()
        self.feature_dim = 7


class NotFinite(Sound):
    def forward(self, x):
        return super().forward(x) / 0


class RandomInEvaluation(Sound):
    def forward(self, x):
        return super().forward(x + torch.rand(()))


class CountsCalls(Sound):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class ComparesRows(Sound):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class UnusedHead(Sound):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)


class HiddenWeights(Sound):
    def __init__(self):
        super().__init__()
        self.hidden = torch.rand(6)

    def forward(self, x):
        return super().forward(x) * self.hidden


class Dense(Sound):
    def feature_maps(self, x):
        fine = self.layers(x)
        return [fine, fine[:, :, ::2, ::2]]


class CoarseFirst(Dense):
    def feature_maps(self, x):
        return super().feature_maps(x)[::-1]


class MapsOfTheBatch(Dense):
    def feature_maps(self, x):
        return super().feature_maps(x - x.mean(0))


BROKEN = {
    "features are n feature_dim": WrongWidth,
    "features are finite": NotFinite,
    "no global randomness": RandomInEvaluation,
    "evaluation changes nothing": CountsCalls,
    "rows do not depend on the batch": ComparesRows,
    "parameters have gradients": UnusedHead,
    "weights are the state": HiddenWeights,
    "feature maps are n d h w, the finest first": CoarseFirst,
    "maps of a row do not depend on the batch": MapsOfTheBatch,
}


def test_an_encoder_that_obeys_the_laws_passes():
    check_encoder(Sound, VIEWS)
    check_encoder(Dense, VIEWS)


@pytest.mark.parametrize("law", BROKEN)
def test_a_violated_law_is_named(law):
    with pytest.raises(LawBroken, match=f"{BROKEN[law].__name__}.*{law}"):
        check_encoder(BROKEN[law], VIEWS)


def test_two_rows_are_too_few():
    with pytest.raises(ValueError, match="at least 3 rows"):
        check_encoder(Sound, VIEWS[:2])


@pytest.mark.parametrize("name", ["mmcon/resnet-tiny", "mmcon/log-mel-conv", "text/embedding-bag", "mmcon/frames"])
def test_built_in_encoders_obey_the_laws(name):
    (result,) = conform(name)
    assert not result.violation, result
