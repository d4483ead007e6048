"""The command `thingstuff`: parse, call one function, print.

    thingstuff predict | evaluate | train | data | models

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 some inputs failed (each named), 2 wrong use,
130 interrupted, 143 terminated. Commands import torch when they need it, once their words are understood, so that `--help` is
answered at once.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence

from thingstuff import __version__
from thingstuff.cli import data, evaluate, models, predict, train
from thingstuff.errors import ImageWarning, ThingstuffError

IMAGES_NAMED = 10  # with a warning of one kind
DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process) and return its exit code."""
    try:
        given = _parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _Complaints().show
            return given.run(given)
    except SystemExit as exit_:  # argparse has printed its help or its complaint
        return exit_.code if isinstance(exit_.code, int) else WRONG_USE
    except ThingstuffError as error:
        print(f"thingstuff: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt as error:  # a training run says what it has saved, and which signal it was
        print(f"thingstuff: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", INTERRUPTED)
    except Exception as error:
        # the first is torch's, known without importing it; its CPU allocator has none of its own
        names_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not names_memory and not isinstance(error, MemoryError):
            raise
        print("thingstuff: out of memory; try a smaller --batch-size, smaller images or another --device", file=sys.stderr)
        return SOME_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thingstuff",
        description="Instance, panoptic and semantic segmentation: find objects, measure how well, train on your own data.",
        epilog="`thingstuff COMMAND --help` explains a command. Exit codes: 0 done, 1 some inputs failed, 2 wrong use, "
        "130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"thingstuff {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (words, add_arguments, run) in {
        "predict": ("find objects in images; write pictures and JSON", predict.add_predict_arguments, predict.run_predict),
        "evaluate": (
            "compare a model's or a file's predictions with the truth",
            evaluate.add_evaluate_arguments,
            evaluate.run_evaluate,
        ),
        "train": ("train a model on your own data", train.add_train_arguments, train.run_train),
        "data": ("make data sets, drawn ones or out of others, and check them", data.add_data_arguments, data.run_data),
        "models": ("list the models that come with the package", models.add_models_arguments, models.run_models),
    }.items():
        command = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


class _Complaints:
    """Warnings as lines on stderr: each once, and of the kinds that every image of a folder may have, the first ones alone."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._images: Counter[type[Warning]] = Counter()

    def show(self, message: Warning | str, category: type[Warning], *_: object) -> None:
        from tqdm import tqdm

        text = str(message)
        if text in self._told:
            return
        self._told.add(text)
        if issubclass(category, ImageWarning):
            self._images[category] += 1
            if self._images[category] == IMAGES_NAMED + 1:
                text = "more images have a warning of this kind, each with numbers of its own; they are not named"
            elif self._images[category] > IMAGES_NAMED:
                return
        tqdm.write(f"thingstuff: warning: {text}", file=sys.stderr)  # above the bar, where there is one
