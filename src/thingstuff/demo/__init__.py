"""Images to try the package on, a folder for each kind; README.md beside this file says where they come from."""

from pathlib import Path


def images(kind: str) -> list[Path]:
    """The demo images of a kind, by name: "people" (two photographs) or "nuclei" (five microscope images)."""
    return sorted((Path(__file__).parent / kind).glob("*.png"))
