"""Accuracy of each product mode of the loss's Triton kernels, with TF32's rounding written out.

No tensor core is here: `cvt.rna.tf32.f32` (PTX ISA: 10 explicit fraction bits, to nearest, ties away) is emulated, and
a product of TF32 numbers is exact in float32's accumulator but for its additions. Triton's "tf32x3" takes the high and
low part of each factor and leaves out low x low; "bf16x3" of kernels/contrastive_pass.py does the same with bfloat16.
docs/loss.md quotes the bounds asserted here.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_contrastive import unit
from tests.tolerance import TOL

TEMPERATURE = 0.1


def tf32(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def ieee(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def one_tf32(a: Tensor, b: Tensor) -> Tensor:
    return tf32(a) @ tf32(b)


def three_tf32(a: Tensor, b: Tensor) -> Tensor:
    high_a, high_b = tf32(a), tf32(b)
    low_a, low_b = tf32(a - high_a), tf32(b - high_b)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def three_bfloat16(a: Tensor, b: Tensor) -> Tensor:
    (high_a, low_a), (high_b, low_b) = terms(a), terms(b)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def two_bfloat16(a: Tensor, b: Tensor) -> Tensor:
    """b: bfloat16 numbers."""
    high_a, low_a = terms(a)
    return low_a @ b + high_a @ b


def terms(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16().float()
    return high, (x - high).bfloat16().float()


def info_nce(
    queries: Tensor, keys: Tensor, pool: Tensor, product, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """Loss and d loss / d queries; the products over the pool by ``product``, the row's own key exactly."""
    own = (queries.double() * keys.double()).sum(1, keepdim=True).to(queries.dtype) / temperature
    z = torch.cat([own, product(queries, pool.T) / temperature], 1)
    p = z.softmax(1)
    mean = p[:, :1] * keys + product(p[:, 1:].contiguous(), pool)
    return (z.logsumexp(1) - z[:, 0]).double().mean(), (mean - keys) / (temperature * len(queries))


def errors(product, dim: int, temperature: float = TEMPERATURE, half_pool: bool = False) -> tuple[float, float]:
    """Relative error of the loss and norm-wise error of the gradient against float64."""
    generator = torch.Generator().manual_seed(dim)
    queries, pool = (unit(generator, rows, dim, torch.float32) for rows in (64, 4096))
    pool = pool.bfloat16().float() if half_pool else pool
    keys = F.normalize(queries + 0.5 * unit(generator, 64, dim, torch.float32), dim=1)
    true_loss, true_gradient = info_nce(queries.double(), keys.double(), pool.double(), ieee, temperature)
    loss, gradient = info_nce(queries, keys, pool, product, temperature)
    norm = torch.linalg.vector_norm(true_gradient)
    return abs(loss - true_loss).item() / true_loss.item(), ((gradient - true_gradient).norm() / norm).item()


def test_the_rounding_keeps_ten_bits_to_nearest():
    step = 2.0**-10
    values = torch.tensor([1.0, 1 + step, 1 + step / 2, 1 + step / 2.01, -1 - step / 2, 3e-39])
    assert tf32(values)[:5].tolist() == [1.0, 1 + step, 1 + step, 1.0, -1 - step]


@pytest.mark.parametrize("dim", [128, 256])
def test_three_tf32_products_are_as_good_as_ieee_ones_and_one_is_not(dim):
    for product in (ieee, three_tf32):
        loss, gradient = errors(product, dim)
        assert loss <= 1e-6 and gradient <= 2e-6, (product.__name__, loss, gradient)
    loss, gradient = errors(one_tf32, dim)
    assert gradient > 1e-5, "a single TF32 product would pass as float32: offer it"


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_terms_of_bfloat16_are_no_worse_than_float32_by_more_than_the_tolerance(dim, temperature):
    """|truth - ours| <= |truth - torch| + tol, the default on a GPU against products of float32."""
    relative, _ = TOL[torch.float32]
    for product, half_pool in ((three_bfloat16, False), (two_bfloat16, True)):
        theirs, ours = (errors(each, dim, temperature, half_pool) for each in (ieee, product))
        for mine, rival in zip(ours, theirs, strict=True):
            assert mine <= rival + relative, (product.__name__, ours, theirs)
        # At a low temperature the row's own key cancels from the gradient, which magnifies every error alike.
        if temperature == 0.2:
            assert ours[0] <= 2e-6
            assert ours[1] <= 6e-6
