"""The parity tool as a module: tests of raw arrays load their networks through the same files as it does."""

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def parity():
    spec = importlib.util.spec_from_file_location("parity", REPOSITORY / "tools" / "parity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["parity"]


@pytest.fixture(scope="session")
def reference():
    """The cases that come with the repository: what was run, and the final result."""
    return REPOSITORY / "tests" / "reference"
