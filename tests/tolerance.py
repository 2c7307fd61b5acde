"""One tolerance table for all tests: dtype -> (relative, absolute).

float64 and float32: agreement with the float64 reference, norms for gradients. float16 and bfloat16: the slack in
|truth - ours| <= |truth - torch in the same dtype| + tol, relative to the size of the truth.
"""

import torch

TOL: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (8e-3, 1e-4),
}


def assert_close(actual: torch.Tensor, expected: object, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Norm-wise: |actual - expected| <= scale * (absolute + relative * |expected|), with Euclidean norms over all
    elements. ``dtype`` names the row of the table; ``scale`` states a wider bound where the test says why."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    relative, absolute = TOL[dtype]
    error = (actual.detach().to("cpu", torch.float64) - expected).norm().item()
    bound = scale * (absolute + relative * expected.norm().item())
    assert error <= bound, f"error {error:.3g} > {bound:.3g}"
