"""HTML and SVG as values: every text is escaped unless it is `Markup` already, so no name in a data set can become code."""

from html import escape

_EMPTY_ELEMENTS = frozenset({"br", "col", "img", "input", "link", "meta", "path", "line", "rect", "circle", "polyline"})


class Markup(str):
    """Text that is HTML already, made by `tag` alone."""

    __slots__ = ()


Child = str | int | float | None


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` is class and `stroke_width` stroke-width; None and False leave one out, True gives it bare."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(_text(value))}"')
    opening = f"<{' '.join(parts)}>"
    if name in _EMPTY_ELEMENTS and not children:
        return Markup(opening if name in ("br", "col", "img", "input", "link", "meta") else f"{opening[:-1]}/>")
    return Markup(f"{opening}{together(*children)}</{name}>")


def together(*children: Child) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup(
        "".join(child if isinstance(child, Markup) else escape(_text(child)) for child in children if child is not None)
    )


def name_tag(text: str) -> Markup:
    """A name that others chose: isolated, so that right-to-left letters in it don't turn the words around it."""
    return tag("bdi", text)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    # half characters, which file names can hold, have no place in UTF-8; neither have control characters in HTML
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter >= " " or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text)
