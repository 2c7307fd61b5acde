"""The arithmetic in which the loss runs its torch operations: products of float32 are float32, and nothing is autocast.

Entered by ``op.py`` and ``distributed.py`` around everything that they compute. It touches torch's settings of the
process while it lasts, and restores them.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch

from qpt.compat import matrix_precisions, set_matrix_precisions

# What torch multiplies float32 matrices with may be TF32 or bfloat16 by a setting of the program that is meant for its
# encoder: allow_tf32, set_float32_matmul_precision, fp32_precision.
_lock = threading.Lock()
_inside = 0  # threads in float32_products; the settings belong to the process
_before: list[str] = []


@contextlib.contextmanager
def own_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute without gradients, without autocast and with float32 products as such, whatever the caller has set."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), float32_products():
        yield


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Multiply float32 matrices in float32. Other threads do so too while it lasts."""
    global _inside
    if _highest():
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _before[:] = matrix_precisions()
            set_matrix_precisions(None)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                set_matrix_precisions(_before)


def _highest() -> bool:
    """Return True where products are float32 already, and no other thread restores another setting meanwhile."""
    if _inside:
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # settings of several kinds that contradict each other
        return False
