"""The samplers of the package: the entry point `samplers` imports this module, which registers them."""

from mmcon.samplers import (
    class_balanced,
    fixed_order,
    grouped,
    hard_classes,
    mixture,
    multi_label,
    no_duplicates,
    uniform,
)

__all__ = [
    "class_balanced",
    "fixed_order",
    "grouped",
    "hard_classes",
    "mixture",
    "multi_label",
    "no_duplicates",
    "uniform",
]
