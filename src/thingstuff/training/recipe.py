"""Every number of a training run, in one frozen value that is written beside its results."""

import math
from dataclasses import dataclass
from pathlib import Path

from thingstuff.data.transforms import Augmentation
from thingstuff.errors import ConfigError
from thingstuff.models.contract import Task
from thingstuff.segmenter import check_batch_size
from thingstuff.structures.bit_depth import check_bit_depth
from thingstuff.structures.preprocessing import LARGEST_SIDE

MIN_CROP = 32  # pixels: a smaller view has one cell of most levels
REFERENCE_BATCH = 16  # images a step that `learning_rate` is meant for


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how.

    Raises:
        ConfigError: a number outside its range.
    """

    data: str  # folder or COCO file
    model: str  # a name of the catalog, or a checkpoint to go on from
    out: str  # folder of the run
    split: str | None = None  # of the folder, to train on; None: "train" where the folder has one
    validation_split: str | None = None  # likewise "val"
    validation_data: str | None = None  # another folder or file; None: the same
    task: str | None = None  # "instance", "panoptic" or "semantic"; None: what the model gives, where the data has it
    image_dir: str | None = None  # folder of the photos; None: where the data leads to them
    validation_image_dir: str | None = None  # likewise of the validation data; None: as image_dir
    bit_depth: int | None = None  # bits of 16-bit images in use; None: as the checkpoint says, else the most that any needs
    short_side: int | None = None  # pixels; None: as the model says
    long_side: int | None = None
    shrink: bool | None = None  # whether larger images are made smaller, too; None: as the model says
    square: bool | None = None  # whether both sides become short_side; None: as the model says
    augmentation: Augmentation = Augmentation(horizontal_flip=0.5)
    backbone_weights: str | None = None  # a file, or "imagenet" for what timm publishes

    steps: int = 10_000
    batch_size: int = 4  # images a step and process
    accumulate: int = 1  # steps whose gradients are summed before the weights move
    optimizer: str = "adamw"  # or "muon", for kernels and matrices within the network, with NAdamW for the rest
    learning_rate: float = 1e-3  # at REFERENCE_BATCH images; the run's own follows from the real batch
    backbone_rate: float = (
        1.0  # factor on it for the backbone; where that is trained already, Mask2Former and MaskFormer take 0.1
    )
    freeze_levels: int = 0  # first levels of the backbone that stay as they are; 1 (C2) as detectron2 and MMDetection have it
    final_learning_rate: float = 0.01  # share of it that the cosine ends at
    warmup: int = 300  # steps
    weight_decay: float = 0.05  # of kernels and matrices
    clip_gradient: float = 5.0  # norm of all gradients together
    ema: float = 0.999  # decay of the averaged weights, which are the ones validated and kept
    precision: str = "no"  # "no", "bf16" or "fp16"
    loss_weights: tuple[tuple[str, float], ...] = ()  # by the loss's name; the paper's where not named

    validate_every: int = 1000  # steps
    save_every: int = 200  # steps; what a killed run loses at most
    max_detections: int = 100  # an image, in validation
    validation_images: int | None = None  # the first so many; None: all
    pictures: int = 3  # of predictions beside the truth, at each validation
    seed: int = 0
    workers: int = 0  # processes that prepare batches
    cache_megabytes: int = 512  # of decoded images, in each worker

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "validate_every", "save_every", "max_detections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "pictures", "workers", "cache_megabytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.freeze_levels <= 4:
            raise ConfigError(f"freeze_levels must be from 0 to 4, the levels C2 to C5, got {self.freeze_levels}")
        check_bit_depth(self.bit_depth)
        check_batch_size(self.batch_size)
        for name in ("short_side", "long_side"):
            side = getattr(self, name)
            if side is not None and not 1 <= side <= LARGEST_SIDE:
                raise ConfigError(f"{name} must be from 1 to {LARGEST_SIDE} pixels, got {side}; cut larger images into parts")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to below 2**63, got {self.seed}")
        for name in ("learning_rate", "backbone_rate", "clip_gradient"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be from 0 (no averaging) to below 1, got {self.ema}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ConfigError(f"final_learning_rate is a share from 0 to 1, got {self.final_learning_rate}")
        if self.augmentation.crop is not None and min(self.augmentation.crop) < MIN_CROP:
            raise ConfigError(f"crop must be at least {MIN_CROP} pixels a side, got {min(self.augmentation.crop)}")
        if self.task not in (None, *(task.value for task in Task)):
            raise ConfigError(f"task must be one of {', '.join(task.value for task in Task)}, got {self.task!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f'optimizer must be "adamw" or "muon", got {self.optimizer!r}')
        if self.precision not in ("no", "bf16", "fp16"):
            raise ConfigError(f'precision must be "no", "bf16" or "fp16", got {self.precision!r}')

    @property
    def folder(self) -> Path:
        return Path(self.out)

    def learning_rate_at(self, step: int, processes: int = 1) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983).

        It grows with the square root of the images a weight update really sees, the rule for Adam (Malladi et al., 2022,
        arXiv:2205.10287, section 4).
        """
        batch = self.batch_size * self.accumulate * processes
        peak = self.learning_rate * math.sqrt(batch / REFERENCE_BATCH)
        if step < self.warmup:
            return peak * (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / max(self.steps - self.warmup, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return peak * (self.final_learning_rate + (1 - self.final_learning_rate) * cosine)
