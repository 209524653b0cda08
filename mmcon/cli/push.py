"""`mmcon push`: upload a trained model, or an export of it, to the hub, with its card."""

from __future__ import annotations

import argparse
from typing import Any

from mmcon.cli.options import add_command, add_json_flag, messages, print_json


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "push",
        help="upload a trained model to the hub, with a card of its data, settings and figures",
        example="mmcon push runs/imagenet_supcon owner/photos --license apache-2.0 --private",
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, a saved model, or what `mmcon export` wrote")
    parser.add_argument("name", metavar="NAME", help="the name on the hub: owner/model; it is created if it is new")
    parser.add_argument("--license", help="the license of the weights, such as apache-2.0, for the card")
    parser.add_argument("--private", action="store_true", default=None, help="if the name is new, for its owner alone")
    parser.add_argument("--message", default="Upload a model of mmcon", help="of the commit")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Upload, and say how others load the model."""
    from mmcon.inference.sharing import push_to_hub

    settings = {"license": options.license, "private": options.private, "commit_message": options.message}
    with messages(options.json):
        commit = push_to_hub(options.model, options.name, **settings)
    revision = getattr(commit, "oid", "")
    if options.json:
        print_json({"name": options.name, "address": str(commit), "revision": revision})
        return
    print(f"{commit}\nmmcon.load({options.name!r}, revision={revision!r})")
