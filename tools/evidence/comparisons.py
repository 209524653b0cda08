"""Tables of figures, tests of their differences, and what these say of the claim of the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from evidence.runs import NumberOf, Runs, common_seeds, is_correct
from mmcon.evaluation.comparison import LEVEL
from mmcon.evaluation.statistics import bootstrap, holm, paired_permutation, t_interval

DASH = "–"
#: Results of comparisons.
BETTER, SAME = "the first is better", "not different"


class Finding(NamedTuple):
    """What a comparison says of the claim of the method."""

    text: str
    claim: Literal["shows", "refuted", "open"]


#: The parts of a section, and what was found.
Section = tuple[list[str], list[Finding]]


def finding(name: str, result: str) -> Finding:
    claim = "open" if result.startswith(SAME) else "shows" if result.startswith((BETTER, "better")) else "refuted"
    return Finding(f"{name}: {result}", claim)


def cell(runs: Runs, figure: NumberOf, *, share: bool = True) -> str:
    """The mean over seeds with Student's interval, the figure of a single seed, or a dash."""
    values = [figure(run) for run in runs.values()]
    if not values:
        return DASH
    return f"{values[0]:.3f}" if len(values) == 1 else str(t_interval(values, shares=share))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


class AccuracyTest(NamedTuple):
    """A paired permutation test over the test images, on the mean over the common seeds.

    Attributes:
        differences: of the accuracy, by image.
        p: of the test alone.
        corrected: by Holm, for the tests beside it.
        seeds: how many both have.
    """

    differences: torch.Tensor
    p: float
    corrected: float
    seeds: int

    @property
    def result(self) -> str:
        """Which is better, or that they are not different."""
        return verdict(float(self.differences.mean()), self.corrected)


def accuracy_tests(pairs: Mapping[str, tuple[Runs, Runs]]) -> dict[str, AccuracyTest]:
    """The tests of pairs that have a common seed, corrected for their number."""
    found = {}
    for name, both in pairs.items():
        if seeds := common_seeds(*both):
            a, b = (torch.stack([is_correct(runs[seed]) for seed in seeds]).mean(0) for runs in both)
            found[name] = (a - b, paired_permutation(a, b).p_value, len(seeds))
    corrected = holm([p for _, p, _ in found.values()])
    return {n: AccuracyTest(d, p, c, s) for (n, (d, p, s)), c in zip(found.items(), corrected, strict=True)}


def accuracy_differences(pairs: Mapping[str, tuple[Runs, Runs]]) -> tuple[str, dict[str, str]]:
    """A table of the tests of pairs, and the result of each."""
    tests, rows = accuracy_tests(pairs), []
    for name in pairs:
        test = tests.get(name)
        cells = [DASH] * 5
        if test:
            difference = bootstrap(test.differences, draws=1000)
            cells = [str(difference), f"{test.p:.4f}", f"{test.corrected:.4f}", str(test.seeds), test.result]
        rows.append([name, *cells])
    head = ["comparison", "difference of accuracy [95 %]", "p", "corrected", "seeds", "result"]
    return table(head, rows), {name: test.result for name, test in tests.items()}


def verdict(difference: float, p: float) -> str:
    return SAME if p >= LEVEL else BETTER if difference > 0 else "the second is better"


def seed_findings(
    name: str, first: Mapping[int, Any], second: Mapping[int, Any], figure: Callable[[Any], float], *, higher: bool
) -> list[Finding]:
    """What the interval of a difference over seeds says; nothing of fewer than three, which may differ by chance alone.

    Args:
        name: of the comparison.
        first: what is compared, by seed, such as runs.
        second: the same; the common seeds count.
        figure: the number that is compared.
        higher: whether higher is better.
    """
    differences = [figure(first[seed]) - figure(second[seed]) for seed in common_seeds(first, second)]
    return [finding(name, seed_result(differences, higher=higher))] if len(differences) > 2 else []


def seed_result(differences: Sequence[float], *, higher: bool) -> str:
    interval = t_interval(differences)
    if interval.low <= 0 <= interval.high:
        return f"{SAME}: {interval}"
    return f"{'better' if (interval.value > 0) == higher else 'worse'}, by {interval}"
