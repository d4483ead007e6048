"""A whole report as one HTML file that needs no network: style, script, charts and pictures are inside."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Any

from thingstuff.evaluation.report import classes, sections
from thingstuff.evaluation.report.figures import counted
from thingstuff.evaluation.report.markup import Markup, name_tag, tag, together
from thingstuff.evaluation.report.pictures import Picture, draw, style_of


def render(report: dict[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page of one run.

    Args:
        report: what `report.json` holds.
        pictures: of the worst images, in the order shown.
    """
    parts = {
        "Summary": together(sections.in_short(report), tag("section", sections.metrics_table(report), id="summary")),
        "Mistakes": sections.mistakes(report),
        "Classes": classes.classes(report),
        "Curves": classes.curves(report),
        "Confusion": classes.confusion(report),
        "Images": _images(report, pictures),
        "Method": sections.method(report),
    }
    present = {name: part for name, part in parts.items() if part}
    header = tag(
        "header",
        tag(
            "div",
            tag("p", "thingstuff · evaluation", class_="brand"),
            tag("h1", name_tag(sections.title_of(report))),
            tag("p", sections.subtitle(report), class_="subtitle"),
            sections.tiles(report),
        ),
    )
    return page(sections.title_of(report), header, navigation(present), tag("main", *present.values()))


def navigation(names: "Sequence[str] | dict[str, Any]") -> Markup:
    return tag("nav", tag("div", *(tag("a", name, href=f"#{name.lower()}") for name in names)), aria_label="parts of the report")


def page(title: str, *body: Markup) -> str:
    """The document around it. Its policy forbids every request, and every script but its own."""
    folder = files("thingstuff.evaluation.report")
    style = folder.joinpath("style.css").read_text(encoding="utf-8")
    script = folder.joinpath("script.js").read_text(encoding="utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    dialog = tag("dialog", aria_label="picture, enlarged")
    footer = tag("footer", "Made by thingstuff. This file is complete: it asks nothing of the network.")
    content = tag("body", *body, footer, dialog, tag("script", Markup(script)))
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n"


def _images(report: dict[str, Any], pictures: Sequence[Picture]) -> Markup | None:
    if not pictures:
        return None
    kinds = [kind for kind in sections.KINDS if any(mistake.kind == kind for picture in pictures for mistake in picture.mistakes)]
    buttons = [
        tag(
            "button",
            tag("i", class_=f"dot {style_of(kind)}"),
            kind,
            class_="chip",
            type="button",
            aria_pressed="true",
            data_kind=style_of(kind),
            title=sections.KINDS[kind],
        )
        for kind in kinds
    ]
    matched = tag("span", tag("i", class_="dot matched"), "matched, or nothing to say", class_="chip muted")
    total = report["images"]
    words = "the only image" if total == 1 else f"all {total} images, the worst first" if len(pictures) >= total else (
        f"the {counted(len(pictures), 'image')} of {total} with the lowest quality, the worst first"
    )  # fmt: skip
    semantic = sections.is_semantic(report)
    quality = (
        "that of PQ with all classes together: the summed IoU of its matches over matches plus half of what is missed or spurious"
        if sections.is_panoptic(report)
        else "its own mIoU, the mean over the classes in it or predicted in it"
        if semantic
        else "its F1, the mean over IoU 0.50 to 0.95, of predictions with the score that suits all images best"
    )
    note = f"Shown: {words}. The quality of an image is {quality}." + (
        " Outlines are those of its classes."
        if semantic
        else " A number marks the same mistake on both sides, a dashed outline the place where the other side has something."
    )
    scores = not (sections.is_panoptic(report) or semantic)
    filters = None if semantic else tag("div", *buttons, matched, class_="chips filters")
    cards = [draw(picture, scores=scores) for picture in pictures]
    return sections.section("images", "Where to look", note, filters, *cards)
