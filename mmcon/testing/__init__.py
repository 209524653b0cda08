"""Laws of registered components; the tests of a plug-in call `check_view` and `check_sampler`."""

from mmcon.testing.laws import LawBroken, check_sampler, check_view, unchanged_global_randomness

__all__ = ["LawBroken", "check_sampler", "check_view", "unchanged_global_randomness"]
