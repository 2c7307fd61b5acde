"""Checks of the arguments of ``degrade`` and ``degrade_patches``; each raises an InputError that names the argument.

Called by ``api.py``. The engines check nothing: a wrong argument is refused here or in ``Program.check``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpt.degradations.program import Program
from qpt.errors import InputError, check_int, check_untransformed, describe_tensor

PATCH_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def check_images(caller: str, images: Tensor) -> None:
    """Check that images are (B, H, W, 3) uint8 on a device with an engine, and small enough for 32-bit indices."""
    check_untransformed(caller, "images", images, "it takes a batch of images as it is")
    good = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and images.shape[3] == 3
    if not good:
        raise InputError(f"{caller}: images must be (B, H, W, 3) uint8, got {describe_tensor(images)}")
    if images.device.type not in ("cpu", "cuda"):
        raise InputError(f"{caller}: images must be on the CPU or a CUDA device, got {images.device}")
    height, width = images.shape[1:3]
    if not (height and width and height * width * 3 < 2**31):
        raise InputError(f"{caller}: images must have H, W of at least 1 and H * W * 3 < 2^31, got {height} x {width}")


def check_program(caller: str, program: Program, images: Tensor) -> None:
    """Check a program, and that its rows fit these images."""
    if not isinstance(program, Program):
        raise InputError(f"{caller}: program must be a qpt.Program, got {type(program).__name__}")
    program.check(caller)
    height, width = images.shape[1:3]
    # The largest working size is 1.5 times the image's (csrc/ops/resize.h), and its samples have 32-bit indices too.
    if program.resizes() and (height + height // 2) * (width + width // 2) * 3 >= 2**31:
        raise InputError(
            f"{caller}: images must have 1.5 H * 1.5 W * 3 < 2^31 where a row holds resize_to, got {height} x {width}"
        )
    if len(program) and (highest := int(program.source.max())) >= len(images):
        raise InputError(
            f"{caller}: program.source must be below the number of images, {len(images)}, got {highest}; a part of a "
            "program keeps the numbers of its images among all of them, which it must be given"
        )


def check_threads(caller: str, threads: int | None) -> int:
    """Return the number of threads: torch's if ``threads`` is None."""
    return torch.get_num_threads() if threads is None else check_int(caller, "threads", threads, 1)


def check_patches(
    images: Tensor, program: Program, boxes: Tensor, size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> int:
    """Check what ``degrade_patches`` takes beyond ``degrade``; return ``size`` as an int."""
    height, width = images.shape[1:3]
    size = check_int("degrade_patches", "size", size, 1, min(height, width))
    r = len(program)
    good = isinstance(boxes, Tensor) and boxes.dtype == torch.int32 and boxes.ndim == 3
    if not good or boxes.shape[0] != r or boxes.shape[2] != 2:
        raise InputError(
            f"degrade_patches: boxes must be ({r}, P, 2) int32, one row per program row, got {describe_tensor(boxes)}"
        )
    if boxes.device.type != "cpu" and boxes.device != images.device:
        raise InputError(f"degrade_patches: boxes must be on the CPU or on {images.device}, got {boxes.device}")
    if boxes.numel():
        limit = torch.tensor([height - size, width - size], dtype=torch.int32, device=boxes.device)
        outside = ((boxes < 0) | (boxes > limit)).any(-1)
        if bool(outside.any()):
            row, patch = outside.nonzero()[0].tolist()
            raise InputError(
                f"degrade_patches: boxes must keep a {size} x {size} patch inside {height} x {width}, "
                f"got (top, left) = {tuple(boxes[row, patch].tolist())} for row {row}, patch {patch}"
            )
    if dtype not in PATCH_DTYPES:
        raise InputError(f"degrade_patches: dtype must be a floating-point torch dtype or torch.uint8, got {dtype}")
    if memory_format not in LAYOUTS:
        raise InputError(
            "degrade_patches: memory_format must be torch.channels_last or torch.contiguous_format, "
            f"got {memory_format}"
        )
    return size
