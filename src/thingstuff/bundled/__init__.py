"""The models that come with the package: a weights file and its card each; names are told without importing torch."""

from pathlib import Path

FOLDER = Path(__file__).parent


def bundled_models() -> dict[str, Path]:
    """Names and files of the models that come with the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}
