"""`thingstuff evaluate`: a model's predictions, or a file of them, against the truth; or two reports side by side."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from thingstuff.cli.arguments import TASKS, add_inference_arguments, fraction, named_path, natural, not_empty, positive, shown
from thingstuff.cli.judged import PICTURES, Judged
from thingstuff.errors import ConfigError

if TYPE_CHECKING:
    from thingstuff.models.contract import Task
    from thingstuff.segmenter import Segmenter

COUNTED = 100  # best-scored objects of an image and class that count, as COCO has it
OUT = Path("evaluation")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model", metavar="NAME|FILE", type=not_empty, help="judge this model: a bundled model's name or a checkpoint file"
    )
    source.add_argument(
        "--predictions",
        metavar="FILE",
        type=named_path,
        help="judge this file: COCO results, such as predict writes, or COCO panoptic with its folder of PNGs beside it",
    )
    source.add_argument(
        "--compare",
        metavar=("A", "B"),
        nargs=2,
        type=named_path,
        help="put two reports side by side: their folders or report.json",
    )
    parser.add_argument(
        "--data",
        metavar="DIR|JSON",
        type=named_path,
        help="folder with images/ and instances.json or panoptic.json, or such a file; not with --compare",
    )
    parser.add_argument("--split", metavar="NAME", help="split of the folder: val reads instances_val.json (instances.json)")
    parser.add_argument(
        "--images", metavar="DIR", type=named_path, help="folder of the photos, where the data doesn't lead to them"
    )
    parser.add_argument(
        "--max-detections",
        metavar="N",
        type=positive,
        help=f"best-scored objects of an image and class that count ({COUNTED}); more for dense images",
    )
    parser.add_argument(
        "--federated",
        action="store_true",
        help="judge as LVIS, whose images are annotated for some classes only (300 detections of an image)",
    )
    parser.add_argument("--task", choices=TASKS, help="what a model is asked for (as the model says, where the data has it)")
    parser.add_argument("--score", metavar="S", type=fraction, help="leave out objects scored lower (as the model says)")
    add_inference_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions from 0 to 1, instead of the table")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=named_path,
        help=f'folder for report.json and report.html ("{OUT}"; none with --json); a file name in .json gets that object alone',
    )
    parser.add_argument(
        "--pictures", metavar="N", type=natural, help=f"worst images that the report shows ({PICTURES}); 0 for none"
    )


def run_evaluate(arguments: argparse.Namespace) -> int:
    from thingstuff.cli.report_files import make_folder, write_report, write_text

    out = arguments.out or (None if arguments.json else OUT)
    as_file = out is not None and out.suffix.lower() == ".json" and not out.is_dir()
    if out is not None and as_file and out.is_file() and not _is_ours(out):
        raise ConfigError(f"{shown(out)} is there and was not written by evaluate; give another file to --out")
    if arguments.compare:
        from thingstuff.cli.compare import run_compare

        return run_compare(arguments, out, as_file)
    if arguments.data is None:
        raise ConfigError("what the predictions are compared with is missing; name the data: --data DIR or --data FILE.json")
    if arguments.images is not None and not arguments.images.is_dir():
        raise ConfigError(f"{arguments.images} is no folder; name the folder of the photos: --images DIR")
    if out is not None and not as_file:
        make_folder(out)

    judged = _judge(arguments)
    page = None
    if out is not None and as_file:
        write_text(out, json.dumps(judged.result, ensure_ascii=False) + "\n")
    elif out is not None:
        page = write_report(out, *judged.report())
    if arguments.json:
        print(json.dumps(judged.result, ensure_ascii=False))
    else:
        print(judged.table + (f"\n\nreport: {shown(page.absolute())}" if page else ""))
    return 1 if judged.failed else 0


def _is_ours(path: Path) -> bool:
    """Whether a file is the result of an earlier evaluation or comparison, or empty: never a truth or predictions."""
    try:
        content = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and not content.keys() & {"images", "annotations", "categories", "segments"}


def _judge(arguments: argparse.Namespace) -> Judged:
    """By what the predictions are, and for a model by its task, where the data has what it asks for."""
    from thingstuff.cli.judge_instances import judge_instances
    from thingstuff.cli.judge_panoptic import judge_panoptic
    from thingstuff.cli.judge_semantic import judge_semantic

    if arguments.predictions is not None:
        if arguments.task is not None:
            raise ConfigError("--task goes with --model; what is in a file of predictions says itself what it is")
        return (judge_panoptic if _holds_maps(arguments) else judge_instances)(arguments, None)
    if not arguments.data.exists():
        raise ConfigError(f"{arguments.data}: does not exist; name a folder of data, or an annotation file")
    from thingstuff.models.contract import Task
    from thingstuff.segmenter import load

    segmenter = load(arguments.model, device=arguments.device)
    if arguments.bit_depth is None:
        arguments.bit_depth = segmenter.preprocessing.bit_depth  # for the report's photos, too
    task = _task(arguments, segmenter)
    judge = {Task.INSTANCE: judge_instances, Task.PANOPTIC: judge_panoptic, Task.SEMANTIC: judge_semantic}[task]
    return judge(arguments, segmenter)


def _task(arguments: argparse.Namespace, segmenter: "Segmenter") -> "Task":
    """What the model is asked for: the option, or else its own task, or else objects where the data has no maps."""
    from thingstuff.data.folders import has_panoptic
    from thingstuff.models.contract import Task

    if arguments.task is not None:
        segmenter.thresholds(task=arguments.task)  # says what the model does not know
        return Task(arguments.task)
    task = segmenter.task
    if task is not Task.INSTANCE and Task.INSTANCE in segmenter.tasks and not has_panoptic(arguments.data, arguments.split):
        return Task.INSTANCE
    return task


def _holds_maps(arguments: argparse.Namespace) -> bool:
    """Whether the predictions are panoptic maps; the data must have what they are compared with."""
    from thingstuff.data.folders import lists_segments

    data: Path = arguments.data
    predictions_are = lists_segments(arguments.predictions)
    if data.is_file() and lists_segments(data) and not predictions_are and arguments.predictions.is_file():
        raise ConfigError(f"{arguments.predictions} holds objects, {data} panoptic maps; compare like with like")
    if data.is_file() and not lists_segments(data) and predictions_are:
        raise ConfigError(f"{arguments.predictions} holds panoptic maps, {data} objects; compare like with like")
    return predictions_are
