"""One image of a report: the photo twice, what is true beside what was predicted, every mistake marked on both with one number.

The photo is a small JPEG, the outlines are SVG over it: sharp at any zoom, with the words of each mistake under the pointer.
A mistake of one side alone (missed, background) is dashed on the other, where its counterpart should be or should not.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from thingstuff.evaluation.mistakes import Mistake
from thingstuff.evaluation.report.figures import counted
from thingstuff.evaluation.report.markup import Markup, name_tag, tag, together
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

FINEST = 1200  # pixels of the long side up to which outlines follow every pixel; those of larger images are coarser
MARKED = 200  # mistakes of one image that are marked; the rest are counted
LISTED = 60  # mistakes of one image that are listed in words below it


@dataclass(frozen=True, eq=False)
class Picture:
    """What is drawn of one image."""

    name: str  # file name
    photo: bytes | None  # JPEG or PNG; None where the image isn't at hand: outlines are drawn on grey
    truth: Segments
    prediction: Segments
    mistakes: Sequence[Mistake]
    ignored: frozenset[int] = frozenset()  # positions of crowds in the truth
    quality: float | None = None  # 0..1, by which images are ranked


def draw(picture: Picture, scores: bool = True) -> Markup:
    """The card of one image."""
    shown = picture.mistakes[:MARKED]
    kinds = list(dict.fromkeys(mistake.kind for mistake in picture.mistakes))
    numbers = {kind: sum(mistake.kind == kind for mistake in picture.mistakes) for kind in kinds}
    chips = [
        tag("span", tag("i", class_=f"dot {style_of(kind)}"), f"{numbers[kind]} {kind}", class_="chip")
        for kind in sorted(kinds, key=lambda kind: -numbers[kind])
    ]
    objects = len(picture.truth) - len(picture.ignored)
    facts = f"{objects} annotated, {len(picture.prediction)} predicted"
    quality = None if picture.quality is None else tag("span", f"quality {100 * picture.quality:.0f}", class_="quality")
    heading = tag("h3", name_tag(picture.name), quality)
    panels = tag(
        "div",
        _panel(picture, shown, of_truth=True, scores=scores),
        _panel(picture, shown, of_truth=False, scores=scores),
        class_="panels",
    )
    return tag(
        "article",
        tag("header", heading, tag("p", facts, class_="muted"), tag("p", *chips, class_="chips")),
        panels,
        _list(picture, shown, scores),
        class_="picture",
    )


def style_of(kind: str) -> str:
    """The CSS class of a kind of mistake."""
    return "kind-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in kind)


def words_of(mistake: Mistake, truth: Segments, prediction: Segments, scores: bool = True) -> str:
    """A mistake in words: "wrong class: person 0.83 predicted, dog annotated, IoU 0.71"."""
    parts = []
    if mistake.prediction is not None:
        score = f" {prediction.scores[mistake.prediction]:.2f}" if scores else ""
        parts.append(f"{prediction.categories[int(prediction.classes[mistake.prediction])].name}{score} predicted")
    if mistake.truth is not None:
        parts.append(f"{truth.categories[int(truth.classes[mistake.truth])].name} annotated")
    if mistake.prediction is not None and mistake.truth is not None:
        parts.append(f"IoU {mistake.iou:.2f}")
    elif mistake.iou > 0:
        parts.append(f"best IoU {mistake.iou:.2f}")
    return f"{mistake.kind}: {', '.join(parts)}"


def _list(picture: Picture, shown: Sequence[Mistake], scores: bool) -> Markup | None:
    if not picture.mistakes:
        return None
    rows = [
        tag("li", tag("i", class_=f"dot {style_of(mistake.kind)}"), words_of(mistake, picture.truth, picture.prediction, scores))
        for mistake in shown[:LISTED]
    ]
    rest = len(picture.mistakes) - len(rows)
    more = tag("p", f"and {counted(rest, 'other')}, not listed", class_="muted") if rest else None
    return tag("details", tag("summary", f"{counted(len(picture.mistakes), 'mistake')} in words"), tag("ol", *rows), more)


# Drawing --------------------------------------------------------------------------------------------------------------


def _panel(picture: Picture, shown: Sequence[Mistake], of_truth: bool, scores: bool) -> Markup:
    own, other = (picture.truth, picture.prediction) if of_truth else (picture.prediction, picture.truth)
    height, width = own.size
    step = ceil(max(height, width) / FINEST)
    in_mistakes = {mistake.truth if of_truth else mistake.prediction for mistake in shown}
    calm = [
        _outline(own, position, step, "ignored" if of_truth and position in picture.ignored else "matched")
        for position in _largest_first(own)
        if position not in in_mistakes
    ]
    marks, labels, seen = [], [], set[tuple[bool, int]]()
    for number, mistake in enumerate(shown, 1):
        position, counterpart = (mistake.truth, mistake.prediction) if of_truth else (mistake.prediction, mistake.truth)
        segments, at, ghost = (own, position, "") if position is not None else (other, counterpart, " ghost")
        if at is None:
            continue
        words = f"{number} · {words_of(mistake, picture.truth, picture.prediction, scores)}"
        if (bool(ghost), at) not in seen:  # one object may take part in several mistakes
            seen.add((bool(ghost), at))
            marks.append(
                tag("path", tag("title", words), d=outline(segments.rles[at], step), class_=style_of(mistake.kind) + ghost)
            )
            if not ghost:
                labels.append(_label(number, segments.rles[at], mistake.kind, (height, width), words))
    size = max(height, width)
    drawing = tag(
        "svg",
        tag("g", *calm, class_="calm"),
        tag("g", *marks, class_="marks"),
        tag("g", *labels, class_="labels", style=f"font-size:{size / 42:.2f}px"),
        viewBox=f"0 0 {max(width, 1)} {max(height, 1)}",
        aria_hidden="true",
    )
    side = "ground truth" if of_truth else "prediction"
    source = data_uri(picture.photo) if picture.photo else _grey(height, width)
    photo = tag("img", src=source, alt=f"{side} of {picture.name}", width=max(width, 1), height=max(height, 1))
    return tag("figure", tag("div", photo, drawing, class_="photo"), tag("figcaption", side))


def _largest_first(segments: Segments) -> list[int]:
    return [int(position) for position in np.argsort(-segments.areas, kind="stable")]


def _outline(segments: Segments, position: int, step: int, style: str) -> Markup:
    category = segments.categories[int(segments.classes[position])]
    score = float(segments.scores[position])
    words = f"{category.name} {score:.2f}" if score < 1 else category.name
    fill = None
    if not segments.overlapping:  # a panoptic map is coloured in full, each class in its own colour
        fill = f"fill:hsl({(int(segments.classes[position]) * 137.508) % 360:.0f} 36% 58%)"
        style += " region"
    return tag("path", tag("title", words), d=outline(segments.rles[position], step), class_=style, style=fill)


def _label(number: int, mask: Mask, kind: str, size: tuple[int, int], words: str) -> Markup:
    """The number of a mistake, in the middle of its object and inside the picture."""
    height, width = size
    unit = max(height, width) / 42  # the size of a letter
    left, top, right, bottom = mask.box
    half = unit * (0.42 + 0.3 * len(str(number)))
    x = min(max((left + right) / 2, half), max(width - half, half))
    # beside small objects, so that they stay visible
    above = top - 0.75 * unit if top > 1.5 * unit else bottom + 0.75 * unit
    y = (top + bottom) / 2 if min(right - left, bottom - top) > 4 * unit else min(above, height - 0.75 * unit)
    return tag(
        "g",
        tag("title", words),
        tag("rect", x=x - half, y=y - 0.62 * unit, width=2 * half, height=1.24 * unit, rx=0.3 * unit, class_=style_of(kind)),
        tag("text", number, x=x, y=y + 0.36 * unit, text_anchor="middle"),
    )


def outline(mask: Mask, step: int = 1) -> str:
    """The mask's outlines as an SVG path along pixel edges; with a `step` along the edges of step x step pixels."""
    scale, small = step, mask
    if step > 1 and mask.area:
        small = _coarser(mask, step)
    parts = []
    for polygon in small.to_polygons():
        for ring in (polygon.outer, *polygon.holes):
            corners = (ring * scale).astype(np.int64)
            moves = np.diff(corners, axis=0)
            turns = "".join(f"h{dx}" if dx else f"v{dy}" for dx, dy in moves.tolist())
            parts.append(f"M{corners[0, 0]} {corners[0, 1]}{turns}z")
    return "".join(parts)


