"""One bit depth for all 16-bit images of a run: guessed one by one, two images of a series would differ in brightness."""

from collections.abc import Iterable
from pathlib import Path

from thingstuff.data.coco_json import Problems
from thingstuff.data.layouts import in_threads
from thingstuff.data.records import InstanceDataset
from thingstuff.errors import BitDepthWarning, ConfigError, ImageError, warn
from thingstuff.structures.bit_depth import DeepSamples, bits_in_use, bits_needed
from thingstuff.structures.images import deep_samples


def common_bit_depth(datasets: Iterable[InstanceDataset], bit_depth: int | None = None) -> int | None:
    """The depth that is given, else the largest that any image needs; None: no image is of 16 bits, or each says its own.

    Files of 16-bit samples are decoded, of others the header alone is read.

    Raises:
        AnnotationError: names all images that have samples beyond the depth given.
        ConfigError: no depth is given, and some images say another than the others need.
    """
    needed: dict[Path, DeepSamples] = {}
    said: dict[Path, int] = {}
    for dataset in datasets:
        problems = Problems(dataset.source or Path("the data set"), limit=None)
        paths = list(dict.fromkeys(record.path for record in dataset if record.path is not None))
        for path, samples in zip(paths, in_threads(_samples_or_error, paths, "bit depths"), strict=True):
            if isinstance(samples, ImageError):
                problems.add(str(samples))
            elif samples is None:
                continue
            elif bit_depth is not None:
                try:
                    bits_in_use(samples.largest, samples.told, bit_depth, str(path))
                except ImageError as error:
                    problems.add(str(error))
            elif samples.said is not None:
                said[path] = samples.said
            elif samples.largest > 0:  # black is black at any depth
                needed[path] = samples
        problems.raise_if_any()
    if bit_depth is not None or not needed:
        return bit_depth
    deepest = max(needed, key=lambda path: needed[path].largest)
    largest = needed[deepest].largest
    depth = bits_needed(largest)
    if other := next((path for path, bits in said.items() if bits != depth), None):
        raise ConfigError(
            f"{deepest} has 16-bit samples up to {largest} and says no bit depth, {other} says {said[other]} bits; "
            "give the depth of all images (--bit-depth, in Python bit_depth)"
        )
    if depth < 16:
        warn(
            f"{deepest}: no 16-bit sample of the data exceeds its {largest}, so all such images are read as {depth}-bit data, by "
            "the trained model, too; if that is wrong, give the depth (--bit-depth, in Python bit_depth)",
            BitDepthWarning,
        )
    return depth


def _samples_or_error(path: Path) -> DeepSamples | ImageError | None:
    try:
        return deep_samples(path)
    except ImageError as error:
        return error
