"""Roofline predictions for GPUs that were not at hand: the least time that arithmetic and traffic allow.

Used by the benchmarks to put a labelled prediction beside CPU measurements; never mixed with them. A prediction is
max(arithmetic, special functions, memory traffic) at the published peaks, divided by a stated efficiency.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """Published peaks of one GPU, dense (without sparsity): operations per second, bytes per second."""

    name: str
    matrix: dict[str, float]  # multiply-add counted as two, by input dtype
    special: float  # exp2 and the like
    bandwidth: float  # device memory
    source: str


# special = 16 results per clock and multiprocessor (CUDA C++ Programming Guide, arithmetic throughput of compute
# capability 8.0 and 9.0) x multiprocessors x the boost clock that the published FP32 peak implies.
GPUS = (
    Gpu(
        "A100-SXM4-80GB",
        {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12, "float16": 312e12},
        special=16 * 108 * 1.41e9,
        bandwidth=2.039e12,
        source="NVIDIA A100 data sheet (2021)",
    ),
    Gpu(
        "H100-SXM5-80GB",
        {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12},
        special=16 * 132 * 1.98e9,
        bandwidth=3.35e12,
        source="NVIDIA H100 data sheet (2023), dense",
    ),
)

# Share of the peak that good kernels of this shape reach: FlashAttention-2 reports 50-73 % of the A100's matrix peak
# forward (Dao 2023). One figure for all, so that two predictions differ only by what they count.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class Work:
    """What a computation must do at least: matrix operations, special functions, bytes of device memory moved."""

    matrix_ops: float
    special_ops: float
    bytes_moved: float
    peak_bytes: float  # beyond inputs and gradients


def predict(work: Work, gpu: Gpu, dtype: str, efficiency: float = EFFICIENCY) -> dict[str, Any]:
    """Predicted milliseconds and what bounds them. ValueError if the GPU has no published peak for ``dtype``."""
    if dtype not in gpu.matrix:
        raise ValueError(f"predict: dtype must be one of {', '.join(gpu.matrix)}, got {dtype!r}")
    if not 0 < efficiency <= 1:
        raise ValueError(f"predict: efficiency must be in (0, 1], got {efficiency}")
    seconds = {
        "matrix": work.matrix_ops / gpu.matrix[dtype],
        "special": work.special_ops / gpu.special,
        "memory": work.bytes_moved / gpu.bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        "gpu": gpu.name,
        "dtype": dtype,
        "predicted_ms": round(seconds[bound] / efficiency * 1000, 4),
        "bound_by": bound,
        "peak_mib": round(work.peak_bytes / 2**20, 1),
        "efficiency": efficiency,
        "peaks": gpu.source,
    }


def fused_contrastive(n: int, k: int, d: int, key_bytes: int, gradient: bool, tile_bytes: int = 0) -> Work:
    """The loss of N queries and K pool keys without stored logits: one product, two with the query gradient.

    Assumes row blocks that run together share their reads of the pool through the L2 cache: keys are moved once.
    """
    products = 2 if gradient else 1
    rows = n * d * 4 * products
    return Work(
        matrix_ops=2.0 * n * k * d * products,
        special_ops=float(n * k),
        bytes_moved=float(k * d * key_bytes + 2 * rows),
        peak_bytes=float(rows + tile_bytes),
    )


def full_logits_contrastive(n: int, k: int, d: int, key_bytes: int, gradient: bool) -> Work:
    """The loss that writes its N x K float32 logits out, as MoCo's published code does, run without fusion.

    Passes over the logits: product writes 1, concatenation 2, division 2, log-softmax 3; backward: softmax gradient 3,
    division 2, the slice of the concatenation 2, product reads 1. Held at once: three N x K arrays.
    """
    passes, copies = (16, 3) if gradient else (8, 3)
    return Work(
        matrix_ops=2.0 * n * k * d * (2 if gradient else 1),
        special_ops=float(n * k) * (2 if gradient else 1),
        bytes_moved=float(k * d * key_bytes * (2 if gradient else 1) + passes * n * k * 4),
        peak_bytes=float(copies * n * k * 4),
    )
