"""The `mmcon` command: what is registered, what a view looks like, where the recipes are, and whether all is well.

    mmcon views [NAME] [--modality image]
    mmcon views score NAME [NAME …] --data PATH [--encoder runs/…/model]
    mmcon show image/simclr --input photo.jpg --output sheet.png
    mmcon recipe list
    mmcon recipe copy imagenet_supcon
    mmcon replay RUN --step N --sample ID
    mmcon plan --encoder resnet50 --batch-size 65536 --gpus 1024
    mmcon doctor [--data PATH] [--chaos]

The exit status is 0, 1 where `mmcon doctor` found something that will not work, or 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import mmcon
from mmcon.errors import InputError, MmconError, UnknownNameError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; a mistake in the input is told in a few lines."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except MmconError as error:
        print(f"mmcon: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mmcon views | head`
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmcon", description="Contrastive learning for any modality.")
    parser.add_argument("--version", action="version", version=f"mmcon {mmcon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    views = commands.add_parser("views", help="list view generators and samplers, describe one, or score some")
    views.add_argument("names", nargs="*", metavar="NAME", help="one to describe; or `score` and those to score")
    views.add_argument("--modality", help="only those for this modality")
    scoring = views.add_argument_group("score", "how far views spread a sample, against samples and classes")
    scoring.add_argument("--data", default="samples/fashion", help="a source of images (default: samples/fashion)")
    scoring.add_argument("--encoder", help="a trained model's folder, or an encoder by name (default: pixels)")
    scoring.add_argument("--samples", type=int, default=256)
    scoring.add_argument("--seed", type=int, default=0)
    scoring.add_argument("--output", type=Path, default=Path("spread.png"), help="the picture (default: spread.png)")
    scoring.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the views")
    views.set_defaults(run=_views)

    show = commands.add_parser("show", help="write a sheet of drawn views, with their parameters")
    show.add_argument("name", nargs="?", help="a view generator, such as image/simclr")
    show.add_argument("--input", type=Path, help="a photo, a sound or a clip")
    show.add_argument("--partner", type=Path, help="another, for views that mix two samples")
    show.add_argument("--views", type=int, default=8, help="how many to draw (default: 8)")
    show.add_argument("--seed", type=int, default=0)
    show.add_argument("--output", type=Path, default=Path("sheet.png"), help="default: sheet.png")
    show.add_argument("--params", type=Path, help="where the record of draws goes; default: beside the sheet, .json")
    show.add_argument("--replay", type=Path, help="a record: make its views again instead of drawing new ones")
    show.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the generator")
    show.set_defaults(run=_show)

    recipe = commands.add_parser("recipe", help="list the recipes, or copy one to change it").add_subparsers(
        required=True, metavar="ACTION"
    )
    recipe.add_parser("list", help="names, with what each is for").set_defaults(run=_list_recipes)
    copy = recipe.add_parser("copy", help="copy one into a folder")
    copy.add_argument("name")
    copy.add_argument("--to", type=Path, default=Path(), help="a folder (default: this one)")
    copy.set_defaults(run=_copy_recipe)

    replay = commands.add_parser("replay", help="show what the model saw at a step of a run, and the loss it had")
    replay.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    replay.add_argument("--step", type=int, required=True, help="as metrics.jsonl counts, from 1")
    replay.add_argument("--sample", required=True, help="its identity, as errors give it, or the name it is made from")
    replay.add_argument("--output", type=Path, help="a folder (default: replay-STEP-SAMPLE)")
    replay.add_argument("--repeat", type=int, default=500, help="steps that may be done again (default: 500)")
    replay.set_defaults(run=_replay)

    plan = commands.add_parser("plan", help="the memory, traffic and time of a step on so many GPUs, by arithmetic")
    plan.add_argument("--encoder", default="resnet50", help="of images, by name (default: resnet50)")
    plan.add_argument("--image-size", type=int, default=224)
    plan.add_argument("--batch-size", type=int, required=True, help="samples over all GPUs")
    plan.add_argument("--views", type=int, default=2)
    plan.add_argument("--gpus", type=int, default=1, dest="world_size")
    plan.add_argument("--gpus-per-node", type=int, default=8, dest="per_node")
    plan.add_argument("--device", default="H100", help="A100, H100 or H200 (default: H100)")
    plan.add_argument("--network-gb-per-second", type=float, default=50.0, help="between nodes, for each GPU")
    plan.add_argument("--engine", choices=("ddp", "fsdp2"), default="ddp")
    plan.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16")
    plan.add_argument("--optimizer", default="lars", help="sgd, lars or adamw (default: lars)")
    plan.add_argument("--embedding-dim", type=int, default=128)
    plan.add_argument("--chunk-rows", type=int, help="rows embedded at once, by gradient caching")
    plan.add_argument("--queue-rows", type=int, default=0)
    plan.add_argument("--momentum-encoder", action="store_true")
    plan.set_defaults(run=_plan)

    doctor = commands.add_parser("doctor", help="check the environment, and data if given")
    doctor.add_argument("--data", help="a folder or the name of a source")
    doctor.add_argument("--all", action="store_true", help="decode every file (default: up to 2,000, evenly chosen)")
    doctor.add_argument(
        "--chaos", action="store_true", help="also make faults on purpose, and see what becomes of a run"
    )
    doctor.set_defaults(run=_doctor)
    return parser


# --- views -----------------------------------------------------------------------------------------------------------


def _views(options: argparse.Namespace) -> None:
    from mmcon.registry import entries, load_plugins

    if options.names[:1] == ["score"]:
        return _score(options)
    if options.names:
        for name in options.names:
            print(mmcon.describe_view(name))
        return None
    known = sorted({entry.modality for entry in (*entries("view"), *entries("sampler"))})
    if options.modality and options.modality not in known:
        raise UnknownNameError(
            "mmcon views", expected="a modality", got=repr(options.modality), fix=nearest(options.modality, known)
        )
    listed = [*entries("view", options.modality), *entries("sampler", options.modality)]
    width = max(len(entry.name) for entry in listed)
    for entry in listed:
        print(f"{entry.name:{width}}  {entry.summary}")
    for point, error in load_plugins().items():
        print(f"mmcon: the plug-in {point} failed to load: {error!r}", file=sys.stderr)


def _score(options: argparse.Namespace) -> None:
    from mmcon.evaluation.view_spread import score_names, spread_picture, spread_table

    names = options.names[1:]
    if not names:
        raise InputError(
            "mmcon views score", expected="views to score", got="none", fix="mmcon views score image/simclr"
        )
    spreads = score_names(
        names, options.data, encoder=options.encoder, samples=options.samples, seed=options.seed,
        options=_options(options.option),
    )  # fmt: skip
    print(spread_table(spreads))
    spread_picture(spreads).savefig(options.output, dpi=150)
    print(f"picture: {options.output}")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options of a generator from `NAME=VALUE`."""
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}


