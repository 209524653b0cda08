"""`mmcon plan`: estimate the memory, network traffic and time of a training step on many GPUs."""

from __future__ import annotations

import argparse
from typing import Any

from mmcon.cli.options import add_command


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "plan",
        help="estimate the memory, traffic and time of a step on many GPUs",
        example="mmcon plan --encoder resnet50 --batch-size 65536 --gpus 1024",
    )
    parser.add_argument("--encoder", default="resnet50", help="an image encoder by name (default: resnet50)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, required=True, help="samples over all GPUs")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=1, dest="world_size")
    parser.add_argument("--gpus-per-node", type=int, default=8, dest="per_node")
    parser.add_argument("--device", default="H100", help="A100, H100 or H200 (default: H100)")
    parser.add_argument("--network-gb-per-second", type=float, default=50.0, help="between nodes, for each GPU")
    parser.add_argument("--engine", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument("--optimizer", default="lars", help="sgd, lars or adamw (default: lars)")
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--chunk-rows", type=int, help="rows embedded at once, by gradient caching")
    parser.add_argument("--queue-rows", type=int, default=0)
    parser.add_argument("--momentum-encoder", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure the encoder on a few rows and print the estimates."""
    from mmcon.operations.capacity_plan import Plan

    settings = {name: value for name, value in vars(options).items() if name not in ("run", "words")}
    print(Plan.measure(settings.pop("encoder"), **settings).describe())
