"""The Python in docs/ runs, from top to bottom of each page, on the files that it names."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff import cli
from thingstuff.models.catalog import CATALOG
from thingstuff.segmenter import Segmenter
from thingstuff.structures.categories import Categories, Category

DOCS = Path(__file__).parents[2] / "docs"
ROADS = Categories((Category(1, "car"), Category(2, "road", is_thing=False)))
MODELS = {  # the files that pages name -> what a test can wait for
    "panoptic_fpn_R_50_3x.pkl": "panoptic-fpn-tiny",
    "model_final_94dc52.pkl": "mask2former-tiny",
    "my-yolact.safetensors": "yolact-tiny",
}


@pytest.mark.parametrize("page", ["data.md", "images.md", "one-stage.md", "panoptic.md"])
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(photo).save("street.jpg")
    Image.fromarray(photo).save("stack.tif", save_all=True, append_images=[Image.fromarray(photo)])
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S))
    for file, name in MODELS.items():
        if file in code:
            kind, config, preprocessing = CATALOG[name]
            saved = Path(file).with_suffix(".safetensors").name
            Segmenter(kind(kind.config_for(config, ROADS)), ROADS, preprocessing).save(saved)
            code = code.replace(file, saved)
    if "my-data" in code:
        assert cli.main(["data", "make-shapes", "my-data", "--images", "2", "--size", "48x32"]) == 0
    exec(compile(code, page, "exec"), {})
    if page == "images.md":
        assert sorted(path.name for path in tmp_path.glob("stack-*")) == ["stack-001.tif", "stack-002.tif"]
