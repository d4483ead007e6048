"""What can go wrong at the door: files, user arguments, configs. Each message says what, where, and what to do."""

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


class ThingstuffError(Exception):
    """Parent of every error that thingstuff raises on purpose; the command prints its text without a traceback."""


class ImageError(ThingstuffError):
    """An image can't be read: missing, truncated, not an image, or larger than the stated limit."""


class MaskError(ThingstuffError):
    """A mask, run-length code or polygon that contradicts itself or its image, or that a format can't express."""


class AnnotationError(ThingstuffError):
    """An annotation file that is broken, names things that do not exist, or contradicts itself."""


class CheckpointError(ThingstuffError):
    """A weights file that is unsafe, unreadable, of an unknown family, or that does not fit its model exactly."""


class ConfigError(ThingstuffError):
    """A setting outside what the program accepts."""


class SizeError(ThingstuffError):
    """Values that must describe the same pixels or the same segments differ in size."""


class TrainingError(ThingstuffError):
    """Training can't go on: a loss is not finite, a run folder does not fit, no image is usable."""


class EvaluationError(ThingstuffError):
    """Predictions and ground truth that do not belong together."""


class ImageWarning(UserWarning):
    """An image was read in one of several ways that make sense; the message says in which, and how to have another."""


class BitDepthWarning(ImageWarning):
    """How many bits of an image's 16-bit samples are in use was told from its largest one."""


class PagesWarning(ImageWarning):
    """Of a file of several pages or frames the first was read."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the program that called the package, however deep inside the reason was found."""
    frame, level, callers = sys._getframe(1), 2, 2
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            callers = level + 1
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=callers)
