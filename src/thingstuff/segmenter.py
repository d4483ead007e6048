"""The front door: a network with its categories and its image preprocessing, from a name or a file to segments.

name or file -> load -> Segmenter; image -> Preprocessing -> ImageBatch -> network -> Segments
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch

from thingstuff.bundled import bundled_models
from thingstuff.checkpoints import load_foreign
from thingstuff.checkpoints.files import is_own_format, read, save
from thingstuff.errors import CheckpointError, ConfigError, ImageError, SizeError
from thingstuff.models.contract import Model, Task, own_task
from thingstuff.structures.categories import Categories
from thingstuff.structures.images import DEFAULT_MAX_PIXELS, read_image
from thingstuff.structures.preprocessing import ImageBatch, Preprocessing
from thingstuff.structures.segments import Segments

LARGEST_BATCH = 1024  # images together; more is a slip of the finger that would end in a full memory
SHOWN_SCORE = 0.5  # from which an instance is shown where nobody says from which


class Segmenter:
    """A network ready to use, in evaluation mode on its device.

    Args:
        model: answers ``model(images)`` and ``model.segments(predictions, sizes, categories, thresholds)``.
        categories: what the model's classes mean; may be replaced by as many others.
        preprocessing: how an image becomes the network's input.
        name: for people: the bundled name or the file it came from.

    Raises:
        SizeError: the model has more or fewer classes than there are categories.
    """

    def __init__(self, model: Model, categories: Categories, preprocessing: Preprocessing, name: str = ""):
        # convolutions of light backbones run faster on a CPU when channels lie next to each other
        self.model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.categories = categories
        self.preprocessing = preprocessing
        self.name = name

    @property
    def categories(self) -> Categories:
        return self._categories

    @categories.setter
    def categories(self, categories: Categories) -> None:
        if len(categories) != self.model.config.classes:
            raise SizeError(f"{len(categories)} categories for the model's {self.model.config.classes} classes")
        self._categories = categories

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> "Segmenter":
        self.model.to(device)
        return self

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        score_threshold: float | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        task: str | Task | None = None,
        bit_depth: int | None = None,
    ) -> list[Segments]: ...
    @overload
    def predict(
        self,
        images: Any,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        task: str | Task | None = None,
        bit_depth: int | None = None,
    ) -> Segments: ...

    def predict(
        self,
        images: Any,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        task: str | Task | None = None,
        bit_depth: int | None = None,
    ) -> Segments | list[Segments]:
        """Segments of one image, or a list of them for a list or tuple of images, in pixels of the original image.

        Args:
            images: a path, encoded bytes, PIL image, array or tensor; or a list or tuple of these.
            score_threshold: keep segments scored higher, from 0 to 1; None: 0.5 for instances, else as the model says.
            max_detections: at most so many an image; None: as the model says.
            batch_size: images that run through the network together.
            max_pixels: refuse larger images.
            task: "instance", "panoptic" or "semantic", of those that the model knows; None: as the model says.
            bit_depth: bits of 16-bit samples that are in use; None: those that the model has learnt from, else as ``read_image``
                finds them in each image.

        Raises:
            ImageError: an image can't be read, or is larger than ``max_pixels``.
            ConfigError: a threshold outside its range, or a task that the model does not know.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], score_threshold, max_detections, 1, max_pixels, task, bit_depth)[0]
        check_batch_size(batch_size)
        bit_depth = self._depth(bit_depth)
        limits = self._shown(score_threshold, max_detections, task)
        result: list[Segments] = []
        for start in range(0, len(images), batch_size):
            pictures = [read_image(source, max_pixels, bit_depth) for source in images[start : start + batch_size]]
            batch = self.preprocessing.batch(pictures, device=self.device)
            found = self.segment(batch, thresholds=limits)
            result += [replace(segments, image=picture) for segments, picture in zip(found, pictures, strict=True)]
        return result

    def stream(
        self,
        sources: Iterable[Any],
        score_threshold: float | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        task: str | Task | None = None,
        bit_depth: int | None = None,
    ) -> Generator[tuple[Any, Segments | ImageError], None, None]:
        """Each source with its segments, in order; what can't be read comes back as its error and the rest go on.

        A thread reads and resizes the next batch while the network works on this one.
        """
        limits = [self._shown(score_threshold, max_detections, task)]
        for source, found in self.stream_by(limits, sources, batch_size, max_pixels, bit_depth):
            yield source, found if isinstance(found, ImageError) else found[0]

    def stream_by(
        self,
        limits: Sequence[Any],
        sources: Iterable[Any],
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        bit_depth: int | None = None,
    ) -> Iterator[tuple[Any, list[Segments] | ImageError]]:
        """As `stream`, with the segments by each of several `thresholds`, of two tasks for instance: the network runs once."""
        check_batch_size(batch_size)
        bit_depth = self._depth(bit_depth)

        def read_batch(chunk: list[Any]) -> tuple[list[Any], ImageBatch | None]:
            pictures: list[Any] = []
            for source in chunk:
                try:
                    pictures.append(read_image(source, max_pixels, bit_depth))
                except ImageError as error:
                    pictures.append(error)
            readable = [picture for picture in pictures if not isinstance(picture, ImageError)]
            return pictures, self.preprocessing.batch(readable, device=self.device) if readable else None

        def results(chunk: list[Any], future: Future) -> Iterator[tuple[Any, list[Segments] | ImageError]]:
            pictures, batch = future.result()
            found = iter(zip(*self._segment_by(limits, batch), strict=True) if batch else ())
            for source, picture in zip(chunk, pictures, strict=True):
                if isinstance(picture, ImageError):
                    yield source, picture
                else:
                    yield source, [replace(segments, image=picture) for segments in next(found)]

        with ThreadPoolExecutor(max_workers=1) as reader:
            waiting: tuple[list[Any], Future] | None = None
            remaining = iter(sources)
            while chunk := list(islice(remaining, batch_size)):
                ahead = (chunk, reader.submit(read_batch, chunk))
                if waiting:
                    yield from results(*waiting)
                waiting = ahead
            if waiting:
                yield from results(*waiting)

    def segment(self, batch: ImageBatch, **overrides: Any) -> list[Segments]:
        """Segments of images already read and resized, at the model's own thresholds unless overridden.

        Args:
            batch: what ``preprocessing.batch`` gives.
            overrides: ``score_threshold``, ``max_detections``, ``task``, ``thresholds`` (all numbers of the model at once).
        """
        return self._segment_by([self.thresholds(**overrides)], batch)[0]

    @torch.inference_mode()
    def _segment_by(self, limits: Sequence[Any], batch: ImageBatch) -> list[list[Segments]]:
        """By each of the thresholds, the segments of each image."""
        batch = batch.to(self.device)
        found: list[dict[int, Segments]] = [{} for _ in limits]
        together = [(tuple(range(len(batch))), batch)]
        for images, part in batch.by_padded_size(self.preprocessing.pad_multiple) if self.model.divides_images else together:
            predictions = self.model(part.pixels.contiguous(memory_format=torch.channels_last))
            for by_image, each in zip(found, limits, strict=True):
                by_image.update(zip(images, self.model.segments(predictions, part.sizes, self.categories, each), strict=True))
        return [[by_image[image] for image in range(len(batch))] for by_image in found]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What this model can be asked for."""
        return self.model.tasks

    @property
    def task(self) -> Task:
        """What this model gives unless asked for something else."""
        return own_task(type(self.model), self.model.config)

    def thresholds(
        self,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        thresholds: Any = None,
        task: str | Task | None = None,
    ) -> Any:
        """The model's test-time numbers with some of them replaced.

        Raises:
            ConfigError: a number outside its range, or a task that the model does not know.
        """
        limits = thresholds or self.model.config.thresholds
        if task is not None:
            wanted = self._known_task(task)
            # a model of one task has no field for it
            limits = replace(limits, task=wanted) if hasattr(limits, "task") else limits
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise ConfigError(f"score_threshold must lie from 0 to 1, got {score_threshold}")
            limits = replace(limits, **dict.fromkeys(self.model.score_limits, score_threshold))
        if max_detections is not None:
            if max_detections < 1:
                raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
            limits = replace(limits, detections=max_detections)
        return limits

    def _known_task(self, task: str | Task) -> Task:
        known = {each.value: each for each in self.tasks}
        word = task.value if isinstance(task, Task) else task
        if word not in known:
            raise ConfigError(f"{self.name or type(self.model).__name__} gives {' or '.join(known)} segments, not {word!r}")
        return known[word]

    def _shown(self, score_threshold: float | None, max_detections: int | None, task: str | Task | None) -> Any:
        """The thresholds of `predict`: instances scored low are for curves, not for people."""
        wanted = self.task if task is None else self._known_task(task)
        if score_threshold is None and wanted is Task.INSTANCE:
            score_threshold = SHOWN_SCORE
        return self.thresholds(score_threshold, max_detections, task=wanted)

    def _depth(self, bit_depth: int | None) -> int | None:
        return self.preprocessing.bit_depth if bit_depth is None else bit_depth

    def save(self, path: str | Path, half: bool = False, notes: Mapping[str, str] | None = None) -> None:
        """Write one safetensors file, all that ``load`` needs; ``half`` stores kernels in 16 bits, ``notes`` are kept as text."""
        save(path, self.model, self.categories, self.preprocessing, half=half, notes=notes)

    def __repr__(self) -> str:
        return f"Segmenter({self.name or type(self.model).__name__}, {len(self.categories)} categories, {self.device})"


def check_batch_size(batch_size: int) -> None:
    """Raises ConfigError for a number of images that no network takes together."""
    if not 1 <= batch_size <= LARGEST_BATCH:
        raise ConfigError(f"batch_size must be from 1 to {LARGEST_BATCH}, got {batch_size}")


def _devices() -> list[str]:
    """The devices that can compute here."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator else 0
    return ["cpu", *(f"{accelerator}:{number}" for number in range(count))]


