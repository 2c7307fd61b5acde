"""A process in which Triton kernels run in Triton's interpreter, on the CPU.

TRITON_INTERPRET must be set before triton is imported, and offline compilation in the same session needs it unset;
therefore the interpreter has a process of its own. Tests use the fixture ``interpreter`` of tests/conftest.py and pass
it a module-level function and its arguments.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


class Interpreter:
    """Runs functions in one child process that was started with TRITON_INTERPRET=1."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_check)
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"  # inherited by the child, which starts at the first submission
        try:
            self(_check)
        finally:
            del os.environ["TRITON_INTERPRET"]
            if before is not None:
                os.environ["TRITON_INTERPRET"] = before

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self._pool.shutdown()


def _check() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
