"""Laws of registered components and of affinities; the tests of a plug-in call `check_view`, `check_sampler`, …."""

from mmcon.testing.affinity_laws import check_affinity
from mmcon.testing.conformance import Conformance, conform
from mmcon.testing.encoder_laws import check_encoder
from mmcon.testing.laws import LawBroken, check_sampler, check_view, unchanged_global_randomness
from mmcon.testing.source_laws import check_source

__all__ = [
    "Conformance",
    "LawBroken",
    "check_affinity",
    "check_encoder",
    "check_sampler",
    "check_source",
    "check_view",
    "conform",
    "unchanged_global_randomness",
]
