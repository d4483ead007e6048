"""Config texts in Python are read as data: literal values come out, and nothing in them runs."""

import pytest

from thingstuff.checkpoints.python_config import Settings, parse_settings

TEXT = """
norm = dict(type='BN', requires_grad=False)
model = dict(
    backbone=dict(depth=50, norm_cfg=norm, strides=(1, 2, 2, 2), rate=-0.5),
    neck={'type': 'FPN', 'out_channels': 256},
    test_cfg=dict(score_thr=0.05, max_per_img=100))
pipeline = [dict(type='Load'), dict(type='Flip', transforms=[dict(type='Resize', scale=(1333, 800))])]
"""


def test_literals_and_earlier_names_become_values():
    settings = parse_settings(TEXT)
    assert settings.first(("model", "backbone")).value == {
        **{"depth": 50, "norm_cfg": {"type": "BN", "requires_grad": False}},
        **{"strides": [1, 2, 2, 2], "rate": -0.5},
    }
    assert settings.first(("model", "neck")).get("out_channels") == 256


def test_the_first_path_that_exists_is_taken():
    settings = parse_settings(TEXT)
    assert settings.first(("test_cfg",), ("model", "test_cfg")).real("score_thr", 0.0) == 0.05
    assert settings.first(("nowhere", "at", "all")).value == {}


def test_dicts_are_found_at_any_depth():
    scales = [step.numbers("scale", 2) for step in parse_settings(TEXT).first(("pipeline",)).steps() if step.get("scale")]
    assert scales == [(1333.0, 800.0)]


def test_values_of_the_wrong_kind_give_the_default():
    settings = Settings({"a": "text", "b": True, "c": -1, "d": [1, "x"], "e": [1, 2]})
    assert settings.whole("a", 7) == settings.whole("b", 7) == settings.whole("c", 7) == 7
    assert settings.real("a", 0.5) == settings.real("b", 0.5) == 0.5
    assert settings.numbers("d") == ()
    assert settings.numbers("e", 3) == ()
    assert settings.numbers("e", 2) == (1.0, 2.0)


def test_the_paths_between_texts_of_several_files_are_skipped():
    assert parse_settings("configs/a.py\nx = 1\n\nconfigs/b.py\ny = 2\n").value == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "text",
    [
        "x = __import__('os').system('touch {}')",
        "x = dict(a=open({!r}, 'w'))",
        "open({!r}, 'w')",
        "x = [open(p, 'w') for p in [{!r}]]",
        "import os\nos.mkdir({!r})",
    ],
)
def test_calls_in_a_config_text_are_not_made(tmp_path, text):
    marker = tmp_path / "marker"
    settings = parse_settings(text.format(str(marker)))
    assert settings is not None
    assert settings.first(("x",)).get("a") is None
    assert not marker.exists()


@pytest.mark.parametrize("text", ["x = dict((", "\0", "x = " + "[" * 5000 + "]" * 5000, "just words in a row"])
def test_what_is_no_python_is_none(text):
    assert parse_settings(text) is None


def test_deeply_nested_values_end_in_none():
    assert str(parse_settings("x = " + "[" * 60 + "]" * 60).value).count("None") == 1
