"""The samplers that come with the package: the entry point `samplers` imports this module, which registers them."""

from mmcon.samplers import base, class_balanced, hard_classes, ordered

__all__ = ["base", "class_balanced", "hard_classes", "ordered"]
