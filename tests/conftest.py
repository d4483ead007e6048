"""Fixtures every test may use: the data and the reference arrays that lie beside a clone, when they do."""

import os
from pathlib import Path

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
