"""Parts of a report, from values of `report.json` to markup: summary, mistakes, method; None where there is nothing to say."""

from collections.abc import Mapping, Sequence
from typing import Any

from thingstuff.evaluation.report.figures import NOTHING, bar, count, counted, percent
from thingstuff.evaluation.report.markup import Child, Markup, name_tag, tag, together
from thingstuff.evaluation.report.pictures import style_of

Report = Mapping[str, Any]

KINDS = {
    "missed": "an annotated object that no prediction overlaps well",
    "background": "a prediction where nothing is annotated",
    "duplicate": "a second prediction of an object that is found already",
    "wrong class": "the right place, another class",
    "split": "one object, found in pieces",
    "merged": "several objects, found as one",
    "coarse mask": "the right object, but the mask overlaps it too little to match",
    "inexact masks": "matched, but not to the pixel: what lowers SQ",
}
ENOUGH = 10  # objects from which the figure of one class is worth a sentence

AP_TILES = (("AP", "mask AP"), ("AP50", "mask AP50"), ("AP75", "mask AP75"))
AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FREQUENCY_COLUMNS = ("APr", "APc", "APf")  # of LVIS's groups of classes
PQ_ROWS = ("All", "Things", "Stuff")
PIXEL_FIGURES = (
    ("mIoU", "mIoU"),
    ("fwIoU", "fwIoU"),
    ("pixel_accuracy", "pixel accuracy"),
    ("mean_accuracy", "mean accuracy"),
)


def section(identity: str, title: str, note: Child, *content: Child) -> Markup:
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else None, *content, id=identity)


def title_of(report: Report) -> str:
    """What was judged on what: "nuclei on my-data, split val"."""
    judged = report.get("model") or report.get("predictions") or "predictions"
    split = f", split {report['split']}" if report.get("split") else ""
    return f"{_last(judged)} on {_last(report['data'])}{split}"


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def subtitle(report: Report) -> str:
    """The size of what was judged."""
    parts = [counted(report["images"], "image")]
    if report.get("objects") is not None:
        parts.append(counted(report["objects"], "annotated " + ("segment" if is_panoptic(report) else "object")))
    parts.append(counted(len(report.get("classes", {})), "class", "classes"))
    if report.get("max_detections"):
        parts.append(f"{_counted_detections(report)} count")
    if report.get("failed"):
        parts.append(f"{counted(report['failed'], 'image')} could not be read and count as empty")
    return " · ".join(parts)


def _counted_detections(report: Report) -> str:
    of_class = "" if report.get("federated") else " and class"
    return f"the {count(report.get('max_detections') or 100)} best predictions of an image{of_class}"


def is_panoptic(report: Report) -> bool:
    return report.get("pq") is not None


def is_semantic(report: Report) -> bool:
    """Whether class maps were judged, in which no two things are told apart."""
    return not is_panoptic(report) and report.get("semantic") is not None


def class_metric(report: Report) -> str:
    """What classes are ranked by."""
    return "PQ" if is_panoptic(report) else "IoU" if is_semantic(report) else "mask AP"


def class_key(report: Report) -> str:
    """That figure's name in a class's row."""
    return "pq" if is_panoptic(report) else "iou" if is_semantic(report) else "mask"


def class_values(report: Report) -> list[tuple[str, float | None]]:
    """Each class with that figure."""
    return [(name, row.get(class_key(report))) for name, row in report["per_class"].items()]


# Summary --------------------------------------------------------------------------------------------------------------


