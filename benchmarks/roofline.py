"""Roofline predictions for GPUs that were not at hand: the least time that arithmetic and traffic allow.

Benchmarks put them, labelled as predictions, beside measurements on the CPU. A prediction is
max(arithmetic, special functions, memory traffic) at the published peaks, divided by a stated efficiency and, where a
kernel's launch is given, stretched by the multiprocessors that its last wave of blocks leaves idle.
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
    multiprocessors: int
    architecture: int  # 80 for sm_80, as benchmarks/resources.py names it
    source: str
    cache: int = 0  # bytes of L2

    @property
    def clock(self) -> float:
        """Return the boost clock in Hz that ``special`` implies."""
        return self.special / (SPECIAL_PER_CLOCK * self.multiprocessors)


# Results per clock and multiprocessor (CUDA C++ Programming Guide, arithmetic throughput of compute capability 8.0 and
# 9.0); special = this x multiprocessors x the boost clock that the published FP32 peak implies.
SPECIAL_PER_CLOCK = 16
GPUS = (
    Gpu(
        "A100-SXM4-80GB",
        {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12, "float16": 312e12},
        special=SPECIAL_PER_CLOCK * 108 * 1.41e9,
        bandwidth=2.039e12,
        multiprocessors=108,
        cache=40 << 20,
        architecture=80,
        source="NVIDIA A100 data sheet (2021)",
    ),
    Gpu(
        "H100-SXM5-80GB",
        {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12},
        special=SPECIAL_PER_CLOCK * 132 * 1.98e9,
        bandwidth=3.35e12,
        multiprocessors=132,
        cache=50 << 20,
        architecture=90,
        source="NVIDIA H100 data sheet (2023), dense",
    ),
)

# Share of the peak that good kernels of this shape reach: FlashAttention-2 reports 50-73 % of the A100's matrix peak
# forward (Dao 2023). One figure for all, so that two predictions differ only by what they count.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class Work:
    """The least work of a computation: matrix operations, special functions, bytes of device memory moved."""

    matrix_ops: float
    special_ops: float
    bytes_moved: float
    peak_bytes: float  # beyond inputs and gradients


@dataclass(frozen=True)
class Launch:
    """Blocks of a fused kernel. The pool is split so that they fill the GPU about once, or into ``splits`` parts.

    blocks_per_multiprocessor: how many are resident at once, by the compiled registers and shared memory
    (``benchmarks.resources.blocks_per_multiprocessor``). ValueError unless all are >= 1: it could not be launched.
    """

    block_rows: int
    blocks_per_multiprocessor: int
    splits: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_rows", "blocks_per_multiprocessor"):
            if getattr(self, name) < 1:
                raise ValueError(f"Launch: {name} must be >= 1, got {getattr(self, name)}")
        if self.splits is not None and self.splits < 1:
            raise ValueError(f"Launch: splits must be >= 1 or None, got {self.splits}")

    def parts(self, rows: int, gpu: Gpu) -> int:
        """Return the number of parts that the pool is split into for ``rows`` queries."""
        if self.splits is not None:
            return self.splits
        return max(1, gpu.multiprocessors * self.blocks_per_multiprocessor // -(-rows // self.block_rows))

    def blocks(self, rows: int, gpu: Gpu) -> int:
        """Return the number of blocks: row blocks times parts of the pool."""
        return -(-rows // self.block_rows) * self.parts(rows, gpu)

    def waves(self, rows: int, gpu: Gpu) -> float:
        """Return how often the resident blocks fill the GPU; 2.1 means that a third wave is nearly empty."""
        return self.blocks(rows, gpu) / (gpu.multiprocessors * self.blocks_per_multiprocessor)

    def stretch(self, rows: int, gpu: Gpu) -> float:
        """Return the time over that of evenly used multiprocessors, which their resident blocks share; >= 1."""
        blocks = self.blocks(rows, gpu)
        whole, rest = divmod(blocks, gpu.multiprocessors * self.blocks_per_multiprocessor)
        busiest = whole * self.blocks_per_multiprocessor + -(-rest // gpu.multiprocessors)
        return busiest * gpu.multiprocessors / blocks


def predict(
    work: Work, gpu: Gpu, dtype: str, efficiency: float = EFFICIENCY, launch: Launch | None = None, rows: int = 0
) -> dict[str, Any]:
    """Predict milliseconds and what bounds them; ``launch`` and its ``rows`` count idle multiprocessors too.

    ValueError if the GPU has no published peak for ``dtype``, for an efficiency outside (0, 1], and for a launch
    without rows.
    """
    if dtype not in gpu.matrix:
        raise ValueError(f"predict: dtype must be one of {', '.join(gpu.matrix)}, got {dtype!r}")
    if not 0 < efficiency <= 1:
        raise ValueError(f"predict: efficiency must be in (0, 1], got {efficiency}")
    if launch is not None and rows < 1:
        raise ValueError(f"predict: rows must be >= 1 with a launch, got {rows}")
    seconds = {
        "matrix": work.matrix_ops / gpu.matrix[dtype],
        "special": work.special_ops / gpu.special,
        "memory": work.bytes_moved / gpu.bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    stretch = 1.0 if launch is None else launch.stretch(rows, gpu)
    return {
        "gpu": gpu.name,
        "dtype": dtype,
        "predicted_ms": round(seconds[bound] / efficiency * stretch * 1000, 4),
        "bound_by": bound,
        "waves": "" if launch is None else round(launch.waves(rows, gpu), 2),
        "peak_mib": round(work.peak_bytes / 2**20, 1),
        "efficiency": efficiency,
        "peaks": gpu.source,
    }


def fused_contrastive(n: int, k: int, d: int, key_bytes: int, gradient: bool, parts: int = 1, terms: int = 1) -> Work:
    """Return the work of the loss of N queries and K pool keys without stored logits: one product, two with gradient.

    Assumes row blocks that run together share their reads of the pool through the L2 cache: keys are moved once.
    terms: products that tensor cores compute for one, where numbers are sums of terms.
    parts: into how many the pool is split; each writes its partial results (float32), which are read once to merge.
    """
    products = 2 if gradient else 1
    rows = n * d * 4 * products
    partial = parts * n * 4 * (d + 2 if gradient else 2)  # maximum, sum and, with the gradient, weighted key sum
    return Work(
        matrix_ops=2.0 * n * k * d * products * terms,
        special_ops=float(n * k),
        bytes_moved=float(k * d * key_bytes + 2 * rows + 2 * partial),
        peak_bytes=float(partial),
    )


def full_logits_contrastive(n: int, k: int, d: int, key_bytes: int, gradient: bool) -> Work:
    """Return the work of the loss that stores its N x K float32 logits, as MoCo's published code does, without fusion.

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
