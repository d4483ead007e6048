"""README.md does what it says: its commands and its Python run, its names exist, its links lead somewhere."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from thingstuff import cli, demo
from thingstuff.models.catalog import CATALOG

HOME = Path(__file__).parents[2]
README = (HOME / "README.md").read_text(encoding="utf-8")
QUICK = {"mask-rcnn-lite0": "mask-rcnn-tiny", "2000": "2"}  # words of the README -> what a test can wait for


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    split = (shlex.split(line, comments=True) for line in lines)
    return [words for words in split if words and words[0] == program]


@pytest.fixture
def home_of_a_user(shapes: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the README speaks of."""
    for path in shapes.glob("instances_*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"categories": [{"id": 4, "name": "nucleus"}, {"id": 7, "name": "square"}]}))
    shutil.copytree(shapes / "images", tmp_path / "photos")
    shutil.copy(demo.images("people")[0], tmp_path / "photos" / "a.png")
    shutil.copy(tiny_model, tmp_path / "my-model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_one_after_the_other(home_of_a_user: Path, capsys: pytest.CaptureFixture[str]):
    written = commands("thingstuff")
    assert {words[1] for words in written} == {"predict", "evaluate", "train"}
    for words in written:
        quick = [QUICK.get(word, word) for word in words[1:]]
        assert cli.main(quick) == 0, (words, capsys.readouterr().err)
        if "--json" in words:
            assert isinstance(json.loads(capsys.readouterr().out.splitlines()[-1]), dict)
        capsys.readouterr()
    assert (home_of_a_user / "results" / "predictions.json").exists()
    assert (home_of_a_user / "runs" / "first" / "best.safetensors").exists()


def test_the_python_runs(home_of_a_user: Path, capsys: pytest.CaptureFixture[str]):
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Segments(")
    assert (home_of_a_user / "people.png").exists()
    assert isinstance(names["results"], list)
    assert len(names["results"]) == len(names["masks"])  # type: ignore[arg-type]


def test_every_make_target_exists():
    for words in commands("make"):
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=HOME, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert [words[1] for words in commands("make")] == ["demo", "test"]


def test_the_demo_installs_the_package_alone_and_the_tests_what_develops_it_too(tmp_path: Path):
    """In a new virtual environment; what is installed for the demo is not taken for what the tests need."""

    def installed(target: str) -> list[str]:
        words = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", target]
        done = subprocess.run(words, cwd=HOME, capture_output=True, text=True, check=True)
        return re.findall(r"pip install --quiet --editable (\S+)", done.stdout)

    assert installed("demo") == ["."]
    assert installed("test") == ['".[dev]"']
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".runnable").touch()
    assert installed("demo") == []
    assert installed("test") == ['".[dev]"']
    (tmp_path / "venv" / ".installed").touch()
    assert installed("test") == []


def test_every_extra_that_pip_is_given_exists():
    extras = {extra for words in commands("pip") for extra in re.findall(r"\[(\w+)\]", words[-1])}
    assert extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", (HOME / "pyproject.toml").read_text(), flags=re.MULTILINE)


def test_every_model_named_is_in_the_catalog():
    named = set(re.findall(r"\b(?:mask-rcnn|panoptic-fpn|(?:decoupled-)?solo|solov2|yolact|mask2?former)-[\w-]+", README))
    assert named <= CATALOG.keys()
    families = {model for model, _, _ in CATALOG.values()}
    unnamed = CATALOG.keys() - named  # for tests, not for people: the smallest of each family
    assert len(unnamed) == len(families)
    assert all(name.endswith("-tiny") for name in unnamed)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "src/thingstuff/demo/README.md"])
def test_every_link_to_a_file_leads_to_one(page: str):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (HOME / page).read_text(encoding="utf-8")):
        assert ((HOME / page).parent / target).exists(), f"{page} links to {target}"
