"""Batches for training.

Training sees one endless stream: a fresh shuffle of the data set for each epoch, one after the other, cut into steps. Whole
images come in steps of upright or of wide ones, so that little of a batch is padding. What a step holds follows from (seed,
step) and what happens to an image from (seed, epoch, index of the image) alone, so neither the number of workers nor an
interruption changes a run, and several processes share each step without talking to each other.
"""

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from thingstuff.data.copy_paste import paste_objects
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.data.transforms import Augmentation, Sample, augment, check_largest, check_min_pixels
from thingstuff.errors import AnnotationError, ConfigError, ThingstuffError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS, read_image
from thingstuff.structures.preprocessing import ImageBatch, Preprocessing, Targets

ORDER, VIEW = 0, 1  # what a random state is for, so that no two uses share one


class ImageCache:
    """Decoded images kept in memory until `byte_limit` is full; 0 keeps none. Later images are read from disk each time."""

    def __init__(self, byte_limit: int = 0, max_pixels: int = DEFAULT_MAX_PIXELS, bit_depth: int | None = None):
        self.byte_limit = byte_limit
        self.max_pixels = max_pixels
        self.bit_depth = bit_depth
        self.bytes_held = 0
        self._images: dict[int, np.ndarray] = {}

    def image_of(self, record: Record) -> np.ndarray:
        """The record's pixels, height width 3, uint8 RGB; not to be written to.

        Raises:
            ImageError: the file can't be read.
            AnnotationError: the record has no file, or another size than its file.
        """
        held = self._images.get(record.image_id)
        if held is not None:
            return held
        if record.path is None:
            raise AnnotationError(f"image {record.image_id}: has no file; open the data set with its images")
        image = read_image(record.path, self.max_pixels, self.bit_depth)
        if image.shape[:2] != record.size:
            raise AnnotationError(f"{record.path}: has height and width {image.shape[:2]}, its annotations say {record.size}")
        if self.bytes_held + image.nbytes <= self.byte_limit:
            self.bytes_held += image.nbytes
            self._images[record.image_id] = image
        return image


