"""Instance, panoptic and semantic segmentation in one pip install.

import thingstuff as ts
model = ts.load("people")
segments = model.predict("street.jpg")
segments.save("street-segmented.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thingstuff.bundled import bundled_models
    from thingstuff.errors import ThingstuffError
    from thingstuff.evaluation.panoptic_quality import PanopticQuality
    from thingstuff.segmenter import Segmenter, load
    from thingstuff.structures.categories import Categories, Category
    from thingstuff.structures.images import read_image
    from thingstuff.structures.masks import Mask
    from thingstuff.structures.panoptic import PanopticMap
    from thingstuff.structures.segments import Segment, Segments

__version__ = "0.1.0"

# Names and where they live; torch is imported when the first of them that needs it is asked for.
_HOMES = {
    "ThingstuffError": "thingstuff.errors",
    "PanopticQuality": "thingstuff.evaluation.panoptic_quality",
    "Segmenter": "thingstuff.segmenter",
    "bundled_models": "thingstuff.bundled",
    "load": "thingstuff.segmenter",
    "Categories": "thingstuff.structures.categories",
    "Category": "thingstuff.structures.categories",
    "read_image": "thingstuff.structures.images",
    "Mask": "thingstuff.structures.masks",
    "PanopticMap": "thingstuff.structures.panoptic",
    "Segment": "thingstuff.structures.segments",
    "Segments": "thingstuff.structures.segments",
}

__all__ = [
    "Categories",
    "Category",
    "Mask",
    "PanopticMap",
    "PanopticQuality",
    "Segment",
    "Segmenter",
    "Segments",
    "ThingstuffError",
    "__version__",
    "bundled_models",
    "load",
    "predict",
    "read_image",
]


def predict(images: Any, model: str = "people", **options: Any) -> Any:
    """Segments of an image, or of each of a list, by a bundled model or a checkpoint file; options as for ``Segmenter.predict``.

    The model is loaded each time; for more than one call use ``load``.
    """
    from thingstuff.segmenter import load

    return load(model).predict(images, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thingstuff' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
