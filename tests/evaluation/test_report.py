"""The report's page: whole, escaped, and right in what it says."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from thingstuff.evaluation.mistakes import KINDS, Mistake
from thingstuff.evaluation.report import Picture, render
from thingstuff.evaluation.report.classes import most_confused
from thingstuff.evaluation.report.figures import count, percent, points
from thingstuff.evaluation.report.markup import tag
from thingstuff.evaluation.report.pictures import outline, style_of, words_of
from thingstuff.evaluation.report.sections import KINDS as WORDS
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

HOSTILE = "<script>alert(1)</script>\"'&\x00\ud800"


def segments(*squares: tuple[int, int, int, int], overlapping: bool = True, name: str = "disk") -> Segments:
    """Of a 20 x 30 image; squares are top, left, bottom, right."""
    masks = []
    for top, left, bottom, right in squares:
        dense = np.zeros((20, 30), np.bool_)
        dense[top:bottom, left:right] = True
        masks.append(Mask.from_dense(dense))
    return Segments(
        size=(20, 30),
        categories=Categories((Category(1, name),)),
        classes=np.zeros(len(masks), np.int64),
        scores=np.full(len(masks), 0.75, np.float32),
        boxes=np.array([mask.box for mask in masks], np.float32).reshape(-1, 4),
        rles=tuple(masks),
        overlapping=overlapping,
    )


def report(name: str = "disk", **changes: Any) -> dict[str, Any]:
    figures = {"AP": 0.5, "AP50": 0.75, "AP75": 0.25, "APs": None, "APm": 0.5, "APl": 0.5, "AR100": 0.625}
    recall = [index / 100 for index in range(101)]
    lines = {key: [1 - x for x in recall] for key in ("AP", "AP50", "AP75")}
    kinds = {kind: {"count": 0, "spurious": 0, "missed": 0, "cost": 0.0} for kind in KINDS}
    kinds["missed"] = {"count": 2, "spurious": 0, "missed": 2, "cost": 0.125}
    return {
        "format": 1,
        "version": "1.2.3",
        "model": "nuclei",
        "data": "my-data",
        "split": "val",
        "images": 3,
        "failed": 0,
        "max_detections": 300,
        "mask": figures,
        "box": figures,
        "boundary": figures,
        "objects": 10,
        "classes": {name: {"objects": 10, "is_thing": True}},
        "per_class": {name: {"box": 0.5, "mask": 0.5, "boundary": 0.5}},
        "errors": {
            **{"metric": "AP50", "value": 0.75, "score": 0.5, "truths": 10, "predictions": 9, "matched": 8},
            "kinds": kinds,
        },
        "curves": {"recall": recall, "mask": {"overall": lines, "per_class": {name: lines}}},
        "confusion": {"score": 0.5, "iou": 0.5, "classes": [name], "counts": [[8, 2], [1, 0]]},
        "intervals": {"samples": 1000, "mask": {"AP": [0.4, 0.6]}},
        **changes,
    }


def panoptic() -> dict[str, Any]:
    row = {"pq": 0.5, "sq": 0.8, "rq": 0.625, "n": 1, "tp": 5, "fp": 3, "fn": 3}
    groups = {"All": row, "Things": row, "Stuff": {**row, "pq": None, "sq": None, "rq": None, "n": 0}}
    return report(
        pq=groups,
        boundary_pq=groups,
        semantic={"mIoU": 0.7, "fwIoU": 0.8, "pixel_accuracy": 0.9},
        per_class={
            "disk": {**row, "iou": 0.7},
            "sky": {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0, "iou": None},
        },
        mask=None,
        box=None,
        boundary=None,
        curves=None,
        confusion=None,
        intervals=None,
    )


def semantic() -> dict[str, Any]:
    gone = dict.fromkeys(("mask", "box", "boundary", "curves", "errors"))
    return report(
        semantic={"mIoU": 0.7, "fwIoU": 0.8, "pixel_accuracy": 0.9, "mean_accuracy": 0.85, "n": 2},
        classes={"disk": {"pixels": 10, "is_thing": True}, "sky": {"pixels": 30, "is_thing": False}},
        per_class={"disk": {"iou": 0.625}, "sky": {"iou": 0.775}},
        confusion={"classes": ["disk", "sky"], "counts": [[8, 1, 1], [3, 27, 0]]},
        intervals={"samples": 1000, "semantic": {"mIoU": [0.6, 0.8]}},
        objects=None,
        **gone,
    )


def picture(name: str = "a.png", **changes: Any) -> Picture:
    given = {"photo": None, "truth": segments((2, 2, 8, 8), (10, 10, 18, 18)), "prediction": segments((2, 3, 8, 9))}
    mistakes = [Mistake("missed", None, 1, 0.0)]
    return Picture(**{"name": name, "mistakes": mistakes, "quality": 0.5, **given, **changes})


def texts(page: str) -> str:
    """What a reader sees, words one space apart."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []
            self.hidden = 0

        def handle_starttag(self, name: str, attributes: Any) -> None:
            self.hidden += name in ("style", "script")

        def handle_endtag(self, name: str) -> None:
            self.hidden -= name in ("style", "script")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.found.append(data)

    reader = Reader()
    reader.feed(page)
    return " ".join("".join(f"{text} " for text in reader.found).split())


