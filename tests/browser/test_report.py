"""`thingstuff evaluate` as a user types it, and its report.html as a reader opens it: in a browser, without a network."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thingstuff import cli
from thingstuff.structures.masks import Mask

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
SIZE = (60, 80)  # height, width of the drawn images


def box_mask(top: int, left: int, bottom: int, right: int) -> Mask:
    dense = np.zeros(SIZE, np.bool_)
    dense[top:bottom, left:right] = True
    return Mask.from_dense(dense)


def row(mask: Mask, **more: Any) -> dict[str, Any]:
    left, top, right, bottom = mask.box
    return {"bbox": [left, top, right - left, bottom - top], "segmentation": mask.to_coco(), **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs judged on three images: the reports `a` and `b`, and the comparison of the two."""
    home = tmp_path_factory.mktemp("report")
    (home / "data" / "images").mkdir(parents=True)
    left, right = box_mask(10, 10, 30, 30), box_mask(10, 40, 30, 70)
    images, annotations, a, b = [], [], [], []
    for number in (1, 2, 3):
        name = f"{number}.png" if number > 1 else f"{number} <b>&.png"
        Image.new("RGB", SIZE[::-1], (40 * number, 90, 120)).save(home / "data" / "images" / name)
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for class_, mask in ((1, left), (2, right)):
            annotations.append(row(mask, id=len(annotations) + 1, image_id=number, category_id=class_, iscrowd=0, area=mask.area))
        a.append(row(left, image_id=number, category_id=2, score=0.9))  # the wrong class; the other one is missed
        b += [row(left, image_id=number, category_id=1, score=0.9), row(right, image_id=number, category_id=2, score=0.8)]
    categories = [{"id": 1, "name": HOSTILE}, {"id": 2, "name": "square"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (home / "data" / "instances.json").write_text(json.dumps(truth))
    for name, rows in (("a", a), ("b", b)):
        (home / f"{name}.json").write_text(json.dumps(rows))
        words = ("evaluate", "--predictions", home / f"{name}.json", "--data", home / "data", "--out", home / name)
        assert cli.main([str(word) for word in words]) == 0
    assert cli.main(["evaluate", "--compare", str(home / "a"), str(home / "b"), "--out", str(home / "both")]) == 0
    return home


@dataclass
class Seen:
    """A page, and what happened while it opened."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Any, folder: Path, request: pytest.FixtureRequest) -> Iterator[Seen]:
    file, width, scheme = getattr(request, "param", ("a/report.html", 1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    context.set_default_timeout(120_000)
    seen = Seen(context.new_page())
    seen.page.on("request", lambda made: seen.requests.append(made.url))
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.goto((folder / file).as_uri())
    yield seen
    context.close()


def test_the_pictures_are_there(opened: Seen):
    widths = opened.page.eval_on_selector_all("article img", "images => images.map(image => image.naturalWidth)")
    assert widths == [80] * 6  # truth and prediction of three images
    assert opened.page.locator("article .marks path").count() >= 6


@pytest.mark.parametrize("opened", [("a/report.html", 1280, "light"), ("both/compare.html", 1280, "light")], indirect=True)
def test_nothing_is_asked_of_the_network_and_nothing_complains(opened: Seen):
    opened.page.mouse.wheel(0, 20_000)
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.page.url]
    assert opened.complaints == []


def test_a_name_that_is_code_stays_text(opened: Seen):
    assert "on data" in opened.page.title()
    assert opened.page.locator("th bdi", has_text="onerror").first.is_visible()
    assert opened.page.locator("article h3", has_text="1 <b>&.png").count() == 1


@pytest.mark.parametrize("opened", [("a/report.html", 360, "dark"), ("both/compare.html", 360, "dark")], indirect=True)
def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(opened: Seen):
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    shade = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in shade.strip("rgb()").split(",")) < 60


def test_a_click_hides_a_kind_of_mistake_and_another_shows_it(opened: Seen):
    marks = opened.page.locator(".marks .kind-missed, .marks .kind-wrong-class")
    button = opened.page.locator(".filters button").first
    before = sum(mark.is_visible() for mark in marks.all())
    button.click()
    assert sum(mark.is_visible() for mark in marks.all()) < before
    button.click()
    assert sum(mark.is_visible() for mark in marks.all()) == before


def test_a_click_on_a_heading_sorts_the_classes(opened: Seen):
    button = opened.page.locator("#classes thead button", has_text="class")
    button.click()
    first = opened.page.locator("#classes tbody th").first
    assert opened.page.locator("#classes th[aria-sort=ascending]").count() == 1
    name = first.inner_text()
    button.click()
    assert first.inner_text() != name


def test_a_click_on_a_picture_shows_it_large(opened: Seen):
    opened.page.locator("article .photo").first.click()
    assert opened.page.locator("dialog[open] .photo img").bounding_box()["width"] > 1000
    opened.page.locator("dialog").click()
    assert opened.page.locator("dialog[open]").count() == 0


@pytest.mark.parametrize("opened", [("both/compare.html", 1280, "light")], indirect=True)
def test_the_comparison_says_which_is_better(opened: Seen):
    assert opened.page.locator("h1").inner_text() == "B is better: +100.0 mask AP"
    assert opened.page.locator("svg.interval.better").count() >= 4
