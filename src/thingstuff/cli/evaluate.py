"""`thingstuff evaluate`: a model's predictions, or a file of them, against the truth; or two reports side by side."""

import argparse
import json
from pathlib import Path

from thingstuff.cli.arguments import add_inference_arguments, fraction, positive, shown
from thingstuff.cli.judged import PICTURES, Judged
from thingstuff.errors import ConfigError

COUNTED = 100  # best-scored objects of an image and class that count, as COCO has it
OUT = Path("evaluation")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME|FILE", help="judge this model: a bundled model's name or a checkpoint file")
    source.add_argument(
        "--predictions",
        metavar="FILE",
        type=Path,
        help="judge this file: COCO results, such as predict writes, or COCO panoptic with its folder of PNGs beside it",
    )
    source.add_argument(
        "--compare", metavar=("A", "B"), nargs=2, type=Path, help="put two reports side by side: their folders or report.json"
    )
    parser.add_argument(
        "--data",
        metavar="DIR|JSON",
        type=Path,
        help="folder with images/ and instances.json or panoptic.json, or such a file; not with --compare",
    )
    parser.add_argument("--split", metavar="NAME", help="split of the folder: val reads instances_val.json (instances.json)")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder of the photos, where the data doesn't lead to them")
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
    parser.add_argument("--score", metavar="S", type=fraction, help="leave out objects scored lower (as the model says)")
    add_inference_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions from 0 to 1, instead of the table")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f'folder for report.json and report.html ("{OUT}"; none with --json); a file name in .json gets that object alone',
    )
    parser.add_argument(
        "--pictures", metavar="N", type=_count, help=f"worst images that the report shows ({PICTURES}); 0 for none"
    )


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from thingstuff.cli.report_files import make_folder, write_report, write_text

    out = arguments.out or (None if arguments.json else OUT)
    as_file = out is not None and out.suffix.lower() == ".json" and not out.is_dir()
    if out is not None and not as_file:
        make_folder(out)
    if arguments.compare:
        from thingstuff.cli.compare import run_compare

        return run_compare(arguments, out, as_file)
    if arguments.data is None:
        raise ConfigError("what the predictions are compared with is missing; name the data: --data DIR or --data FILE.json")

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


def _judge(arguments: argparse.Namespace) -> Judged:
    """By what the predictions are; a model is judged on objects where the data has them."""
    if _is_panoptic(arguments):
        from thingstuff.cli.judge_panoptic import judge_panoptic

        return judge_panoptic(arguments)
    from thingstuff.cli.judge_instances import judge_instances

    return judge_instances(arguments)


def _is_panoptic(arguments: argparse.Namespace) -> bool:
    from thingstuff.data.folders import has_instances, has_panoptic, lists_segments

    data: Path = arguments.data
    predictions: Path | None = arguments.predictions
    if predictions is not None and predictions.is_file():
        predictions_are = lists_segments(predictions)
        if not data.is_dir() and lists_segments(data) != predictions_are:
            kinds = ("objects", "panoptic maps")
            raise ConfigError(
                f"{predictions} holds {kinds[predictions_are]}, {data} {kinds[not predictions_are]}; compare like with like"
            )
        return predictions_are
    return has_panoptic(data, arguments.split) and not has_instances(data, arguments.split)
