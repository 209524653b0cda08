"""The entry point of a recipe: parse the flags, run once or once per seed, and print package errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import TypeVar, cast

from mmcon.errors import MmconError
from mmcon.training.config import RunConfig, parse
from mmcon.training.seeds import run_over_seeds

C = TypeVar("C", bound=RunConfig)

#: The exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT.
INTERRUPTED = 130


def run_recipe(main: Callable[[C], None], config_type: type[C]) -> None:
    """Run the `main` of a recipe on the configuration of the command line.

    The docstring of the recipe's module is the text of `--help`, and its file determines the presets.

    >>> if __name__ == "__main__":  # doctest: +SKIP
    ...     run_recipe(main, Config)

    Args:
        main: trains, evaluates, and writes results.json.
        config_type: the recipe's configuration.

    Raises:
        SystemExit: an error of the package, as one message on stderr with exit status 1; Ctrl-C outside of the loop of
            steps, with status 130. (Inside of it, the run writes a checkpoint first.)
    """
    function = cast(FunctionType, main)
    try:
        description = function.__globals__.get("__doc__") or ""
        run_over_seeds(main, parse(config_type, description=description, recipe=function.__code__.co_filename))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
