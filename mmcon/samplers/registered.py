"""Imported by the entry point `samplers`; registers the built-in samplers."""

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
