"""`mmcon export`: write the encoder of a trained model for use without mmcon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command, add_json_flag, messages, print_json


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "export",
        help="write the encoder of a trained model for other libraries",
        example="mmcon export runs/imagenet_supcon --format onnx --output photos-onnx",
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, a saved model, or a name on the hub")
    parser.add_argument(
        "--format",
        required=True,
        help="torchvision, timm, transformers (weights under their key names), sentence-transformers, onnx, or "
        "torch-export; one that does not fit the encoder is refused with those that do",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="a new folder, which gets a card too; or a file .onnx or .pt2 anywhere: the program, preprocessing within",
    )
    parser.add_argument("--modality", help="of a model of several")
    parser.add_argument(
        "--space", help="of a program: the shared space of its embeddings (default: the features of the encoder)"
    )
    parser.add_argument("--no-normalize", action="store_true", help="of a program: rows of any length (default: one)")
    parser.add_argument(
        "--examples", nargs="+", metavar="FILE", help="two inputs or more to check the export on (default: noise)"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export, load back, and say how much the result differs."""
    import mmcon
    from mmcon.inference.export import export_model

    with messages(options.json):
        made = export_model(
            mmcon.load(options.model), options.format, options.output, modality=options.modality,
            space=None if options.space == "features" else options.space, normalize=not options.no_normalize,
            examples=options.examples,
        )  # fmt: skip
    if options.json:
        files = [str(file) for file in made.files]
        print_json({"format": made.format, "folder": str(made.folder), "files": files, "difference": made.difference})
        return
    print(f"{made.folder}: {', '.join(str(file.relative_to(made.folder)) for file in made.files)}")
    if made.difference is None:
        print("not loaded back: sentence-transformers is not installed")
    else:
        print(f"loaded back, it differs from the model by {made.difference:.1e} of the largest value")
