"""Make docs/images/demo.png: what the bundled models find in the demo images, in rows.

python tools/demo_picture.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from thingstuff import demo, load, visuals

ROWS = (
    ("astronaut", "camera", "fluorescence-dense"),
    ("histology-smear", "fluorescence-clusters", "histology-tissue", "brightfield"),
)
WIDTH = 1600  # pixels of the sheet
GAP = 8  # pixels of white between pictures
TARGET = Path(__file__).parents[1] / "docs" / "images" / "demo.png"


def row_of(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures side by side at one height, as wide as the sheet."""
    room = WIDTH - GAP * (len(pictures) - 1)
    height = round(room / sum(picture.shape[1] / picture.shape[0] for picture in pictures))
    row = Image.new("RGB", (WIDTH, height), "white")
    left = 0
    for number, picture in enumerate(pictures):
        last = number == len(pictures) - 1
        width = WIDTH - left if last else round(height * picture.shape[1] / picture.shape[0])
        row.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        left += width + GAP
    return row


def main() -> None:
    drawn: dict[str, np.ndarray] = {}
    for kind in ("people", "nuclei"):
        model = load(kind)
        for path in demo.images(kind):
            segments = model.predict(path)
            assert segments.image is not None
            drawn[path.stem] = visuals.overlay(segments.image, segments, labels=False)
            print(f"{path.stem}: {visuals.describe(segments)}")
    rows = [row_of([drawn[name] for name in names]) for names in ROWS]
    sheet = Image.new("RGB", (WIDTH, sum(row.height for row in rows) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, optimize=True)
    print(f"{TARGET}: {sheet.width} x {sheet.height}, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
