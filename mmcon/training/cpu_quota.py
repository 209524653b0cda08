"""The processor time that control groups allow this process: containers often see all cores and may use a few.

Version 2 has `cpu.max` ("150000 100000": 1.5 cores; "max 100000": no limit), version 1 has `cpu.cfs_quota_us` (-1: no
limit) and `cpu.cfs_period_us`. A limit holds for a group and all groups below it, so that the smallest one counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_log = logging.getLogger(__name__)


def quota_cores(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The limit in cores, such as 1.5; None without one, and on systems without control groups.

    Args:
        groups: the file that lists the groups of the process.
        mounted: the folder at which control groups are mounted.
    """
    found = []
    for folder in _folders(groups, mounted):
        try:
            limit = _limit(folder)
        except (OSError, ValueError, ZeroDivisionError) as error:
            _log.warning("the processor quota in %s is not readable (%s): it is taken as unlimited", folder, error)
            continue
        if limit is not None:
            found.append(limit)
    return min(found, default=None)


def _folders(groups: Path, mounted: Path) -> Iterator[Path]:
    """The folders of the groups of this process that limit processor time, and of all groups above."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be that of the host, while only its own groups are mounted.
        group = PurePosixPath(path.lstrip("/"))
        for hierarchy in [controllers, "cpu"] if controllers else ["", "unified"]:
            yield from (mounted / hierarchy / above for above in (group, *group.parents))


def _limit(folder: Path) -> float | None:
    """The limit of one group in cores."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if all((folder / name).is_file() for name in names):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
    return None
