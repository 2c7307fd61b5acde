"""Fixtures and options shared by all tests: the long form, GPU tests that skip one by one, hypothesis profiles.

QPT_LONG=1 (`make verify`) asks for full grids and long fuzzing; tests read it through the fixture `long`.
The rungs of the no-GPU ladder and the dated summary are in tests/rungs.py.
"""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.interpreter import Interpreter

pytest_plugins = ["tests.rungs"]

LONG = os.environ.get("QPT_LONG") == "1"

hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("long", max_examples=400, deadline=None)
hypothesis.settings.load_profile("long" if LONG else "quick")


@pytest.fixture(scope="session")
def long() -> bool:
    """Return whether the long form of the tests was asked for."""
    return LONG


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What a test measures does not depend on the threads; many small parallel steps on a busy machine do take long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs a function where Triton kernels are interpreted."""
    child = Interpreter()
    yield child
    child.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped with a reason where there is none")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: torch.cuda.is_available() is False")