def _reason(error: Exception) -> str:
    """The first sentence of torch's error: what follows may be pages about how it was built."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> Segmenter:
    """A bundled model by name, or any supported checkpoint by its file alone: family, layout, depth and classes are found in it.

    Args:
        name_or_path: ``"people"``, ``"nuclei"``, or a file written by thingstuff, torchvision, detectron2 or MMDetection, or a
            folder by Hugging Face.
        device: where the network runs; None: the GPU if there is one, else the CPU.

    Raises:
        CheckpointError: there is no such file, it is unsafe or broken, or no known family fits it exactly.
        ConfigError: the device is not available.
    """
    path = bundled_models().get(str(name_or_path), Path(name_or_path))
    if not path.exists():
        names = ", ".join(bundled_models()) or "none"
        raise CheckpointError(f"{name_or_path} is neither a bundled model ({names}) nor a file")
    model, categories, preprocessing = read(path) if is_own_format(path) else load_foreign(path)
    if len(categories) != model.config.classes:
        raise SizeError(f"{path}: {len(categories)} categories for {model.config.classes} classes")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()  # "meta" takes a model, but nothing comes back
        model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device has its own
        if "out of memory" in str(error):
            raise
        words = f"device {str(device)!r} is not available ({_reason(error)}); devices here: {', '.join(_devices())}"
        raise ConfigError(words) from error
    return Segmenter(model, categories, preprocessing, name=str(name_or_path))
