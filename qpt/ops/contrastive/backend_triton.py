"""The contrastive loss's passes over pairs on a CUDA device, by the Triton kernels of ``qpt.kernels``.

Called by ``loss.py``; the kernels are imported at the first call, so that ``import qpt`` needs no Triton. Positives of
the row's own group are found by the torch operations of ``TorchBackend``.
"""

import torch
from torch import Tensor

from qpt.ops.contrastive.backend_torch import SoftmaxSums, TorchBackend
from qpt.ops.contrastive.problem import PRECISIONS, GradedPairs, KeySet, Queries


class TritonBackend(TorchBackend):
    """The passes over pairs and the graded positives, with products in a precision of ``contrastive_loss``."""

    name = "triton"

    def __init__(self, precision: str = "auto"):
        self.precision = precision

    def precisions_on(self, device: torch.device) -> tuple[str, ...]:
        # GPUs before the A100 multiply neither bfloat16 nor TF32 on tensor cores.
        return PRECISIONS if torch.cuda.get_device_capability(device) >= (8, 0) else ("auto", "ieee")

    def with_precision(self, precision: str) -> "TritonBackend":
        return TritonBackend(precision)

    def lse_forward(
        self, queries: Queries, keys: KeySet, temperature: Tensor, log_weight: float, *, weighted: bool
    ) -> SoftmaxSums:
        from qpt.kernels import contrastive

        sums = contrastive.lse_forward(
            queries, keys, temperature, log_weight, weighted=weighted, precision=self.precision
        )
        return SoftmaxSums(*sums)

    def key_gradient(
        self,
        queries: Queries,
        keys: KeySet,
        temperature: Tensor,
        log_weight: float,
        lse: Tensor,
        *,
        both_roles: bool = False,
    ) -> Tensor:
        from qpt.kernels import contrastive

        return contrastive.key_gradient(
            queries, keys, temperature, log_weight, lse, both_roles=both_roles, precision=self.precision
        )

    def add_graded(self, pairs: GradedPairs, vectors: Tensor, total: Tensor) -> Tensor:
        """See ``TorchBackend``; ``total`` is contiguous float32."""
        from qpt.kernels import contrastive_graded

        return contrastive_graded.add_graded(*pairs, vectors, total)
