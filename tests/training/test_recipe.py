"""The recipe's numbers and what follows from them."""

import math
from dataclasses import replace

import pytest

from thingstuff.errors import ConfigError
from thingstuff.training.recipe import Recipe

RECIPE = Recipe(data="data", model="mask-rcnn-tiny", out="run", steps=1000, warmup=99, learning_rate=0.01, batch_size=16)


def test_the_learning_rate_climbs_by_equal_steps_to_its_peak() -> None:
    assert RECIPE.learning_rate_at(0) == pytest.approx(0.01 / 100)
    assert RECIPE.learning_rate_at(49) == pytest.approx(0.005)
    assert RECIPE.learning_rate_at(99) == pytest.approx(0.01)


def test_the_learning_rate_falls_by_half_a_cosine() -> None:
    assert RECIPE.learning_rate_at(99 + 901 // 2) == pytest.approx(0.01 * (0.01 + 0.99 * 0.5), rel=1e-2)
    assert RECIPE.learning_rate_at(1000) == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "factor"), [(4, 1, 1, 0.5), (4, 4, 1, 1.0), (16, 1, 4, 2.0), (2, 2, 1, 0.5)]
)
def test_the_learning_rate_goes_with_the_square_root_of_the_images_an_update_sees(
    batch_size: int, accumulate: int, processes: int, factor: float
) -> None:
    recipe = replace(RECIPE, batch_size=batch_size, accumulate=accumulate)
    assert recipe.learning_rate_at(99, processes) == pytest.approx(0.01 * factor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"backbone_rate": 0.0}, "backbone_rate"),
        ({"freeze_levels": 5}, "freeze_levels"),
        ({"ema": 1.0}, "ema"),
        ({"precision": "fp8"}, "precision"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"warmup": -1}, "warmup"),
        ({"short_side": 8193}, "short_side must be from 1 to 8192 pixels, got 8193; cut larger images into parts"),
        ({"long_side": 0}, "long_side must be from 1 to 8192 pixels, got 0"),
        ({"final_learning_rate": 1.5}, "final_learning_rate"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(RECIPE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_torch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"seed must be from 0 to below 2\*\*63"):
        Recipe(data="d", model="m", out="o", seed=seed)