def _show(options: argparse.Namespace) -> None:
    from mmcon.report.view_sheet import Record, show

    if options.replay:
        show(Record.read(options.replay), options.output, file=options.input)
        print(f"views: {options.output}")
        return
    if not options.name or options.input is None or options.views < 1:
        raise InputError(
            "mmcon show",
            expected="a view generator, --input FILE, and --views of 1 or more",
            got=f"{options.name}, --input {options.input}, --views {options.views}",
            fix="mmcon show image/simclr --input photo.jpg, or mmcon show --replay record.json",
        )
    partner = None if options.partner is None else str(options.partner)
    record = Record(options.name, _options(options.option), str(options.input), options.seed, options.views, partner)
    drawn, beside = show(record, options.output), options.params or options.output.with_suffix(".json")
    drawn.write(beside)
    print(f"{options.views} views: {options.output}")
    heard = sorted(options.output.parent.glob(f"{options.output.stem}-view*.wav"))
    if heard:
        print(f"sounds:  {heard[0]} to {heard[-1].name}")
    print(f"draws:   {beside} (mmcon show --replay {beside} makes these views again)")


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, Path]:
    """The recipes by name: those that came with the wheel, or those of a checkout."""
    package = Path(mmcon.__file__).parent
    folder = next((f for f in (package / "recipe_files", package.parent / "recipes") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))} if folder else {}


def _list_recipes(options: argparse.Namespace) -> None:
    import ast

    found = recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        print(f"{name:{width}}  {about}")


def _copy_recipe(options: argparse.Namespace) -> None:
    found = recipes()
    name = options.name.removesuffix(".py")
    if name not in found:
        raise UnknownNameError(
            "mmcon recipe copy", expected="the name of a recipe", got=repr(name), fix=nearest(name, list(found))
        )
    target = options.to / f"{name}.py"
    if target.exists():
        raise InputError("mmcon recipe copy", expected="no such file yet", got=str(target), fix="choose --to FOLDER")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[name], target)
    print(f"{target}: run it with `accelerate launch {target}`")
    presets = found[name].parent / "presets" / name
    if presets.is_dir():
        beside = target.parent / "presets" / name
        shutil.copytree(presets, beside, dirs_exist_ok=True)
        print(f"{beside}: settings for --preset ({', '.join(sorted(f.stem for f in presets.glob('*.yaml')))})")


# --- replay ----------------------------------------------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> int:
    from mmcon.training.replay import Replay, program_of

    words, directory = program_of(options.folder)
    if options.step < 1:
        raise InputError("mmcon replay", expected="--step of 1 or more", got=str(options.step))
    name = f"replay-{options.step}-{options.sample}".replace("/", "_")
    asked = Replay(
        folder=str(options.folder.resolve()),
        step=options.step,
        sample=options.sample,
        output=str((options.output or Path(name)).resolve()),
        repeat=options.repeat,
    )
    print("replay: " + shlex.join(words), flush=True)
    return subprocess.run(words, cwd=directory, env=asked.environment()).returncode


# --- plan ------------------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> None:
    from mmcon.operations.capacity_plan import Plan

    settings = {name: value for name, value in vars(options).items() if name != "run"}
    print(Plan.measure(settings.pop("encoder"), **settings).describe())


# --- doctor ----------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    from mmcon.operations import doctor

    findings = [*doctor.environment(), *(doctor.data(options.data, everything=options.all) if options.data else ())]
    for finding in findings:
        print(finding)
    if options.chaos:
        for finding in doctor.chaos():
            findings.append(finding)
            print(finding, flush=True)
    return int(any(finding.level == "bad" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
