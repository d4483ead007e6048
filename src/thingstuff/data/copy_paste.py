"""Simple Copy-Paste (Ghiasi et al., 2021, arXiv:2012.07177, section 3): objects of one training image laid over another.

Where most images show one object, it is what teaches a network crowds and partly covered objects.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from thingstuff.data.transforms import Sample, tight_boxes
from thingstuff.structures.preprocessing import Targets

PASTED = 0.5  # probability of each object of the other image


def paste_objects(
    sample: Sample, other: Sample, is_thing: Bool[np.ndarray, " classes"], min_pixels: int, random: np.random.Generator
) -> Sample:
    """A random choice of the other sample's things, at least one of them, pasted onto a sample at the place where they are.

    Both are augmented views already, which is what moves and scales the pasted objects. What they cover is taken from the
    sample's own masks; objects left with fewer than `min_pixels` are dropped. Crowds and stuff are never pasted.
    """
    source, target = other.targets, sample.targets
    height, width = (min(pair) for pair in zip(source.size, target.size, strict=True))
    seen = source.masks[:, :height, :width].flatten(1).sum(dim=1) >= min_pixels
    things = torch.from_numpy(is_thing)[source.classes]
    candidates = (seen & things & ~source.is_crowd).nonzero().squeeze(1)
    if not len(candidates):
        return sample
    drawn = random.random(len(candidates)) < PASTED
    drawn[random.integers(len(candidates))] = True
    chosen = candidates[torch.from_numpy(drawn)]

    pasted = torch.zeros(len(chosen), *target.size, dtype=torch.bool)
    pasted[:, :height, :width] = source.masks[chosen, :height, :width]
    covered = pasted.any(dim=0)
    image = sample.image.copy()
    image[:height, :width][covered[:height, :width].numpy()] = other.image[:height, :width][covered[:height, :width].numpy()]
    left = target.masks & ~covered
    kept = (left.flatten(1).sum(dim=1) >= min_pixels).nonzero().squeeze(1)
    return Sample(image, _joined(target, left[kept], kept, source, pasted, chosen))


def _joined(target: Targets, left: Tensor, kept: Tensor, source: Targets, pasted: Tensor, chosen: Tensor) -> Targets:
    masks = torch.cat([left, pasted])
    return replace(
        target,
        boxes=tight_boxes(masks),
        classes=torch.cat([target.classes[kept], source.classes[chosen]]),
        masks=masks,
        is_crowd=torch.cat([target.is_crowd[kept], source.is_crowd[chosen]]),
    )
