"""What happens to a sample that cannot be read, such as a broken JPEG: it is left out of its batch, and named once.

A handle in `mmcon.media` raises DataError. The batch of the sample is then opened, or decoded, one by one, so that only
the unreadable samples are left out (`open_readable`, `try_each`). The loader logs each of them (`log_once`) and stops
if they are more than an accepted share (`check_share`). `mmcon.sources.quarantine` checks files before a run.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import DataError
from mmcon.sources.base import Source
from mmcon.views import Meta, meta_of

_log = logging.getLogger(__name__)

#: What the machine or a network disk may lack for a moment.
PASSING = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT, errno.ESTALE}
#: The errors of an unreadable sample. Others are faults of the program, and end it.
READ_ERRORS = (DataError, OSError)
#: Unreadable samples that are accepted in small data too, where the accepted share would be less than that.
FEW_FAILURES = 5
#: So many unreadable samples are logged one by one: a log of a tenth of a large data set would hide everything else.
NAMED_FAILURES = 100
# The unreadable samples that were logged, by source.
_logged: WeakKeyDictionary[Any, set[int]] = WeakKeyDictionary()


class Unreadable(NamedTuple):
    """Why a sample was left out.

    Attributes:
        file: the path of its file, or its name in the source.
        reason: the error.
        unopened: whether it could not be opened, whatever its views would be.
    """

    file: str
    reason: str
    unopened: bool = False


def try_each(attempt: Callable[[int], Any], rows: Iterable[int]) -> tuple[dict[int, Any], dict[int, Exception]]:
    """What an attempt returns, by row, and the errors of the rows that are unreadable."""
    found: dict[int, Any] = {}
    errors: dict[int, Exception] = {}
    for row in rows:
        try:
            found[row] = attempt(row)
        except READ_ERRORS as error:
            errors[row] = error
    return found, errors


def open_readable(
    source: Source, indices: Int[Tensor, " n"], modality: str, left_out: Mapping[int, Unreadable]
) -> tuple[Any, Meta, Int[Tensor, " m"] | None, dict[int, Unreadable]]:
    """Open samples at once and, after a failure, one by one.

    Args:
        source: the samples.
        indices: which of them, with repetitions.
        modality: of their handles.
        left_out: samples that are not opened, by id.

    Returns:
        The handles, what their headers say, the positions of the opened samples (None: all), and the failures by id.
    """
    kept, failures = None, {}
    samples = source.ids[indices].tolist() if left_out else []
    if not left_out.keys().isdisjoint(samples):
        failures = {sample: left_out[sample] for sample in samples if sample in left_out}
        kept = torch.tensor([i for i, sample in enumerate(samples) if sample not in failures], dtype=torch.int64)
        if not len(kept):
            return [], {}, kept, failures
    try:
        handles = source.open(indices if kept is None else indices[kept])
        return handles, meta_of(handles, modality), kept, failures
    except READ_ERRORS:
        pass  # the samples that fail are found and reported below, one by one

    def open_one(row: int) -> Any:
        handle = source.open([row])
        meta_of(handle, modality)
        return handle

    opened, errors = try_each(open_one, dict.fromkeys(indices.tolist() if kept is None else indices[kept].tolist()))
    for row, error in errors.items():
        reason = Unreadable(source.name_of(row), str(error), unopened=not _passes(error))
        failures[int(source.ids[row])] = reason
    kept = torch.tensor([i for i, row in enumerate(indices.tolist()) if row in opened], dtype=torch.int64)
    if not len(kept):
        return [], {}, kept, failures
    rows = indices[kept].tolist()
    stacked = isinstance(opened[rows[0]], Tensor)
    handles = torch.cat([opened[row] for row in rows]) if stacked else [opened[row][0] for row in rows]
    return handles, meta_of(handles, modality), kept, failures


def _passes(error: Exception) -> bool:
    """Whether a file may be readable later: the machine or its network lacked something, not the file."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in PASSING


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
