"""`thingstuff data`: make data sets, drawn or out of others, in the layout that every command reads; and check them."""

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thingstuff.cli.check import add_check_arguments, run_check
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


@contextmanager
def new_folder(path: Path, argument: str) -> Iterator[Path]:
    """A folder to fill; where that fails, or is interrupted, nothing of it stays.

    Raises:
        ConfigError: there is something already: images of two data sets in one folder could not be told apart.
    """
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"{path} is not empty; give a new folder to {argument}")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; give a new folder to {argument}")
    was_there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: can't be made a folder for the data ({error.strerror or error})") from error
    try:
        yield path
    except BaseException:
        for entry in path.iterdir():  # it was empty, so all of it is ours
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not was_there:
            path.rmdir()
        raise


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "make-shapes": ("draw little landscapes with things in them, and their truth", add_make_shapes_arguments, run_make_shapes),
    "check": ("name everything that is wrong with a data set", add_check_arguments, run_check),
    "join": ("join several data sets to one", add_join_arguments, run_join),
    "merge-categories": (
        "make a panoptic data set of fewer, broader categories",
        add_merge_categories_arguments,
        run_merge_categories,
    ),
}
