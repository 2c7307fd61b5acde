"""`python -m benchmarks profile`: what it counts on a small launch, its page, its JSON and its error messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import profile, profile_page
from qpt.kernels import contrastive_pass
from tests import offline, ptx
from tests.ptx import compilers

SOURCE = """extern "C" __global__ void shift(const float* x, float* out, int n) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x * 2] * 3.0f;
  __syncthreads();
  if (threadIdx.x < n) out[threadIdx.x] = tile[63 - threadIdx.x];
}
"""


def test_section_of_a_small_kernel(tmp_path) -> None:
    kernel = ptx.load(compilers.cuda(SOURCE))["shift"]
    x, out = ptx.Buffer(np.zeros(128, np.float32)), ptx.Buffer.empty(64, np.float32)
    x.base -= x.base % 256
    counts = kernel.launch(1, 64, [x, out, 64], count=True)
    found = profile.section(kernel, counts, 64)
    assert found["instructions"] == counts["runs"].sum()
    assert found["per_unit"] == found["instructions"] * 32 / 64
    assert found["barriers_of_warps"] == 2
    assert found["pipes"]["FMA"]["per_unit"] == 1
    load = found["pipes"]["load global"]
    assert (load["bytes"], load["sectors_per_request"], load["sector_use"]) == (256, 8, 0.5)
    assert found["bytes"]["shared"] == 2 * 256
    assert sum(entry["instructions"] for entry in found["lines"]) <= found["instructions"]
    page = profile_page.text(
        {
            "title": "T",
            "unit": "pixel",
            "sections": [{"name": "shift"} | found],
            "machine_code": [profile.machine_code("shift", kernel, None)],
        },
        lines=50,
    )
    assert "| shift | load global | 1.00 | 4.00 | 8.00 | 100% | 8.0 | 0.50 |  |" in page
    assert "source.cu:3" in page
    assert "no machine code to compare with" in page


def test_machine_pipes() -> None:
    expected = {
        "FFMA": "FMA", "IMAD.WIDE.U32": "IMAD", "HMMA.16816.F32.BF16": "tensor", "MUFU.EX2": "special",
        "LOP3.LUT": "ALU",
        "F2FP.BF16.PACK_AB": "ALU", "I2F.S16": "convert", "LDGSTS.E.BYPASS.128": "copy global", "LDG.E": "load global",
        "LDS.128": "load shared", "LDSM.16.M88.4": "load shared", "LD.E": "load generic", "BAR.SYNC": "control",
        "SHFL.BFLY": "lanes", "IMAD.MOV.U32": "move", "MOV": "move", "DFMA": "double", "HFMA2.MMA": "half",
    }  # fmt: skip
    assert {opcode: profile.machine_pipe(opcode) for opcode in expected} == expected


@offline.needs_triton
def test_profile_of_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--queries", "16", "--keys", "64", "--dim", "64", "--dtype", "float16", "--json"]
    assert benchmarks.main(["profile", "contrastive", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    names = [section["name"] for section in content["sections"]]
    assert names[0].startswith("log-sum-exp")
    assert "key gradient" in names
    assert content["sections"][0]["pipes"]["tensor"]["per_unit"] > 0
    assert any("tl.dot" in entry["text"] for entry in content["sections"][0]["lines"])
    assert all(entry["ptx"] > 0 for entry in content["machine_code"])


def test_kernels_of_another_checkout_are_read_here() -> None:
    """Triton's cache keeps the path of the checkout that compiled a kernel first, which may be gone."""
    (number, text), *_ = [
        (number, line.strip())
        for number, line in enumerate(Path(contrastive_pass.__file__).read_text(encoding="utf-8").splitlines(), 1)
        if "tl.dot" in line
    ]
    assert profile.source_text(f"/gone/kernels/contrastive_pass.py:{number}") == text
    assert profile.source_text("/gone/kernels/other.py:1") == ""


def test_refused_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["degrade", "--level", "6"]) == 2
    assert "profile: level must be 1 to 5, got 6" in capsys.readouterr().err
    assert profile.main(["contrastive", "--keys", "0"]) == 2
    assert "profile: keys must be >= 1, got 0" in capsys.readouterr().err
