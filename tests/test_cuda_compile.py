"""csrc/cuda compiled for sm_80, sm_90 and sm_100 without a GPU, by NVRTC and nvcc, within limits on its resources."""

import shutil
from pathlib import Path

import pytest

from benchmarks import resources
from qpt import build
from qpt.errors import BackendError
from qpt.ops.degrade import nvrtc
from tests import offline

pytestmark = pytest.mark.rung("offline compile")

CSRC = Path(__file__).parents[1] / "csrc"
# Some ops by source keep their parameters through a blur, for which a thread has not registers enough.
SPILLED_BYTES = 0
REGISTERS = 65_536 // build.BLOCK_THREADS  # a multiprocessor's, shared by the threads of one block


@pytest.mark.parametrize("architecture", [*resources.ARCHITECTURES, *build.NEWER_ARCHITECTURES])
def test_nvrtc_makes_a_kernel_that_can_be_launched(architecture: int) -> None:
    if architecture not in nvrtc.architectures():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{architecture}")
    cubin = nvrtc.compile_cubin(build.device_source(), build.CUDA_FLAGS, architecture, "degrade")
    found = resources.read(cubin)
    assert list(found) == ["qpt_degrade"]
    offline.check(found["qpt_degrade"], architecture, REGISTERS, spilled_bytes=SPILLED_BYTES)
    blocks = resources.blocks_per_multiprocessor(found["qpt_degrade"], build.BLOCK_THREADS, architecture)
    assert resources.occupancy(blocks, build.BLOCK_THREADS) >= 0.25


def test_fat_binary_of_nvcc_holds_every_architecture(tmp_path: Path) -> None:
    nvcc = build.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: not in $CUDA_HOME/bin, $PATH or /usr/local/cuda/bin")
    fat_binary = tmp_path / "degrade.fatbin"
    targets = ["-fatbin", *build.gencode_flags(resources.ARCHITECTURES)]
    resources.run_tool(build.nvcc_command(nvcc, CSRC / build.CUDA_SOURCES[0], fat_binary, targets))
    listed = resources.cuobjdump("-lelf", fat_binary) + resources.cuobjdump("-lptx", fat_binary)
    for wanted in ("sm_80.cubin", "sm_90.cubin", "sm_90.ptx"):
        assert wanted in listed
    for architecture in resources.ARCHITECTURES:
        cubin = tmp_path / f"degrade.sm_{architecture}.cubin"
        targets = ["-cubin", f"-arch=sm_{architecture}"]
        resources.run_tool(build.nvcc_command(nvcc, CSRC / build.CUDA_SOURCES[0], cubin, targets))
        found = resources.read(cubin.read_bytes())["qpt_degrade"]
        offline.check(found, architecture, REGISTERS, spilled_bytes=SPILLED_BYTES)


def test_limits_notice_a_spill() -> None:
    """A local array indexed at run time lives in local memory: the check must refuse it."""
    source = """extern "C" __global__ void spills(int* x, int n) {
      int table[64];
      for (int i = 0; i < n; ++i) table[x[i] & 63] = x[i + 64];
      x[threadIdx.x] = table[(x[n] + threadIdx.x) & 63];
    }"""
    found = resources.read(nvrtc.compile_cubin(source, (), 80, "spills"))["spills"]
    assert found.stack_bytes > 0
    assert found.local_accesses > 0
    with pytest.raises(AssertionError):
        offline.check(found, 80, REGISTERS)


def test_nvrtc_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = 'extern "C" __global__ void one(float* x) { x[threadIdx.x] = 1; }'
    first = nvrtc.cubin_file(source, ("--fmad=false",), 80, "one")
    assert first.parent == tmp_path / "qpt"
    assert nvrtc.cubin_file(source, ("--fmad=false",), 80, "one") == first
    assert nvrtc.cubin_file(source + "\n", ("--fmad=false",), 80, "one") != first
    assert nvrtc.cubin_file(source, (), 80, "one") != first
    shutil.rmtree(tmp_path / "qpt")
    tmp_path.joinpath("qpt").touch()  # a cache folder that cannot be made
    elsewhere = nvrtc.cubin_file(source, ("--fmad=false",), 80, "one")
    assert elsewhere.read_bytes()[:4] == b"\x7fELF"
    assert tmp_path not in elsewhere.parents


def test_nvrtc_error_shows_the_compiler_s_log() -> None:
    with pytest.raises(BackendError, match=r"(?s)broken, sm_80.*undefined_name"):
        nvrtc.compile_cubin('extern "C" __global__ void k() { undefined_name = 1; }', (), 80, "broken")


def test_device_source_is_whole_and_holds_each_header_once() -> None:
    source = build.device_source()
    assert '#include "' not in source
    assert source.count("struct Solo {") == 1
    assert "qpt_degrade" in source