@pytest.mark.parametrize("values", [report(), panoptic(), semantic()])
def test_every_element_that_opens_closes(values):
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_: list[str] = []

        def handle_starttag(self, name: str, attributes: Any) -> None:
            if name not in ("meta", "link", "img", "br", "col", "input"):
                self.open_.append(name)

        def handle_startendtag(self, name: str, attributes: Any) -> None:
            pass

        def handle_endtag(self, name: str) -> None:
            assert self.open_.pop() == name

    checker = Checker()
    checker.feed(render(values, [picture()]))
    assert checker.open_ == []


@pytest.mark.parametrize("values", [report(), panoptic(), semantic()])
def test_nothing_is_fetched_from_anywhere(values):
    page = render(values, [picture()])
    addresses = re.findall(r"""(?:src|href|action|data|poster)=["']([^"']*)""", page)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in unescape(page)


def test_names_cannot_become_code():
    values = report(name=HOSTILE, model=HOSTILE, data=HOSTILE)
    page = render(values, [picture(HOSTILE, truth=segments((2, 2, 8, 8), (9, 9, 12, 12), name=HOSTILE))])
    assert page.count("<script>") == 1  # ours
    assert "alert(1)" in texts(page)
    page.encode("utf-8")


def test_the_figures_stand_at_the_top_with_their_range():
    seen = texts(render(report()))
    assert "nuclei on my-data, split val" in seen
    assert "3 images · 10 annotated objects · 1 class" in seen
    assert "50.0 mask AP 40.0 to 60.0" in seen
    assert "Counting predictions with a score of at least 0.5, 8 of 10 annotated objects (80 %) are found" in seen
    assert "1 of 9 predictions (11 %) match nothing" in seen
    assert "(2 cases). Without it AP50 would be 12.5 points higher" in seen


def test_another_number_of_detections_than_coco_has_is_stated():
    assert "the 300 best predictions of an image and class count (by COCO's rule 100)" in texts(render(report()))


def test_panoptic_reports_have_their_own_figures():
    seen = texts(render(panoptic()))
    assert "50.0 PQ 80.0 SQ" in seen
    assert "70.0 mIoU" in seen
    assert "1 class without any example has no value" in seen
    assert "Precision and recall" not in seen


def test_reports_of_class_maps_have_figures_of_pixels_alone():
    seen = texts(render(semantic(), [picture(mistakes=[])]))
    assert "70.0 mIoU 60.0 to 80.0" in seen
    assert "90.0 pixel accuracy" in seen
    assert "Among classes, the strongest is sky (IoU 77.5), the weakest disk (62.5)." in seen
    assert "disk 80 10 10 sky 10 90 ·" in seen  # 8, 1 and 1 of 10 pixels; 3 and 27 of 30
    assert "disk taken for missed: 1 (10 %)" in render(semantic())
    for word in ("PQ", "AP", "objects", "mistake", "nothing annotated"):
        assert word not in seen


