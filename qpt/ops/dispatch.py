"""Whether a call must go through torch's dispatcher. Used by the ops that are also torch ops (``*_op.py``)."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def watched(tensor: object) -> bool:
    """True where somebody may be watching: a compiler, a dispatch mode, a subclass of Tensor. Otherwise the function
    behind the op may be called directly: the dispatcher costs a small batch more than its work. False for what is no
    tensor, which that function refuses."""
    if not isinstance(tensor, Tensor):
        return False
    somebody = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    return somebody or type(tensor) not in (Tensor, nn.Parameter)
