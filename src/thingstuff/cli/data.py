"""`thingstuff data`: make data sets, drawn or out of others, in the layout that every command reads."""

import argparse
from collections.abc import Callable
from pathlib import Path

from thingstuff.cli.join import add_join_arguments, run_join
from thingstuff.cli.make_shapes import add_make_shapes_arguments, run_make_shapes
from thingstuff.cli.merge_categories import add_merge_categories_arguments, run_merge_categories
from thingstuff.errors import ConfigError


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (words, add_arguments, run) in VERBS.items():
        verb = verbs.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add_arguments(verb)
        verb.set_defaults(run_verb=run)


def run_data(arguments: argparse.Namespace) -> int:
    return arguments.run_verb(arguments)


def new_folder(path: Path) -> Path:
    """Raises ConfigError where there is something already: images of two data sets in one folder could not be told apart."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not empty; give a new folder to --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: can't be made a folder for the data ({error.strerror or error})") from error
    return path


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "make-shapes": ("draw little landscapes with things in them, and their truth", add_make_shapes_arguments, run_make_shapes),
    "join": ("join several data sets to one", add_join_arguments, run_join),
    "merge-categories": (
        "make a panoptic data set of fewer, broader categories",
        add_merge_categories_arguments,
        run_merge_categories,
    ),
}
