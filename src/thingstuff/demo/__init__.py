"""Five microscope images to try the package on; README.md beside this file says where they come from."""

from pathlib import Path


def images() -> list[Path]:
    """The demo images, by name."""
    return sorted(Path(__file__).parent.glob("*.png"))
