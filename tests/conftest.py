"""Fixtures every test may use: the data and the reference arrays that lie beside a clone, when they do."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# machines that run tests in parallel are slow at times, which is nothing that a test should fail for
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _beside_the_clone(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        message = f"../shared/{name} is not beside this clone"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}, and CI must have it")
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with ground truth; skips where the folder is absent, fails for its absence in CI."""
    return _beside_the_clone("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Raw arrays of the original implementations; skips where the folder is absent, fails for its absence in CI."""
    return _beside_the_clone("reference")


@pytest.fixture(autouse=True)
def _full_float32(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a GPU no short floats in convolutions and matrix products, which round to 10 bits and would hide small mistakes."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    import torch

    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch announce other names for these
        before = [place.allow_tf32 for place in places]
        for place in places:
            place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed
