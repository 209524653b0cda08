"""The packages that a machine without a network lacks for mmcon, one `name==version` a line, to bring as wheels.

    pip list --format=freeze > installed.txt                               # on that machine
    python tools/missing_wheels.py installed.txt --and kornia pytest beartype --without av datasets > missing.txt
    pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels -r missing.txt

The closure of the requirements is that of this environment, and so are the versions. A package that is installed there,
in any version, is left out, and so is what only left-out packages require.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_names(listing: str) -> set[str]:
    """The canonical names of a `pip list` or of names separated by commas or spaces."""
    return {canonicalize_name(re.split(r"[=@<> ]", word)[0]) for word in re.split(r"[,\n]\s*", listing) if word.strip()}


def requirements(name: str) -> Iterator[str]:
    """The canonical names of what a package requires without extras, on this platform."""
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def missing(roots: list[str], there: set[str], without: set[str]) -> list[str]:
    """What the roots need and the machine lacks."""
    found: dict[str, str] = {}
    waiting = [canonicalize_name(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name in found or name in there or name in without:
            continue
        found[name] = metadata.version(name)
        waiting += requirements(name)
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name != "mmcon"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("installed", type=Path, help="the packages of the machine")
    parser.add_argument("--and", nargs="*", default=[], dest="more", help="packages beside mmcon's requirements")
    parser.add_argument("--without", nargs="*", default=[], help="packages to leave out")
    options = parser.parse_args()
    there = installed_names(options.installed.read_text())
    without = {canonicalize_name(name) for name in options.without}
    print(*missing(["mmcon", *options.more], there, without), sep="\n")


if __name__ == "__main__":
    main()
