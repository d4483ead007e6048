"""Make docs/images/shapes.jpg: four drawn scenes, and their truth below them.

python tools/shapes_picture.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from thingstuff import visuals
from thingstuff.data.shapes import scenes

NUMBERS = (0, 2, 5, 7)  # of seed 0
SIDE = 400  # pixels of each picture's width
TARGET = Path(__file__).parents[1] / "docs" / "images" / "shapes.jpg"


def main() -> None:
    columns = []
    for number in NUMBERS:
        scene = next(scenes(1, size=(480, 640), first=number))
        truth = visuals.overlay(scene.image, scene.panoptic.to_segments(), scale=1)
        columns.append(np.concatenate([scene.image, truth]))
    sheet = Image.fromarray(np.concatenate(columns, axis=1))
    sheet = sheet.resize((SIDE * len(NUMBERS), round(SIDE * len(NUMBERS) * sheet.height / sheet.width)), Image.Resampling.LANCZOS)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, quality=85)
    print(f"{TARGET}: {sheet.width} x {sheet.height}, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