def tiles(report: Report) -> Markup:
    """The figures that people quote, with the interval of the first ones."""
    found: list[tuple[str, float | None, Sequence[float] | None]] = []
    if is_panoptic(report):
        intervals = (report.get("intervals") or {}).get("pq", {})
        overall = report["pq"]["All"]
        found += [(key.upper(), overall[key], intervals.get(key)) for key in ("pq", "sq", "rq")]
        found += [(f"PQ {group.lower()}", report["pq"][group]["pq"], intervals.get(group)) for group in PQ_ROWS[1:]]
        if report.get("boundary_pq"):
            found.append(("boundary PQ", report["boundary_pq"]["All"]["pq"], None))
        if report.get("semantic"):
            found.append(("mIoU", report["semantic"]["mIoU"], None))
    elif is_semantic(report):
        intervals = (report.get("intervals") or {}).get("semantic", {})
        found += [(words, report["semantic"].get(key), intervals.get(key)) for key, words in PIXEL_FIGURES]
    else:
        intervals = (report.get("intervals") or {}).get("mask", {})
        found += [(words, report["mask"][key], intervals.get(key)) for key, words in AP_TILES]
        if report.get("boundary"):
            found.append(("boundary AP", report["boundary"]["AP"], None))
        found.append(("box AP", report["box"]["AP"], (report.get("intervals") or {}).get("box", {}).get("AP")))
    cards = []
    for position, (words, value, interval) in enumerate(found):
        reach = tag("small", f"{percent(interval[0])} to {percent(interval[1])}") if interval else None
        cards.append(
            tag("div", tag("b", percent(value)), tag("span", words), reach, class_="tile first" if not position else "tile")
        )
    return tag("div", *cards, class_="tiles")


def in_short(report: Report) -> Markup | None:
    """The report in a few sentences, all computed."""
    said: list[Markup] = []
    errors = report.get("errors")
    if errors and errors.get("truths"):
        found, spurious = errors["matched"] / errors["truths"], errors["predictions"] - errors["matched"]
        where = (
            f"Counting predictions with a score of at least {errors['score']:.3g}, " if errors.get("score") is not None else ""
        )
        sentence = (
            f"{where}{count(errors['matched'])} of {count(errors['truths'])} "
            f"annotated {'segments' if is_panoptic(report) else 'objects'} ({percent(found, 0)} %) are found"
        )
        if errors["predictions"]:
            share = percent(spurious / errors["predictions"], 0)
            sentence += f"; {count(spurious)} of {count(errors['predictions'])} predictions ({share} %) match nothing"
        said.append(together(sentence[0].upper() + sentence[1:] + "."))
    if errors:
        costly = [(kind, row) for kind, row in errors["kinds"].items() if row["count"] and row.get("cost")]
        costly.sort(key=lambda item: -item[1]["cost"])
        if costly and costly[0][1]["cost"] > 0:
            kind, row = costly[0]
            second = (
                f"; next comes {costly[1][0]} ({percent(costly[1][1]['cost'])})"
                if len(costly) > 1 and costly[1][1]["cost"] > 0
                else ""
            )
            said.append(
                together(
                    "The costliest kind of mistake is ",
                    tag("b", kind),
                    f": {KINDS.get(kind, '')} ({counted(row['count'], 'case')}). Without it {errors['metric']} would be "
                    f"{percent(row['cost'])} points higher{second}.",
                )
            )
    facts = report.get("classes", {})
    semantic = is_semantic(report)  # where a class has its pixels, however many
    common = {name for name, about in facts.items() if semantic or (about.get("objects") or 0) >= ENOUGH}
    ranked = [(name, row) for name, row in class_values(report) if row is not None and name in common]
    if len(ranked) > 1:
        ranked.sort(key=lambda item: item[1])
        metric = class_metric(report)
        enough = f" with {ENOUGH} {'segments' if is_panoptic(report) else 'objects'} or more"
        said.append(
            together(
                f"Among classes{'' if semantic else enough}, the strongest is ",
                tag("b", name_tag(ranked[-1][0])),
                f" ({metric} {percent(ranked[-1][1])}), the weakest ",
                tag("b", name_tag(ranked[0][0])),
                f" ({percent(ranked[0][1])}).",
            )
        )
    if not said:
        return None
    return tag("div", tag("ul", *(tag("li", sentence) for sentence in said)), class_="card short")


