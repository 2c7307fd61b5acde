"""Building tests/cpp/loss.cpp, writing its input and checking its output against the definition; used by the tests of
processors that run the loss outside this interpreter."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.native import CPP
from tests.reference.contrastive import contrastive

SOURCES = [str(path) for path in sorted((CPP.parent.parent / "csrc" / "cpu").glob("contrastive*.cpp"))]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of the keys; their places are the DType of contrastive.h


@dataclass(frozen=True)
class Embeddings:
    """n queries and k keys of `dim` numbers, of length 1, with ids of groups; what the program must print of them."""

    queries: np.ndarray
    keys: torch.Tensor
    query_groups: np.ndarray
    key_groups: np.ndarray
    temperature: float = 0.1

    @staticmethod
    def draw(n: int, k: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> "Embeddings":
        rng = np.random.default_rng(seed)
        queries, keys = (rng.normal(size=(count, dim)).astype(np.float32) for count in (n, k))
        queries, keys = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))
        groups = rng.integers(0, 40, n), rng.integers(-1, 40, k)
        return Embeddings(queries, torch.from_numpy(keys).to(dtype), *groups)

    def write(self, path: Path) -> Path:
        (n, dim), k = self.queries.shape, len(self.keys)
        header = struct.pack("<qqqqd", n, k, dim, DTYPES.index(self.keys.dtype), self.temperature)
        keys = self.keys.view(torch.uint8).numpy().tobytes()
        ids = [groups.astype(np.int64).tobytes() for groups in (self.query_groups, self.key_groups)]
        path.write_bytes(header + self.queries.tobytes() + keys + b"".join(ids))
        return path

    def check(self, output: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Assert that the program's output is the loss within 1e-6 and gradients norm-wise within 1e-5 of float64.

        Returns the queries' gradient and the true one.
        """
        (n, dim), k = self.queries.shape, len(self.keys)
        found = np.frombuffer(output, np.float32).astype(np.float64)
        assert found.size == 1 + n + (n + k) * dim
        loss, lse, rest = found[0], found[1 : 1 + n], found[1 + n :].reshape(n + k, dim)
        keys = self.keys.double().numpy()
        truth = contrastive(self.queries, keys, self.query_groups, self.key_groups, temperature=self.temperature)
        np.testing.assert_allclose(loss, truth["loss"], rtol=1e-6)
        _close(rest[:n], truth["grad_queries"])
        # Rows without a positive have lse = inf: nothing of them reaches a key.
        logits = self.queries.astype(np.float64) @ keys.T / self.temperature
        _close(rest[n:], np.exp(logits - lse[:, None]).T @ self.queries)
        return rest[:n], truth["grad_queries"]


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
