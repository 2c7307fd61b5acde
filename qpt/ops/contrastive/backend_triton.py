"""The contrastive loss's passes over pairs on a CUDA device, by the Triton kernels of ``qpt.kernels``.

Called by ``loss.py``; the kernels are imported at the first call, so that ``import qpt`` needs no Triton. Positives of
the row's own group are found by the torch operations of ``TorchBackend``.
"""

from torch import Tensor

from qpt.ops.contrastive.backend_torch import SoftmaxSums, TorchBackend
from qpt.ops.contrastive.problem import GradedPairs, KeySet, Queries


class TritonBackend(TorchBackend):
    name = "triton"

    def lse_forward(
        self, queries: Queries, keys: KeySet, temperature: Tensor, log_weight: float, *, weighted: bool
    ) -> SoftmaxSums:
        from qpt.kernels import contrastive

        return SoftmaxSums(*contrastive.lse_forward(queries, keys, temperature, log_weight, weighted=weighted))

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

        return contrastive.key_gradient(queries, keys, temperature, log_weight, lse, both_roles=both_roles)

    def add_graded(self, pairs: GradedPairs, vectors: Tensor, total: Tensor) -> Tensor:
        """See ``TorchBackend``; ``total`` is contiguous float32."""
        from qpt.kernels import contrastive_graded

        return contrastive_graded.add_graded(*pairs, vectors, total)
