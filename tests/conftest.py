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


# Asked once, before the variable below hides the devices: CUDA reads it when it is first used, and never again.
HAS_CUDA = torch.cuda.is_available()
_VISIBLE, _SHOWN = "CUDA_VISIBLE_DEVICES", (torch.cuda.is_available, torch.cuda.device_count)
_visible_devices = os.environ.get(_VISIBLE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Show CUDA devices to tests that are marked ``gpu`` alone, so that all others run as where there are none."""
    wanted = item.get_closest_marker("gpu") is not None
    if wanted and not HAS_CUDA:
        pytest.skip("needs a CUDA device: torch.cuda.is_available() is False")
    # Here and not in a fixture: those of modules come first. The variable is for the processes that a test starts.
    torch.cuda.is_available, torch.cuda.device_count = _SHOWN if wanted else (lambda: False, lambda: 0)
    visible = _visible_devices if wanted else ""
    if visible is None:
        os.environ.pop(_VISIBLE, None)
    else:
        os.environ[_VISIBLE] = visible
