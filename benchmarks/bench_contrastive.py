"""The contrastive loss (MoCo setting, forward and query gradient): tiled form, full logits, and the bare products.

Run by ``python -m benchmarks contrastive``. Every contender gets the same unit-length queries, keys and pool; losses
and gradients must agree before anything is timed. The floor is two blocked matrix products and nothing else.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import roofline
from benchmarks.harness import Case, Contender, Disagreement, Report, Settings, measure
from qpt.ops.contrastive import contrastive_loss

HELP = "loss and gradient: time and peak tensor memory against full logits"
TEMPERATURE = 0.2
DIM = 128
SIZES = ((256, 65536), (1024, 65536))
QUICK_SIZES = ((64, 2048),)
# float32 sums over 65,537 keys in different orders.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def run(settings: Settings) -> Report:
    """Measures both sizes and predicts the same for two GPUs."""
    sizes = QUICK_SIZES if settings.quick else SIZES
    rows = measure([_case(n, k) for n, k in sizes], settings.rounds, warmup=1)
    predictions = []
    for n, k in sizes:
        forms = {
            "fused": roofline.fused_contrastive(n, k, DIM, 2, gradient=True),
            "full logits": roofline.full_logits_contrastive(n, k, DIM, 2, gradient=True),
        }
        for gpu in roofline.GPUS:
            for form, work in forms.items():
                shape = f"N={n} K={k} D={DIM}"
                predictions.append({"form": form, "shape": shape} | roofline.predict(work, gpu, "bfloat16"))
    remarks = [
        "Peak: tensor memory beyond the inputs, the returned gradient included.",
        "Two products: the pool in blocks of 2,048 keys, logits = q k^T and logits k, no exponentials; not a loss.",
    ]
    return Report("contrastive", rows, predictions, remarks=remarks)


def _case(n: int, k: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    queries, keys, pool = (F.normalize(torch.randn((r, DIM), generator=generator), dim=1) for r in (n, n, k))
    queries.requires_grad_()
    groups, pool_groups = torch.arange(n), torch.arange(k) + n

    def tiled() -> tuple[Tensor, Tensor]:
        loss = contrastive_loss(
            queries,
            keys,
            query_groups=groups,
            key_groups=groups,
            pool=pool,
            pool_groups=pool_groups,
            temperature=TEMPERATURE,
            in_batch_negatives=False,
        )
        return loss.detach(), torch.autograd.grad(loss, queries)[0]

    def full_logits() -> tuple[Tensor, Tensor]:
        # He et al. 2020, algorithm 1.
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ pool.T], dim=1) / TEMPERATURE
        loss = F.cross_entropy(logits, torch.zeros(n, dtype=torch.int64))
        return loss.detach(), torch.autograd.grad(loss, queries)[0]

    def two_products() -> Tensor:
        with torch.no_grad():
            logits, total = torch.empty(n, 2048), torch.zeros(n, DIM)
            for start in range(0, k, 2048):
                block = pool[start : start + 2048]
                torch.mm(queries, block.T, out=logits[:, : len(block)])
                total.addmm_(logits[:, : len(block)], block)
            return total

    return Case(
        op="contrastive loss + gradient",
        shape=f"N={n} K={k} D={DIM}",
        items=n,
        contenders=[
            Contender("qpt torch (tiled)", tiled),
            Contender("full logits (MoCo)", full_logits),
            Contender("two products", two_products, "floor, not a loss"),
        ],
        agree=_agree,
        peak=True,
    )


def _agree(answers: dict[str, Any]) -> dict[str, float]:
    (ours, our_gradient), (theirs, their_gradient) = answers["qpt torch (tiled)"], answers["full logits (MoCo)"]
    differences = {
        "loss_relative": abs(ours.item() - theirs.item()) / abs(theirs.item()),
        "gradient_relative": ((our_gradient - their_gradient).norm() / their_gradient.norm()).item(),
    }
    if not (differences["loss_relative"] <= LOSS_TOLERANCE and differences["gradient_relative"] <= GRADIENT_TOLERANCE):
        raise Disagreement(f"contrastive: the tiled form and full logits differ: {differences}")
    return differences