class TrainingLoader:
    """Augmented training batches, the same in every run with the same seed."""

    def __init__(
        self,
        dataset: InstanceDataset,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        processes: int = 1,
        cache_bytes: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ):
        """
        Args:
            batch_size: images of one step in one process; a step is `batch_size * processes` images.
            workers: processes that prepare batches beside the training; 0 prepares them in between.
            rank: which of the `processes` this one is, from 0.
            cache_bytes: decoded images kept in memory, by each worker of its own.
        """
        if not len(dataset):
            raise AnnotationError(f"{dataset.source or 'the data set'}: holds no image to train on")
        if batch_size < 1 or processes < 1 or not 0 <= rank < processes or workers < 0:
            raise ConfigError(
                "need batch_size >= 1, workers >= 0 and 0 <= rank < processes, "
                f"got {batch_size=}, {workers=}, {rank=}, {processes=}"
            )
        check_largest(dataset, augmentation, preprocessing)
        check_min_pixels(dataset, augmentation, preprocessing)
        self.dataset, self.preprocessing = dataset, preprocessing
        self.batch_size, self.seed, self.workers, self.rank, self.processes = batch_size, seed, workers, rank, processes
        cache = ImageCache(cache_bytes, max_pixels, preprocessing.bit_depth)
        self._views = _Views(dataset, augmentation, preprocessing, seed, cache)
        self._is_wide = np.array([record.size[1] > record.size[0] for record in dataset], np.bool_)
        if augmentation.crop is not None or augmentation.quarter_turn or preprocessing.square:
            self._is_wide[:] = False  # views are not shaped as their images are
        self._orders: dict[int, np.ndarray] = {}  # by epoch, of the step asked for last: the next is mostly of the same

    def positions(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index of the image) of each image of a step, this process's share alone."""
        first = (step * self.processes + self.rank) * self.batch_size
        epochs_and_places = [divmod(position, len(self.dataset)) for position in range(first, first + self.batch_size)]
        epochs = {epoch for epoch, _ in epochs_and_places}
        self._orders = {epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch) for epoch in epochs}
        return [(epoch, int(self._orders[epoch][place])) for epoch, place in epochs_and_places]

    def _order(self, epoch: int) -> np.ndarray:
        """The images of an epoch, shuffled so that most steps have upright or wide images alone.

        What is left of either when whole steps are made of it comes last, and the first images complete the step that the epoch
        before has begun.
        """
        random = np.random.default_rng((self.seed, ORDER, epoch))
        order = random.permutation(len(self.dataset))
        step = self.batch_size * self.processes
        begun, order = np.split(order, [-epoch * len(order) % step])
        wide = self._is_wide[order]
        kinds = [order[wide], order[~wide]]
        steps = [images.reshape(-1, step) for images in (kind[: len(kind) // step * step] for kind in kinds)]
        left = [kind[len(kind) // step * step :] for kind in kinds]
        return np.concatenate([begun, random.permutation(np.concatenate(steps)).ravel(), *left])

    def batches(self, start_step: int = 0) -> Generator[tuple[ImageBatch, list[Targets]], None, None]:
        """The batches of steps start_step, start_step + 1, ... without end. Closing the iterator ends the workers.

        Raises:
            ImageError, AnnotationError: an image can't be read, or isn't what its annotations say; the file is named.
        """
        loader = DataLoader(
            self._views,
            batch_sampler=_Steps(self, start_step),
            num_workers=self.workers,
            worker_init_fn=_leave_ctrl_c_to_the_run,
            collate_fn=list,  # plain arrays, which pass between processes without shared memory
            generator=torch.Generator().manual_seed(self.seed),  # else the loader draws from, and so moves, the global one
        )
        for packed in loader:
            samples = []
            for item in packed:
                if isinstance(item, ThingstuffError):
                    raise item
                samples.append(item.unpack())
            yield collate(samples, self.preprocessing)


def _leave_ctrl_c_to_the_run(_: int) -> None:
    """A terminal sends it to workers, too, but a run that stops after its step needs them until then, and ends them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: Sequence[Sample], preprocessing: Preprocessing) -> tuple[ImageBatch, list[Targets]]:
    """Normalise and pad the samples' images to one batch, at the size they have."""
    batch = preprocessing.batch([sample.image for sample in samples], resize=False)
    return batch, [replace(sample.targets, pad_multiple=preprocessing.pad_multiple) for sample in samples]


class _Steps(Sampler[list[tuple[int, int]]]):
    def __init__(self, loader: TrainingLoader, start_step: int):
        self.loader, self.start_step = loader, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.loader.positions(step)
            step += 1


@dataclass(frozen=True, eq=False)
class _Packed:
    """A sample on its way between processes: eight mask pixels to a byte."""

    image: np.ndarray
    image_id: int
    boxes: np.ndarray
    classes: np.ndarray
    bits: np.ndarray
    is_crowd: np.ndarray

    @classmethod
    def pack(cls, sample: Sample) -> "_Packed":
        targets = sample.targets
        bits = np.packbits(targets.masks.numpy(), axis=-1)
        return cls(sample.image, targets.image_id, targets.boxes.numpy(), targets.classes.numpy(), bits, targets.is_crowd.numpy())

    def unpack(self) -> Sample:
        height, width = self.image.shape[:2]
        masks = np.unpackbits(self.bits, axis=-1, count=width).view(bool)
        targets = Targets(
            image_id=self.image_id,
            size=(height, width),
            boxes=torch.from_numpy(self.boxes),
            classes=torch.from_numpy(self.classes),
            masks=torch.from_numpy(masks),
            is_crowd=torch.from_numpy(self.is_crowd),
        )
        return Sample(self.image, targets)


class _Views(Dataset["_Packed | ThingstuffError"]):
    """(epoch, index of the image) to an augmented view; errors come back as values, since workers garble those they raise."""

    def __init__(
        self, dataset: InstanceDataset, augmentation: Augmentation, preprocessing: Preprocessing, seed: int, cache: ImageCache
    ):
        self.dataset, self.augmentation, self.preprocessing, self.seed, self.cache = (
            dataset,
            augmentation,
            preprocessing,
            seed,
            cache,
        )
        self.is_thing = np.array([category.is_thing for category in dataset.categories], np.bool_)
        self.pasted_from = np.array(  # the images that have a thing to paste
            [
                position
                for position, record in enumerate(dataset)
                if any(self.is_thing[found.class_] and not found.is_crowd for found in record.objects)
            ],
            np.int64,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> "_Packed | ThingstuffError":
        epoch, image = index
        random = np.random.default_rng((self.seed, VIEW, epoch, image))
        try:
            sample = self._view(image, random)
            if self.augmentation.copy_paste and len(self.pasted_from) and random.random() < self.augmentation.copy_paste:
                other = self._view(int(random.choice(self.pasted_from)), random)
                sample = paste_objects(sample, other, self.is_thing, self.augmentation.min_pixels, random)
            return _Packed.pack(sample)
        except ThingstuffError as error:
            return error

    def _view(self, image: int, random: np.random.Generator) -> Sample:
        record = self.dataset[image]
        return augment(self.cache.image_of(record), record, self.augmentation, self.preprocessing, random)
