"""Reading and writing weights: our own files, and those of other libraries, whose layout is found from their arrays alone."""

import re
from pathlib import Path

from thingstuff.checkpoints import (
    adelaidet,
    detectron2,
    hugging_face,
    mask2former,
    mmdetection,
    mmdetection_mask2former,
    mmdetection_solo,
    mmdetection_yolact,
    torchvision,
    yolact,
)
from thingstuff.checkpoints.files import build, shapes_of
from thingstuff.checkpoints.hugging_face_folder import read_arrays, settings_beside
from thingstuff.checkpoints.rules import convert
from thingstuff.errors import CheckpointError, ConfigError
from thingstuff.models.contract import Model
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing

# A layout is a file with LIBRARY, `detect(tensors)` and `describe(tensors, meta, name)`. The first that detects a file gets it,
# so the files of one family stand before the layouts of libraries that hold many.
LAYOUTS = (
    mmdetection_solo,
    mmdetection_mask2former,
    hugging_face,
    mask2former,
    adelaidet,
    yolact,
    mmdetection_yolact,
    torchvision,
    mmdetection,
    detectron2,
)

# Our own networks have a part of each; torchvision's have the first alone.
_OWN_PARTS = (("backbone.body.",), ("neck.", "pixel_decoder."))

# Names by which files of other families are known, tried before the layouts above.
_OTHER_FAMILIES = (
    (r"(attn_mask_probs|upscale_block\..+)", "EoMT"),
    (r"transformer\.(encoder|decoder)\..+", "a DETR-like network"),
    (r"(conv1_w|res2_0_branch2a_w|fc1000_w|pred_w)", "a Caffe2 network"),
)
_BACKBONE_ALONE = re.compile(r"(conv1|stem\.conv1|layer1\.0\.conv1|patch_embed\..+|features\.0\.0|conv_stem|stem_0)\.weight")


def load_foreign(path: str | Path) -> tuple[Model, Categories, Preprocessing]:
    """The model in a file of torchvision, detectron2 or MMDetection, with what its classes mean and the images it expects.

    Raises:
        CheckpointError: unsafe, broken, of a family not supported, or not fitting the network it describes. The file is named.
    """
    file = read_arrays(Path(path))
    name = str(path)
    if all(any(key.startswith(parts) for key in file.tensors) for parts in _OWN_PARTS):
        raise CheckpointError(
            f"{name}: its arrays are named as thingstuff names them, but its metadata, which says what network they are of, is "
            "missing; take the file that thingstuff wrote (Segmenter.save), not its arrays alone"
        )
    for pattern, family in _OTHER_FAMILIES:
        if any(re.fullmatch(pattern, key) for key in file.tensors):
            raise CheckpointError(f"{name}: is {family}, which is not supported yet")
    layout = next((layout for layout in LAYOUTS if layout.detect(file.tensors)), None)
    if layout is None:
        if any(_BACKBONE_ALONE.fullmatch(key) for key in file.tensors):
            raise CheckpointError(f"{name}: holds a backbone alone; it can start a training but segments nothing by itself")
        known, seen = ", ".join(dict.fromkeys(layout.LIBRARY for layout in LAYOUTS)), ", ".join(list(file.tensors)[:3])
        raise CheckpointError(f"{name}: its {len(file.tensors)} arrays ({seen} ...) are of no layout known here ({known})")
    try:
        # no other library here keeps settings in files beside the weights
        beside = settings_beside(file.path) if layout is hugging_face else {}
        description = layout.describe(file.tensors, file.meta | beside, name)
        shapes = shapes_of(description.model, description.config)
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}") from error
    tensors = convert(file.tensors, description.rules, shapes, name)
    return build(description.model, description.config, tensors), description.categories, description.preprocessing