def metrics_table(report: Report) -> Markup:
    """Every summary figure."""
    if is_panoptic(report):
        rows = []
        for words, key in (("PQ", "pq"), ("boundary PQ", "boundary_pq")):
            for group in PQ_ROWS if report.get(key) else ():
                row = report[key][group]
                counts = (row.get(name) for name in ("tp", "fp", "fn"))
                cells = [row["pq"], row["sq"], row["rq"]]
                rows.append(
                    tag(
                        "tr",
                        tag("th", f"{words}, {group.lower()}"),
                        *(tag("td", percent(value), class_="number") for value in cells),
                        tag("td", row["n"], class_="number"),
                        *(tag("td", NOTHING if value is None else count(value), class_="number") for value in counts),
                    )
                )
        heads = ("", "PQ", "SQ", "RQ", "classes", "matched", "spurious", "missed")
        semantic = report.get("semantic")
        more = None
        if semantic:
            stated = [f"{name} {percent(semantic[key])}" for key, name in PIXEL_FIGURES if semantic.get(key) is not None]
            more = tag("p", f"Pixel by pixel, as semantic segmentation: {', '.join(stated)}.", class_="note")
        return together(_table(heads, rows), more)
    if is_semantic(report):
        cells = [tag("td", percent(report["semantic"].get(key)), class_="number") for key, _ in PIXEL_FIGURES]
        cells.append(tag("td", report["semantic"]["n"], class_="number"))
        return _table(("", *(words for _, words in PIXEL_FIGURES), "classes"), [tag("tr", tag("th", "pixels"), *cells)])
    rows = []
    columns = [*AP_COLUMNS, *(key for key in FREQUENCY_COLUMNS if key in report["mask"])]
    columns += [key for key in report["mask"] if key.startswith("AR")]
    for kind in ("mask", "boundary", "box"):
        if report.get(kind):
            values = [report[kind].get(key) for key in columns]
            rows.append(tag("tr", tag("th", kind), *(tag("td", percent(value), class_="number") for value in values)))
    return _table(("", *columns), rows)


def _table(heads: Sequence[str], rows: Sequence[Markup]) -> Markup:
    first, *others = heads
    head = tag("tr", tag("th", first), *(tag("th", words, class_="number", scope="col") for words in others))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="card scroll")


# Mistakes -------------------------------------------------------------------------------------------------------------


def mistakes(report: Report) -> Markup | None:
    """Counts and costs of each kind of mistake."""
    errors = report.get("errors")
    if not errors:
        return None
    every = {**errors["kinds"], **{kind: errors[kind] for kind in ("inexact masks",) if errors.get(kind)}}
    kinds = sorted(every.items(), key=lambda item: -(item[1].get("cost") or 0))
    largest_cost = max([row.get("cost") or 0 for _, row in kinds] + [1e-9])
    largest_count = max([row["count"] for row in errors["kinds"].values()] + [1])
    rows = []
    for kind, row in kinds:
        cost = row.get("cost")
        rows.append(
            tag(
                "tr",
                tag(
                    "th",
                    tag("span", tag("i", class_=f"dot {style_of(kind)}"), kind, class_="chip"),
                    tag("div", KINDS.get(kind, ""), class_="note"),
                    class_="kind",
                ),
                tag("td", count(row["count"]), bar(row["count"] / largest_count), class_="measured"),
                tag("td", percent(cost), bar(max(cost or 0.0, 0.0) / largest_cost, "cost"), class_="measured"),
            )
        )
    metric = errors["metric"]
    heads = tag("tr", tag("th", "kind"), tag("th", "count"), tag("th", f"{metric} points lost"))
    note = (
        f"Every missed object and every spurious prediction is of exactly one kind. The cost is how many points {metric} "
        f"(now {percent(errors.get('value'))}) would rise if that kind alone were put right; several costs do not add up."
    )
    if errors.get("score") is not None:
        note += f" Counts are of predictions with a score of at least {errors['score']:.3g}; costs, as AP, of all predictions."
    return section(
        "mistakes",
        "What goes wrong",
        note,
        tag("div", tag("table", tag("thead", heads), tag("tbody", *rows)), class_="card scroll"),
    )