def test_a_report_of_nothing_is_a_page_too():
    empty = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"))
    values = report(
        **{"mask": empty, "box": empty, "boundary": empty, "per_class": {}, "classes": {}, "images": 0, "objects": 0},
        **{"errors": None, "curves": {"recall": [], "mask": {"overall": None, "per_class": {}}}, "confusion": None},
        intervals={"samples": 1000},
    )
    assert "0 images" in texts(render(values))


def test_each_mistake_is_marked_on_both_sides():
    truth, prediction = segments((2, 2, 8, 8), (10, 10, 18, 18)), segments((2, 3, 8, 9), (12, 20, 18, 26))
    mistakes = [Mistake("missed", None, 1, 0.0), Mistake("background", 1, None, 0.0), Mistake("duplicate", 0, 0, 0.7)]
    page = render(report(), [picture(truth=truth, prediction=prediction, mistakes=mistakes)])
    left, right = re.findall(r'<figure><div class="photo">.*?</figure>', page, flags=re.DOTALL)
    for side, whole, ghost in ((left, "missed", "background"), (right, "background", "missed")):
        assert side.count(f'class="kind-{whole}"') == 2  # its outline and the plate of its number
        assert side.count(f'class="kind-{ghost} ghost"') == 1
        assert side.count('class="kind-duplicate"') == 2
    assert "missed: disk annotated" in texts(page)


def test_an_image_without_its_photo_is_drawn_on_grey():
    assert "data:image/svg+xml;base64," in render(report(), [picture()])


def test_a_mistake_in_words_names_classes_score_and_iou():
    truth, prediction = segments((2, 2, 8, 8)), segments((2, 3, 8, 9))
    assert words_of(Mistake("coarse mask", 0, 0, 0.44), truth, prediction) == (
        "coarse mask: disk 0.75 predicted, disk annotated, IoU 0.44"
    )
    assert words_of(Mistake("missed", None, 0, 0.2), truth, prediction) == "missed: disk annotated, best IoU 0.20"


def test_an_outline_goes_round_holes_too():
    dense = np.zeros((6, 6), np.bool_)
    dense[1:5, 1:5] = True
    dense[2:3, 2:3] = False
    path = outline(Mask.from_dense(dense))
    assert path.count("M") == path.count("z") == 2
    assert path.startswith("M1 1")


def test_a_coarse_outline_keeps_what_is_smaller_than_its_cells():
    dense = np.zeros((40, 40), np.bool_)
    dense[21, 13] = True
    assert outline(Mask.from_dense(dense), step=10) == "M10 20h10v10h-10z"


def test_every_kind_of_mistake_has_words_and_a_colour():
    from importlib.resources import files

    style = files("thingstuff.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")
    for kind in KINDS:
        assert WORDS[kind]
        assert f".{style_of(kind)} {{" in style


def test_of_many_classes_those_confused_most_are_shown():
    table = np.diag([50, 40, 30, 20, 0]).tolist()
    table[1][3] = 7
    table[2][0] = 2
    assert most_confused(table, 2) == [1, 3]
    assert most_confused(table, 9) == [0, 1, 2, 3]


def test_numbers_are_written_as_people_read_them():
    assert (percent(0.12345), percent(None)) == ("12.3", "\N{EN DASH}")
    assert (points(0.012), points(-0.012), points(0.0)) == ("+1.2", "\N{MINUS SIGN}1.2", "\N{PLUS-MINUS SIGN}0.0")
    assert count(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b", tag("b", "c")) == "<p>a &lt; b<b>c</b></p>"
    assert tag("a", href='"x"', hidden=True, id=None) == '<a href="&quot;x&quot;" hidden></a>'
