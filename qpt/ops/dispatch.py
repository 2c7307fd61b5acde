"""The choice between torch's dispatcher and a direct call, for the functions of ``qpt.ops`` that are also torch ops."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def needs_dispatcher(tensor: object) -> bool:
    """Return True where a call must go through torch's dispatcher: under a compiler or a dispatch mode, or for a
    subclass of Tensor. False for an object that is no tensor, which the function itself refuses."""
    # Elsewhere the function behind the op is called directly: the dispatcher costs a small batch more than its work.
    if not isinstance(tensor, Tensor):
        return False
    observed = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    return observed or type(tensor) not in (Tensor, nn.Parameter)
