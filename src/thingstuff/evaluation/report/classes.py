"""The parts of a report that go class by class: their figures, their curves, and which is taken for which."""

from collections.abc import Sequence
from typing import Any

from thingstuff.evaluation.report.figures import NOTHING, Line, bar, count, counted, line_chart, percent, small_chart
from thingstuff.evaluation.report.markup import Child, Markup, name_tag, tag
from thingstuff.evaluation.report.sections import (
    Report,
    class_key,
    class_metric,
    class_values,
    is_panoptic,
    is_semantic,
    section,
)

MOST_CONFUSED = 16  # classes of the confusion matrix that are shown
SMALL_CHARTS = 24  # classes that get a chart of their own


def classes(report: Report) -> Markup | None:
    """A sortable table with a bar for each class."""
    per_class = report.get("per_class")
    if not per_class:
        return None
    panoptic, semantic = is_panoptic(report), is_semantic(report)
    has_stuff = panoptic or semantic
    if panoptic:
        columns = [("SQ", "sq"), ("RQ", "rq"), ("boundary PQ", "boundary_pq"), ("IoU of pixels", "iou")]
    else:
        columns = [("boundary AP", "boundary"), ("box AP", "box")]
    columns = [(words, key) for words, key in columns if any(key in row for row in per_class.values())]
    metric = class_metric(report)
    key = class_key(report)
    facts = report.get("classes", {})

    def order(item: tuple[str, Any]) -> tuple[bool, float]:
        value = item[1].get(key)
        return value is None, -(value or 0.0)

    rows = []
    for name, row in sorted(per_class.items(), key=order):
        about = facts.get(name, {})
        kind = "thing" if about.get("is_thing", True) else "stuff"
        rows.append(
            tag(
                "tr",
                tag("th", name_tag(name), data_value=name),
                tag("td", kind, class_="muted", data_value=kind) if has_stuff else None,
                _value_cell(about.get("pixels" if semantic else "objects"), lambda value: count(value)),
                _value_cell(row.get(key), percent),
                tag("td", bar(row.get(key), mark=None if has_stuff else row.get("box")), class_="wide"),
                *(_value_cell(row.get(column), percent) for _, column in columns),
            )
        )
    heads = tag(
        "tr",
        _head("class", text=True),
        _head("kind", text=True) if has_stuff else None,
        _head("annotated pixels" if semantic else "annotated", number=True),
        _head(metric, number=True, sort="descending"),
        tag("th"),
        *(_head(words, number=True) for words, _ in columns),
    )
    without = sum(value is None for _, value in class_values(report))
    note = f"{metric} of each class" + ("" if has_stuff else "; the dark mark on a bar is its box AP") + "."
    if without:
        have = "has" if without == 1 else "have"
        note += f" {counted(without, 'class', 'classes')} without any example {have} no value and no part in the mean."
    table = tag("table", tag("thead", heads), tag("tbody", *rows))
    return section(
        "classes", "Class by class", note, tag("div", table, class_="card scroll" + (" tall" if len(rows) > 16 else ""))
    )


def _value_cell(value: Any, write: Any) -> Markup:
    return tag("td", NOTHING if value is None else write(value), class_="number", data_value="" if value is None else value)


def _head(words: str, text: bool = False, number: bool = False, sort: str | None = None) -> Markup:
    return tag(
        "th",
        tag("button", words, type="button"),
        class_="number" if number else None,
        scope="col",
        aria_sort=sort,
        data_text=text,
        data_first="ascending" if text else None,
    )


# Curves ---------------------------------------------------------------------------------------------------------------

CURVES = (("AP50", "at IoU 0.50", ""), ("AP75", "at IoU 0.75", "second"), ("AP", "mean of IoU 0.50 to 0.95", "third"))


