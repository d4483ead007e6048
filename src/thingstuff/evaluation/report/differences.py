"""The page of two runs side by side."""

from collections.abc import Mapping
from typing import Any

from thingstuff.evaluation.report import sections
from thingstuff.evaluation.report.figures import NOTHING, bar, count, counted, interval_chart, percent, points
from thingstuff.evaluation.report.markup import Markup, name_tag, tag, together
from thingstuff.evaluation.report.page import navigation, page
from thingstuff.evaluation.report.pictures import style_of


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page of what `thingstuff.evaluation.comparison.compare` gives."""
    parts = {
        "Summary": _summary(comparison),
        "Mistakes": _mistakes(comparison),
        "Classes": _classes(comparison),
        "Images": _images(comparison),
        "Method": _method(comparison),
    }
    present = {name: part for name, part in parts.items() if part}
    runs = [
        tag("p", tag("span", letter.upper(), class_="run"), name_tag(sections.title_of({"data": "data", **comparison[letter]})))
        for letter in ("a", "b")
    ]
    header = tag(
        "header",
        tag(
            "div",
            tag("p", "thingstuff · comparison", class_="brand"),
            tag("h1", _headline(comparison)),
            tag("div", *runs, class_="subtitle"),
        ),
    )
    return page("Comparison of two runs", header, navigation(present), tag("main", *present.values()))


def _headline(comparison: Mapping[str, Any]) -> str:
    """The main figure's verdict."""
    main = next((row for row in comparison["metrics"] if row["difference"] is not None), None)
    if main is None:
        return "Two runs, and nothing to find"
    if main["low"] is None:
        return f"{points(main['difference'])} {main['name']}, of too few images to tell"
    if main["low"] > 0:
        return f"B is better: {points(main['difference'])} {main['name']}"
    if main["high"] < 0:
        return f"A is better: {points(-main['difference'])} {main['name']}"
    return f"No clear difference in {main['name']} ({points(main['difference'])})"


def _summary(comparison: Mapping[str, Any]) -> Markup:
    note = (
        f"On {counted(comparison['images'], 'image')} that both were judged on. A range that leaves out zero (coloured) would "
        "very likely hold on other images of the same kind; a grey one may be luck."
    )
    return sections.section("summary", "Figures", note, _table(comparison["metrics"], "figure", tall=False))


def _classes(comparison: Mapping[str, Any]) -> Markup | None:
    rows = sorted(comparison["per_class"], key=lambda row: (row["low"] is None, -row["difference"]))
    if len(rows) < 2:
        return None
    metric = {"panoptic": "PQ", "semantic": "IoU"}.get(comparison["task"], "Mask AP")
    note = (
        f"{metric}, from the largest gain of B to its largest loss. Of many classes some ranges leave out zero by chance; "
        "classes in fewer than five images have none and come last."
    )
    return sections.section("classes", "Class by class", note, _table(rows, "class", tall=len(rows) > 16))


def _table(rows: list[Mapping[str, Any]], what: str, tall: bool) -> Markup:
    stated = [row for row in rows if row["low"] is not None]
    reach = max([abs(row[end]) for row in stated for end in ("low", "high")], default=0.0)
    lines = []
    for row in rows:
        cells = [tag("th", name_tag(row["name"])), *(tag("td", percent(row[side]), class_="number") for side in ("a", "b"))]
        if row["low"] is None:
            difference = tag("td", points(row["difference"]), class_="number muted")
            lines.append(tag("tr", *cells, difference, tag("td", NOTHING, class_="number muted"), tag("td")))
            continue
        sure = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "unsure"
        lines.append(
            tag(
                "tr",
                *cells,
                tag("td", tag("b", points(row["difference"])), class_=f"number {sure}"),
                tag("td", f"{points(row['low'])} to {points(row['high'])}", class_="number"),
                tag("td", interval_chart(row["low"], row["high"], row["difference"], reach), class_="wide"),
            )
        )
    heads = [tag("th", words, class_="number") for words in ("A", "B", f"B {chr(0x2212)} A", "95 % interval")]
    table = tag("table", tag("thead", tag("tr", tag("th", what), *heads, tag("th"))), tag("tbody", *lines))
    return tag("div", table, class_="card scroll" + (" tall" if tall else ""))


def _mistakes(comparison: Mapping[str, Any]) -> Markup | None:
    errors = comparison["errors"]
    if not errors:
        return None
    most = max([1, *(number for row in errors.values() for number in row.values())])
    rows = [
        tag(
            "tr",
            tag("th", tag("span", tag("i", class_=f"dot {style_of(kind)}"), kind, class_="chip"), class_="kind"),
            *(tag("td", count(row[side]), bar(row[side] / most), class_="measured") for side in ("a", "b")),
            tag("td", _change(row["b"] - row["a"]), class_="number"),
        )
        for kind, row in sorted(errors.items(), key=lambda item: -max(item[1].values()))
    ]
    heads = tag("tr", tag("th", "kind"), tag("th", "A"), tag("th", "B"), tag("th", "change", class_="number"))
    note = "How many of each kind, each run at the score that suits it best. The kinds are explained in either report."
    table = tag("table", tag("thead", heads), tag("tbody", *rows))
    return sections.section("mistakes", "What goes wrong", note, tag("div", table, class_="card scroll"))


def _change(difference: int) -> Markup:
    sign = "+" if difference > 0 else chr(0x2212) if difference < 0 else ""
    style = "worse" if difference > 0 else "better" if difference < 0 else "unsure"
    return tag("b", f"{sign}{count(abs(difference))}", class_=style)


def _images(comparison: Mapping[str, Any]) -> Markup | None:
    changed = comparison["changed"]
    if not changed:
        return None
    rows = [
        tag(
            "tr",
            tag("th", name_tag(row["name"])),
            *(tag("td", f"{100 * row[side]:.0f}", class_="number") for side in ("a", "b")),
            tag(
                "td",
                tag("b", points(row["b"] - row["a"], 0), class_="better" if row["b"] > row["a"] else "worse"),
                class_="number",
            ),
        )
        for row in changed
    ]
    heads = [tag("th", words, class_="number") for words in ("A", "B", f"B {chr(0x2212)} A")]
    table = tag("table", tag("thead", tag("tr", tag("th", "image"), *heads)), tag("tbody", *rows))
    note = "Quality of the images that changed most, B's largest gains first, its largest losses last."
    return sections.section("images", "Where they differ", note, tag("div", table, class_="card scroll tall"))


def _method(comparison: Mapping[str, Any]) -> Markup:
    rows = []
    for letter in ("a", "b"):
        about = comparison[letter]
        words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items())
        rows.append((letter.upper(), words))
    words = f"Paired bootstrap over images: {count(comparison['samples'])} times as many images are drawn with replacement"
    rows.append(
        (
            "ranges",
            f"{words}, the same for both runs; a range holds 95 % of the differences, corrected for bias and for few images.",
        )
    )
    items = [together(tag("dt", name), tag("dd", words)) for name, words in rows]
    return sections.section("method", "How this was measured", None, tag("dl", *items, class_="card method"))