def _coarser(mask: Mask, step: int) -> Mask:
    """Cells of step x step pixels that the mask covers by half; all that it touches where it would vanish."""
    (top, left), (height, width) = mask.corner, mask.crop_size
    above, before = top % step, left % step
    below, after = -(above + height) % step, -(before + width) % step
    padded = np.pad(mask.crop(), ((above, below), (before, after)))
    covered = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean(axis=(1, 3))
    cells = covered >= 0.5 if (covered >= 0.5).any() else covered > 0
    size = ceil(mask.size[0] / step), ceil(mask.size[1] / step)
    return Mask.from_crop(cells, (top // step, left // step), size)


def data_uri(picture: bytes) -> str:
    """The picture inside the page's own text."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(picture).decode('ascii')}"


def _grey(height: int, width: int) -> str:
    size = f"width='{width}' height='{height}'"
    text = f"<svg xmlns='http://www.w3.org/2000/svg' {size}><rect {size} fill='#3a3d42'/></svg>"
    return f"data:image/svg+xml;base64,{b64encode(text.encode()).decode('ascii')}"


def legend(kinds: Sequence[str]) -> Markup:
    """What the colours mean."""
    chips = [tag("span", tag("i", class_=f"dot {style_of(kind)}"), kind, class_="chip") for kind in kinds]
    return together(tag("span", tag("i", class_="dot matched"), "matched", class_="chip"), *chips)
