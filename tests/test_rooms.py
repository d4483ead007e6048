"""Every import in src/thingstuff, lazy ones too, against the table of rooms in the architecture (section 2, last column)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "thingstuff"

# Room -> what it may import. `errors` may be imported by all; a dotted name is one file of a room.
MAY_IMPORT: dict[str, set[str]] = {
    "structures": set(),
    "ops": set(),
    "models": {"structures", "ops"},
    "checkpoints": {"structures", "models"},  # a file alone gives a model with its categories, so reading one ends in these types
    "data": {"structures"},
    "evaluation": {"structures", "ops"},
    "formats": {"structures", "ops"},
    "visuals": {"structures", "ops"},
    "export": {"structures", "ops"},
    "segmenter": {"structures", "models", "checkpoints", "data.transforms", "bundled"},
    "training": {"segmenter", "bundled", "structures", "models", "data", "checkpoints", "evaluation", "visuals"},
    "serving": {"segmenter", "structures", "visuals", "formats"},
    "scaling": {"segmenter", "structures", "visuals", "formats"},
    "errors": set(),
    "demo": set(),
    "bundled": set(),
}
WHOLE_HOUSE = {"cli", "__main__", "__init__"}  # the command, and the package's own names
# What Segments promises to do itself goes through another room, loaded when it is asked for and never with the file.
LAZILY: dict[str, set[str]] = {"structures": {"visuals", "formats"}}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """What a module imports from thingstuff, without that prefix: name, line, and whether it stands inside a function."""
    for node, lazy in _walk(tree, lazy=False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("thingstuff."):
                yield name.removeprefix("thingstuff."), node.lineno, lazy


def _walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, lazy
        yield from _walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def violations(source: Path) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        room = parts[0]
        if room in WHOLE_HOUSE:
            continue
        where = path.relative_to(source)
        if room not in MAY_IMPORT:
            found.append(f"{where}: the room {room} is not in the table")
            continue
        is_package = parts[-1] == "__init__"
        module = ".".join(["thingstuff", *(parts[:-1] if is_package else parts)])
        for name, line, lazy in imports(ast.parse(path.read_text(encoding="utf-8")), module, is_package):
            other = name.split(".")[0]
            allowed = MAY_IMPORT[room] | (LAZILY.get(room, set()) if lazy else set()) | {room, "errors"}
            rooms = {*MAY_IMPORT, "cli"}
            if other in rooms and not any(name == permitted or name.startswith(f"{permitted}.") for permitted in allowed):
                found.append(f"{where}:{line}: {room} may not import {name}")
    return found


def test_every_room_imports_only_what_the_table_allows():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("ops/nms.py", "from thingstuff.models.fpn import FPN", "ops/nms.py:1: ops may not import models.fpn.FPN"),
        ("ops/nms.py", "import thingstuff.structures.masks", "ops/nms.py:1: ops may not import structures.masks"),
        ("data/coco.py", "def f():\n    from thingstuff import segmenter", "data/coco.py:2: data may not import segmenter"),
        ("data/coco.py", "from ..models import fpn", "data/coco.py:1: data may not import models.fpn"),
        ("models/fpn.py", "from thingstuff.cli import main", "models/fpn.py:1: models may not import cli.main"),
        (
            "segmenter.py",
            "from thingstuff.data.coco import read_coco",
            "segmenter.py:1: segmenter may not import data.coco.read_coco",
        ),
        ("structures/masks.py", "from thingstuff import visuals", "structures/masks.py:1: structures may not import visuals"),
        ("attic/old.py", "", "attic/old.py: the room attic is not in the table"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str, expected: str):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ops/nms.py", "import torch\nfrom thingstuff.errors import SizeError\nfrom thingstuff.ops.boxes import pairwise_iou"),
        ("data/coco.py", "from .records import Record\nfrom ..errors import AnnotationError"),
        ("segmenter.py", "from thingstuff.data.transforms import Resize"),
        ("structures/segments.py", "def show(self):\n    from thingstuff import visuals"),
        ("cli/train.py", "from thingstuff import training"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, file: str, text: str):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == []
