"""Recipes run by their real command, in a process of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "imagenet_supcon.py"


def launch(*arguments, recipe=RECIPE, world_size=1, fails=False):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(world_size)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if world_size > 1:
        command += ["--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(recipe), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def page_of(folder):
    """What the page of a run shows: its sections, and the kinds of previews of views and of held-out samples."""
    sections = re.findall(r'<section id="([a-z-]+)"', (folder / "report.html").read_text())
    views, samples = (json.loads((folder / "report" / f"{name}.json").read_text()) for name in ("views", "samples"))
    shown = [view for sample in views["samples"] for view in sample["views"]]
    kinds = {kind for preview in (*shown, *(sample["preview"] for sample in samples["samples"])) for kind in preview}
    return set(sections), kinds & {"picture", "text", "sound", "clip"}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
