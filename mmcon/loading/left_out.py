"""Samples that a loader leaves out since they cannot be read: named at once, and accepted up to a share of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mmcon.errors import DataError
from mmcon.loading.opening import Unreadable

_log = logging.getLogger(__name__)

#: Unreadable samples that are accepted in small data too, where the accepted share would be less than that.
FEW_FAILURES = 5
#: So many unreadable samples are logged one by one: a log of a tenth of a large data set would hide everything else.
NAMED_FAILURES = 100
# The unreadable samples that were logged, by source.
_logged: WeakKeyDictionary[Any, set[int]] = WeakKeyDictionary()


def log_once(source: Any, sample: int, file: str, reason: str) -> None:
    """Log an unreadable sample, once for all passes over its source: an evaluation makes several."""
    logged = _logged.setdefault(source, set())
    if sample in logged:
        return
    logged.add(sample)
    number, cause = len(logged), reason.partition("\n")[0]
    if number <= NAMED_FAILURES or number % NAMED_FAILURES == 0:
        _log.warning("unreadable sample %d, left out: %s: %s", number, file, cause)
    if number == NAMED_FAILURES:
        _log.warning("of further ones, every %dth is logged; the results list all", NAMED_FAILURES)


def pass_over(step: int, modality: str, failures: Mapping[int, Unreadable], *, is_error: bool) -> None:
    """Log that no sample of a step can be read, or raise DataError."""
    file, reason, _ = next(iter(failures.values()))
    if not is_error:
        _log.warning("step %d is passed over: none of its samples can be read, such as %s", step + 1, file)
        return
    raise DataError(
        f"views of {modality!r}",
        expected="at least one readable sample in the batch",
        got=f"{len(failures)} failures, the first: {file}: {reason}",
        fix="check the data with `mmcon doctor --data PATH`",
    )


def check_share(source: Any, failures: Mapping[int, str], files: Mapping[int, str], total: int) -> None:
    """Raise DataError if a source has more unreadable samples than its accepted share.

    Args:
        source: has `name` and, unless it is a stream, `max_failures`.
        failures: the reasons by sample.
        files: the paths, or names, by sample.
        total: the number of samples.
    """
    share = getattr(source, "max_failures", 0.1)
    if share >= 1 or len(failures) <= (max(FEW_FAILURES, share * total) if share else 0):
        return
    sample, reason = next(iter(failures.items()))
    raise DataError(
        source.name,
        expected=f"at most {share:.1%} unreadable samples",
        got=f"{len(failures):,} of {total:,}, such as {files.get(sample, sample)}: {reason}",
        fix="repair or remove them, or raise max_failures (--max-unreadable)",
    )