# Method ---------------------------------------------------------------------------------------------------------------


def method(report: Report) -> Markup:
    """What the numbers mean and how they were made, for those who want to make them again."""
    rows: list[tuple[str, str]] = [("data", report["data"] + (f", split {report['split']}" if report.get("split") else ""))]
    for key in ("model", "predictions"):
        if report.get(key):
            rows.append((key, str(report[key])))
    if is_panoptic(report):
        rows.append(("PQ", PQ_IN_WORDS))
        if report.get("boundary_pq"):
            rows.append(("boundary PQ", f"PQ {BOUNDARY_IN_WORDS}."))
        if report.get("semantic"):
            rows.append(("mIoU", MIOU_IN_WORDS))
    elif is_semantic(report):
        rows += [("mIoU", MIOU_IN_WORDS), ("fwIoU, accuracy", PIXELS_IN_WORDS)]
    else:
        usual = report.get("federated") or (report.get("max_detections") or 100) == 100
        rule = "" if usual else " (by COCO's rule 100)"
        rows.append(("AP", f"{AP_IN_WORDS} Only {_counted_detections(report)} count{rule}."))
        if report.get("federated"):
            words = "LVIS's protocol (Gupta et al. 2019): predictions of classes for which an image wasn't annotated don't count"
            rows.append(("federated", f"{words}. Mistakes, confusion and pictures are left out."))
        if any(key in report["mask"] for key in FREQUENCY_COLUMNS):
            rows.append(("APr, APc, APf", "AP of rare, common and frequent classes, which the data's file tells apart."))
        if report.get("boundary"):
            rows.append(("boundary AP", f"AP {BOUNDARY_IN_WORDS}: strict about the outlines of large objects."))
    errors = report.get("errors") or {}
    if errors.get("score") is not None:
        chosen = f", {errors['score_is']}" if errors.get("score_is") else ""
        words = "Mistakes, confusion and pictures are counted among predictions with a score of at least"
        rows.append(("score", f"{words} {errors['score']:.3g}{chosen}. AP takes them all."))
    if report.get("intervals"):
        samples = count(report["intervals"].get("samples", 1000))
        words = f"95 % intervals of the bootstrap over images ({samples} samples)"
        rows.append(("ranges", f"{words}: how far a figure would move with other images of the same kind."))
    rows.append(("percent", "All figures are percent of a perfect result, differences percentage points."))
    rows.append(("made by", f"thingstuff {report.get('version', '')}".strip()))
    items = [together(tag("dt", name), tag("dd", words)) for name, words in rows]
    return section("method", "How this was measured", None, tag("dl", *items, class_="card method"))


PQ_IN_WORDS = (
    "Panoptic Quality (Kirillov et al. 2019): SQ, the mean IoU of matched segments, times RQ, their F1. A match has the same "
    "class and an IoU above 0.5. Averaged over the classes that occur."
)
MIOU_IN_WORDS = "Mean over classes of the IoU of all their pixels in all images."
PIXELS_IN_WORDS = (
    "fwIoU weighs the IoU of each class by its annotated pixels. Accuracy is the share of annotated pixels whose class is found: "
    "of all pixels, or of each class and averaged (Long et al. 2015). Pixels without annotation do not count."
)
BOUNDARY_IN_WORDS = "where the IoU of a pair is the smaller of mask IoU and boundary IoU (Cheng et al. 2021)"
AP_IN_WORDS = (
    "COCO's average precision (Lin et al. 2014), the mean over IoU 0.50 to 0.95 and over classes; AP50 and AP75 at one IoU. "
    "Small, medium and large objects (APs, APm, APl) are divided at 32 x 32 and 96 x 96 pixels. AR is the recall of so many."
)
