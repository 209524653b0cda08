"""`mmcon embed`: embed data by a trained model into a table, which `mmcon search` and other programs read."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command, add_json_flag, add_option_flag, at_least, messages, parse_options, print_json
from mmcon.cli.recipe import gpus, launch

#: Names of unreadable files that are printed at the end.
_NAMED = 5


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "embed",
        help="embed data by a trained model into a file",
        example="mmcon embed runs/imagenet_supcon photos --output photos.parquet",
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, a saved model, or a name on the hub")
    parser.add_argument(
        "data", metavar="DATA", help="a folder, a file, a pattern in quotes, a table, or a name of a source or a hub"
    )
    parser.add_argument("--output", type=Path, required=True, help="a .parquet, .npy or .safetensors file")
    add_embedding_flags(parser)
    parser.add_argument("--split", default="all", help="of a registered source or a hub data set (default: all)")
    parser.add_argument(
        "--dim",
        type=at_least(1),
        help="keep the first dimensions, of a model trained with --truncate-dims (default: all)",
    )
    parser.add_argument("--no-normalize", action="store_true", help="keep the lengths of the rows (default: one)")
    parser.add_argument(
        "--processes",
        type=at_least(1),
        help="processes that share the work (default: one for each GPU; 1 with --device)",
    )
    add_option_flag(parser, "the source, such as label_column=NAME")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def add_embedding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that encode files."""
    parser.add_argument("--modality", help="for a model of several (default: by the suffixes of the files)")
    parser.add_argument(
        "--space",
        help="a shared space, or `features` for the encoder's output (default: features; for a model whose modalities "
        "share one space, that space)",
    )
    add_speed_flags(parser)


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of batches, workers and the device."""
    parser.add_argument(
        "--batch-size", type=at_least(1), default=64, help="files that are encoded at once (default: 64)"
    )
    parser.add_argument(
        "--workers", type=at_least(0), default=0, help="processes that read and decode files (default: 0)"
    )
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU if there is one, else cpu)")


def device_of(name: str | None) -> str:
    """The device by name, or that of this process: a GPU of its own if there are any."""
    if name is not None:
        return name
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus()}" if gpus() else "cpu"


def run(options: argparse.Namespace) -> None:
    """Embed the data; the same command after an interruption goes on where it was."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    processes = options.processes or (gpus() if options.device is None else 1)
    if world_size == 1 and processes > 1:
        launch(["-m", "mmcon.cli", *options.words], processes)
    import mmcon
    from mmcon.files import create_folder
    from mmcon.inference.any_data import open_data, usual_space
    from mmcon.inference.embedding_files import check_suffix
    from mmcon.inference.embedding_parts import embed_source

    create_folder(check_suffix(options.output).parent)
    with messages(options.json):
        model = mmcon.load(options.model, device=device_of(options.device))
        of_source = {"modality": options.modality, "split": options.split, "options": parse_options(options.option)}
        source = open_data(model, options.data, **of_source)
        if rank == 0:
            print(source.describe())
        try:
            written = embed_source(
                model, source, options.output, space=usual_space(model, source.modality, options.space),
                truncate_dim=options.dim, normalize=not options.no_normalize, batch_size=options.batch_size,
                num_workers=options.workers, data=options.data, rank=rank, world_size=world_size,
            )  # fmt: skip
        except KeyboardInterrupt:
            print(f"finished parts are in {options.output}.parts; the same command goes on with them", file=sys.stderr)
            raise
    if written is None:
        return
    if options.json:
        print_json(written.to_json())
        return
    print(f"{written.output}: {written.rows:,} embeddings of width {written.width}")
    if written.left_out:
        shown = "".join(f"\n  {name}" for name in written.left_out[:_NAMED])
        more = f"\n  and {len(written.left_out) - _NAMED:,} more" if len(written.left_out) > _NAMED else ""
        print(f"{len(written.left_out):,} left out, which cannot be read:{shown}{more}")
