"""How numbers are written in reports, and the two charts that are drawn rather than laid out as tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from thingstuff.evaluation.report.markup import Markup, tag, together

NOTHING = "\N{EN DASH}"  # where there is no value
MINUS, EVEN = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"

# of the drawings, in their own units; the page scales them to its width
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 46


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    x: Sequence[float]  # 0..1
    y: Sequence[float]  # 0..1
    style: str = ""  # CSS class


def percent(value: float | int | None, digits: int = 1) -> str:
    """A fraction as percent without the sign, a dash where there is none."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def points(value: float | int | None, digits: int = 1) -> str:
    """A difference of fractions in percentage points, with its sign (a true minus)."""
    if value is None:
        return NOTHING
    rounded = round(100 * value, digits)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else EVEN}{abs(rounded):.{digits}f}"


def count(value: int) -> str:
    """A count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """ "1 image", "2 images"."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> Markup:
    """Curves over axes from 0 to 1, named beside the chart rather than in it."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    grid = []
    for step in range(0, 11, 2):
        x, y = LEFT + wide * step / 10, TOP + high * (1 - step / 10)
        grid += [
            tag("line", x1=x, x2=x, y1=TOP, y2=TOP + high, class_="grid"),
            tag("line", x1=LEFT, x2=LEFT + wide, y1=y, y2=y, class_="grid"),
            tag("text", f"{step * 10}", x=x, y=TOP + high + 18, class_="tick", text_anchor="middle"),
            tag("text", f"{step * 10}", x=LEFT - 8, y=y + 4, class_="tick", text_anchor="end"),
        ]
    middle = TOP + high / 2
    labels = [
        tag("text", x_label, x=LEFT + wide / 2, y=HEIGHT - 6, class_="axis", text_anchor="middle"),
        tag("text", y_label, x=14, y=middle, class_="axis", text_anchor="middle", transform=f"rotate(-90 14 {middle:g})"),
    ]
    curves = [
        tag("polyline", tag("title", line.name), points=_places(line, LEFT, TOP, wide, high), class_=f"curve {line.style}")
        for line in lines
    ]
    return tag(
        "svg",
        tag("title", title),
        *grid,
        *labels,
        *curves,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def small_chart(lines: Sequence[Line], title: str) -> Markup:
    """The same curves without numbers, for many side by side."""
    curves = [tag("polyline", points=_places(line, 1, 1, 118, 78), class_=f"curve {line.style}") for line in lines]
    frame = together(
        tag("rect", x=0.5, y=0.5, width=119, height=79, class_="frame"),
        tag("line", x1=60, x2=60, y1=1, y2=79, class_="grid"),
        tag("line", x1=1, x2=119, y1=40, y2=40, class_="grid"),
    )
    return tag(
        "svg", tag("title", title), frame, *curves, viewBox="0 0 120 80", role="img", aria_label=title, class_="chart small"
    )


def _places(line: Line, left: int, top: int, wide: int, high: int) -> str:
    return " ".join(f"{left + wide * x:.1f},{top + high * (1 - y):.1f}" for x, y in zip(line.x, line.y, strict=True))


def bar(fraction: float | int | None, style: str = "", mark: float | int | None = None) -> Markup:
    """A bar from 0 to 1 as wide as the room it is given, with a mark at another value where there is one."""
    if fraction is None:
        return tag("span", class_="bar none")
    inner = None if fraction <= 0 else tag("span", style=f"width:{100 * min(max(fraction, 0.0), 1.0):.2f}%")
    marked = None if mark is None else tag("i", style=f"left:{100 * min(max(mark, 0.0), 1.0):.2f}%")
    return tag("span", inner, marked, class_=f"bar {style}".strip())


def interval_chart(low: float, high: float, middle: float, reach: float) -> Markup:
    """A difference with its interval around a line at zero; the axis runs from -reach to +reach."""

    def place(value: float) -> float:
        return 180 + 172 * max(-1.0, min(1.0, value / reach)) if reach else 180.0

    sure = "better" if low > 0 else "worse" if high < 0 else "unsure"
    return tag(
        "svg",
        tag("line", x1=180, x2=180, y1=0, y2=20, class_="zero"),
        tag("line", x1=place(low), x2=place(high), y1=10, y2=10, class_="reach"),
        tag("line", x1=place(low), x2=place(low), y1=6, y2=14, class_="reach"),
        tag("line", x1=place(high), x2=place(high), y1=6, y2=14, class_="reach"),
        tag("circle", cx=place(middle), cy=10, r=4.5, class_="middle"),
        viewBox="0 0 360 20",
        class_=f"interval {sure}",
        role="img",
        aria_label=f"{points(middle)} points, from {points(low)} to {points(high)}",
    )
