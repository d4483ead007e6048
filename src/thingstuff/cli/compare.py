"""`thingstuff evaluate --compare A B`: two reports side by side."""

import argparse
import json
from pathlib import Path
from typing import Any

from thingstuff.cli.arguments import shown
from thingstuff.cli.report_files import REPORT, make_folder, write_text
from thingstuff.errors import ConfigError, EvaluationError

VALUES, PAGE = "compare.json", "compare.html"


def run_compare(arguments: argparse.Namespace, out: Path | None, as_file: bool) -> int:
    """Print what differs between two reports; write compare.json and compare.html to the folder `out`.

    Raises:
        ConfigError: there is no report at one of the paths, or an option that goes with none.
        EvaluationError: the two can't be compared, or one is damaged.
    """
    options = ("data", "split", "images", "max_detections", "task", "score", "device", "max_pixels", "bit_depth", "pictures")
    for option in options:
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')} goes with --model or --predictions; --compare reads two reports")
    if arguments.federated:
        raise ConfigError("--federated goes with --model or --predictions; --compare reads two reports")
    from thingstuff.evaluation.comparison import compare, format_comparison
    from thingstuff.evaluation.report import render_comparison

    a, b = (_read(path) for path in arguments.compare)
    try:
        comparison = compare(a, b)
    except EvaluationError as error:
        raise EvaluationError(f"{arguments.compare[0]} and {arguments.compare[1]}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # a report that was edited by hand
        raise EvaluationError(
            f"{arguments.compare[0]} and {arguments.compare[1]}: one is no whole report ({error!r}); write it again"
        ) from error
    if out is not None and not as_file:
        make_folder(out)
    text = json.dumps(comparison)
    page = None
    if out is not None and as_file:
        write_text(out, text + "\n")
    elif out is not None:
        page = out / PAGE
        write_text(out / VALUES, text + "\n")
        write_text(page, render_comparison(comparison))
    if arguments.json:
        print(text)
    else:
        heads = "\n".join(f"{letter}: {shown(path.absolute())}" for letter, path in zip("AB", arguments.compare, strict=True))
        print(f"{heads}\n\n{format_comparison(comparison)}" + (f"\n\nreport: {shown(page.absolute())}" if page else ""))
    return 0


def _read(path: Path) -> dict[str, Any]:
    """The report in a file, or in the folder that holds it."""
    from thingstuff.data.coco_json import read_json

    advice = f"--compare takes two folders that evaluate filled (--out), or the {REPORT} in them"
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; {advice}")
    if path.is_dir() and not (path / REPORT).exists():
        raise ConfigError(f"{path}: has no {REPORT}; {advice}")
    return read_json(path / REPORT if path.is_dir() else path, f"a report, which evaluate writes as {REPORT}")