def curves(report: Report) -> Markup | None:
    """Precision against recall: overall, and small ones for the classes with the most objects."""
    found = (report.get("curves") or {}).get("mask")
    if not found or not found.get("overall"):
        return None
    recall = report["curves"]["recall"]
    overall = [
        Line(f"{words}", recall, found["overall"][key], style) for key, words, style in CURVES if found["overall"].get(key)
    ]
    rows = [
        tag(
            "tr",
            tag("td", tag("span", class_=f"line {line.style}")),
            tag("th", line.name),
            tag("td", percent(sum(line.y) / len(line.y)), class_="number"),
        )
        for line in overall
    ]
    legend = tag(
        "table", tag("thead", tag("tr", tag("th"), tag("th", "matched"), tag("th", "area", class_="number"))), tag("tbody", *rows)
    )
    chart = line_chart(overall, "recall, %", "precision, %", "precision against recall, all classes")
    content: list[Child] = [tag("div", chart, tag("div", legend), class_="card split")]
    per_class = {name: lines for name, lines in (found.get("per_class") or {}).items() if lines}
    if len(per_class) > 1:
        facts = report.get("classes", {})
        most = sorted(per_class, key=lambda name: -(facts.get(name, {}).get("objects") or 0))[:SMALL_CHARTS]
        charts = [
            tag(
                "figure",
                small_chart(
                    [
                        Line(words, recall, per_class[name][key], style)
                        for key, words, style in CURVES
                        if per_class[name].get(key)
                    ],
                    f"{name}: precision against recall",
                ),
                tag("figcaption", name_tag(name)),
            )
            for name in most
        ]
        words = "Every class" if len(most) == len(per_class) else f"The {len(most)} classes with the most objects"
        content.append(tag("div", tag("h3", words), tag("div", *charts, class_="grid-of-charts"), class_="card"))
    note = (
        "How precise the predictions are when so much of the truth is to be found; masks, all sizes. "
        "The area under a curve is its AP."
    )
    return section("curves", "Precision and recall", note, *content)


# Confusion ------------------------------------------------------------------------------------------------------------


def confusion(report: Report) -> Markup | None:
    """What annotated objects are taken for; of many classes those most confused."""
    found = report.get("confusion")
    if not found or not found.get("classes"):
        return None
    names, table = list(found["classes"]), [list(row) for row in found["counts"]]
    total = len(names)
    of_pixels = is_semantic(report)
    if of_pixels:
        table.append([0] * (total + 1))  # pixels without annotation are not counted
    shown = most_confused(table, MOST_CONFUSED)
    order = [*shown, total]
    high = 30 + round(5.6 * min(max(len(_column_name(names, column)) for column in order), 24))  # of names set aslant
    heads = tag(
        "tr",
        tag("th", "annotated ↓  predicted →", class_="corner"),
        *(tag("th", tag("span", tag("bdi", _column_name(names, column)))) for column in order),
    )
    rows = []
    for row in shown if of_pixels else order:
        whole = sum(table[row]) or 1
        cells = []
        for column in order:
            value = table[row][column]
            if row == total and column == total:
                cells.append(tag("td", "", style="--share:0"))
                continue
            share = value / whole
            style = " ".join(
                word for word, holds in (("right", row == column), ("strong", share > 0.45), ("zero", not value)) if holds
            )
            written = f"{100 * share:.0f}" if of_pixels else count(value)  # pixels are too many for a small cell
            words = f"{_row_name(names, row)} taken for {_column_name(names, column)}: {value} ({100 * share:.0f} %)"
            cells.append(tag("td", written if value else "·", class_=style or None, title=words, style=f"--share:{share:.3f}"))
        rows.append(tag("tr", tag("th", name_tag(_row_name(names, row))), *cells))
    score = f" and a score of at least {found['score']:.3g}" if found.get("score") is not None else ""
    note = (
        f"Pairs with an IoU of at least {found.get('iou', 0.5):.2f}{score}, whatever their classes; colours are shares of a row. "
        "The last column counts objects that nothing was predicted for, the last row predictions where nothing is annotated."
    )
    if of_pixels:
        note = (
            "Where the pixels of each annotated class (row) went, in percent of them. "
            "The last column is of pixels that were given no class."
        )
    if len(shown) < total:
        note += (
            f" Shown are the {len(shown)} of {total} classes that are confused most with each other; report.json has them all."
        )
    matrix = tag("table", tag("thead", heads), tag("tbody", *rows), class_="confusion", style=f"--high:{high}px")
    return section("confusion", "What is taken for what", note, tag("div", matrix, class_="card scroll"))


def most_confused(table: Sequence[Sequence[int]], most: int) -> list[int]:
    """The classes with the most confusion among each other, in the order of their numbers; objects decide between equals."""
    total = len(table) - 1
    if total <= most:
        return list(range(total))
    mixed = [sum(table[a][b] + table[b][a] for b in range(total) if b != a) for a in range(total)]
    ranked = sorted(range(total), key=lambda a: (-mixed[a], -sum(table[a])))
    return sorted(ranked[:most])


def _row_name(names: Sequence[str], row: int) -> str:
    return names[row] if row < len(names) else "nothing annotated"


def _column_name(names: Sequence[str], column: int) -> str:
    return names[column] if column < len(names) else "missed"
