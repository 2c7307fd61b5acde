"""Calls whose form differs between versions of the dependencies, each with the version that introduced the difference.

Called by the modules that would otherwise ask for a version themselves; ``docs/release.md`` has the range of versions.
May touch any dependency, which is imported where it is used, and nothing of ``qpt``.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def torch_version() -> tuple[int, int]:
    """Return (major, minor) of torch."""
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def default_device() -> torch.device:
    """Return the device on which torch makes tensors unless told otherwise."""
    import torch

    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.6, after set_default_device(None)
        return torch.device("cpu")


OLDEST_TRITON = (3, 3)  # 3.2, that of torch 2.6, ends the process where it compiles the loss for sm_90


def triton_fault() -> str | None:
    """Return why the loss's Triton kernels cannot be used, and what to do; None if they can."""
    try:
        import triton
    except (ImportError, OSError) as error:
        return f"Triton is needed on CUDA and cannot be imported ({error}); run: pip install triton"
    found = tuple(map(int, triton.__version__.split(".")[:2]))
    if found < OLDEST_TRITON:
        return f"Triton must be 3.3 or newer on CUDA, got {triton.__version__}; run: pip install --upgrade 'torch>=2.7'"
    return None


def resizes_height_first(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Return whether Pillow's two passes of a resize begin with the height, which gives other bytes than the width.

    size, wanted: (height, width).
    """
    import PIL

    # Before 13 the width came first always.
    tall = size[0] - wanted[0] > 2 * (size[1] - wanted[1])
    return tall and int(PIL.__version__.split(".")[0]) >= 13


def _matrix_products() -> list[Any]:
    """Return torch's settings of float32 products, on CUDA and on the CPU; none before 2.9, which has one for both."""
    import torch

    cpu = getattr(torch.backends.mkldnn, "matmul", None)
    return [] if cpu is None else [torch.backends.cuda.matmul, cpu]


def matrix_precisions() -> list[str]:
    """Return what torch multiplies float32 matrices with, as ``set_matrix_precisions`` takes it."""
    import torch

    return [each.fp32_precision for each in _matrix_products()] or [torch.get_float32_matmul_precision()]


def set_matrix_precisions(precisions: Sequence[str] | None) -> None:
    """Set what torch multiplies float32 matrices with. None: float32 itself."""
    import torch

    products = _matrix_products()
    for each, precision in zip(products, precisions or ["ieee"] * len(products), strict=False):
        each.fp32_precision = precision
    if not products:
        torch.set_float32_matmul_precision(precisions[0] if precisions else "highest")


_process_groups: list[object] = []


def destroy_process_group() -> None:
    """Leave the default process group of ``torch.distributed``."""
    import torch.distributed as dist

    if torch_version() < (2, 8):
        # Gloo's destructor waits for its threads, and before 2.8 holds the interpreter's lock meanwhile, for which such
        # a thread waits if it has a tensor to free. At the end of the process no thread has one any more.
        _process_groups.append(dist.group.WORLD)
    dist.destroy_process_group()


def write_onnx(
    graph: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    outputs: list[str],
    dynamic: Mapping[str, Mapping[int, tuple[str, int]]],
) -> None:
    """Write a module as an ONNX file of opset 18.

    example: inputs by name, in the order of ``graph.forward``.  dynamic: for each input, {axis: (name, smallest
    extent)} of the axes whose extent is free.
    """
    import torch

    # Of the exporters about their own future, and about torchvision, which no graph here has.
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), ExitStack() as ended:
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        ended.callback(log.setLevel, level)
        if torch_version() < (2, 9):
            # 2.9 made the exporter over torch.export the default. The earlier ones take their translations from
            # onnxscript, and those of a present-day onnxscript do not fit: batch norm fails in 2.6.
            torch.onnx.export(
                graph,
                tuple(example.values()),
                str(path),
                input_names=list(example),
                output_names=outputs,
                dynamic_axes={n: {axis: label for axis, (label, _) in axes.items()} for n, axes in dynamic.items()},
                dynamo=False,
                opset_version=18,
                verbose=False,
            )
            return
        torch.onnx.export(
            graph,
            kwargs=dict(example),
            f=str(path),
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes={
                name: {axis: torch.export.Dim(label, min=smallest) for axis, (label, smallest) in axes.items()}
                for name, axes in dynamic.items()
            },
            dynamo=True,
            opset_version=18,
            external_data=False,
            verbose=False,
        )


def cupy_stream(cupy: Any, stream: Any) -> Any:
    """Return a CUDA stream of torch as one of CuPy's, a context manager."""
    # CuPy 14 deprecated ExternalStream for the protocol __cuda_stream__, which not every torch has.
    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index)


@contextmanager
def locale_kept() -> Iterator[None]:
    """Give the thread its locale back after a call of NVRTC.

    That of 12.4, which comes with torch 2.6, leaves the locale C, in which Python would read and write text as ASCII;
    13.5 does not.
    """
    if sys.platform != "linux":
        yield
        return
    uselocale = ctypes.CDLL(None).uselocale
    uselocale.argtypes, uselocale.restype = [ctypes.c_void_p], ctypes.c_void_p
    before = uselocale(None)
    try:
        yield
    finally:
        uselocale(before)


@contextmanager
def fonts_closed() -> Iterator[None]:
    """Close the fonts that matplotlib keeps open, a file or more for each thread that drew, when the block ends."""
    try:
        yield
    finally:
        fonts = sys.modules.get("matplotlib.font_manager")
        # The name in 3.10 and 3.11, which have no public one; up to 64 fonts stay, also of threads that ended.
        clear = getattr(getattr(fonts, "_get_font", None), "cache_clear", None)
        if clear is not None:
            clear()


def triton_source(kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], divisible: list[int]) -> Any:
    """Return a Triton kernel and its argument types as ``triton.compile`` takes them.

    signature: type of every argument, ``"constexpr"`` for those in ``constants``.  divisible: places of arguments that
    are multiples of 16.
    """
    from triton.backends import compiler
    from triton.compiler import ASTSource

    if hasattr(compiler, "AttrsDescriptor"):  # until Triton 3.2, that of torch 2.6
        attributes: Any = compiler.AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
    else:
        attributes = {(place,): [["tt.divisibility", 16]] for place in divisible}
    return ASTSource(kernel, dict(signature), dict(constants), attributes)
