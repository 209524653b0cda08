"""`mmcon evaluate`: all evaluations of a model on data of one's own; each is written as soon as it is done."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mmcon.cli.options import (
    add_command,
    add_json_flag,
    add_option_flag,
    messages,
    parse_options,
    print_json,
    resumable,
)

DEFAULT = ("probe", "knn", "few-labels", "retrieval")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "evaluate",
        help="evaluate a trained model, or one of another library, on data",
        example="mmcon evaluate runs/imagenet_supcon --on all",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run folder, a saved model, timm/NAME, or another name that mmcon.load takes"
    )
    parser.add_argument("--data", help="a source by name or path (default: the data of the run)")
    parser.add_argument(
        "--on", nargs="+", default=[*DEFAULT], metavar="EVALUATION",
        help=f"`all`, or names; `list` prints them (default: {' '.join(DEFAULT)})",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="default: evaluation/ in the run, else evaluation-MODEL/")
    parser.add_argument("--modality", help="for a model of several (default: the only one)")
    parser.add_argument("--near", nargs="*", default=[], metavar="DATA", help="other classes that resemble the data")
    parser.add_argument("--far", nargs="*", default=[], metavar="DATA", help="data that do not resemble them")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and draws (default: 0)")
    parser.add_argument("--batch-size", type=int, default=256, help="samples that are encoded at once (default: 256)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read and decode files (default: 0)")
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU if there is one, else cpu)")
    parser.add_argument(
        "--processes", type=int, help="that share the features (default: one for each GPU; 1 with --device)"
    )
    add_option_flag(parser, "an evaluation or of the source, such as label_column=NAME")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate; the exit status is 2 if an evaluation failed. The same command goes on after an interruption."""
    import os

    from mmcon.cli.embed import device_of
    from mmcon.cli.recipe import gpus, launch
    from mmcon.evaluation.evaluation_list import EVALUATIONS

    if options.on == ["list"]:
        width = max(len(evaluation.name) for evaluation in EVALUATIONS)
        print("\n".join(f"{evaluation.name:{width}}  {evaluation.summary}" for evaluation in EVALUATIONS))
        return 0
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    processes = options.processes or (gpus() if options.device is None else 1)
    if world_size == 1 and processes > 1:
        launch(["-m", "mmcon.cli", *options.words], processes)
    from mmcon.inference.model_evaluation import evaluate_model

    finished = {}
    with messages(options.json), resumable():
        for done in evaluate_model(
            options.model, options.data, on=options.on, output=options.output, modality=options.modality,
            near=options.near, far=options.far, options=parse_options(options.option), seed=options.seed,
            batch_size=options.batch_size, workers=options.workers, device=device_of(options.device),
            rank=rank, world_size=world_size,
        ):  # fmt: skip
            finished[done.name] = done
            print(f"\n{done.table}" if not done.error else f"\n{done.name} failed: {done.error}", flush=True)
            if done.error:
                print(f"mmcon: {done.name}: {done.error}", file=sys.stderr)
        if finished and rank == 0:
            print(f"\ntables, numbers and pictures: {next(iter(finished.values())).folder}")
    if options.json:
        print_json({name: done.values if not done.error else {"error": done.error} for name, done in finished.items()})
    return 2 if any(done.error for done in finished.values()) else 0
