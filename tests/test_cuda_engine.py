"""The host code of the CUDA engine, on fake devices: guards, limits and memory of each, and what a launch is given."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.fake_gpu import STATIC_SHARED, FakeGpu, OnGpu, fake_gpu
from qpt import InputError, Program, degrade, degrade_patches
from qpt.errors import BackendError
from qpt.ops import extension
from qpt.ops.degrade import cuda
from qpt.ops.degrade.patches import Patches
from tests.programs import sample, smooth_images

HEIGHT, WIDTH = 40, 52
IMAGE = HEIGHT * WIDTH * 3


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


def boxes_of(rows: int) -> torch.Tensor:
    return torch.tensor([[3, 5], [8, 20]], dtype=torch.int32).expand(rows, 2, 2)


def on_second(images: torch.Tensor) -> torch.Tensor:
    return images.as_subclass(OnGpu)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_the_bytes_of_a_launch_are_those_of_the_cpu(gpu: FakeGpu, dtype: torch.dtype) -> None:
    images, program = smooth_images(6, HEIGHT, WIDTH), sample(6)
    assert torch.equal(degrade(images, program), degrade(images, program, backend="cpu"))
    cut = degrade_patches(images, program, boxes_of(12), 20, dtype=dtype)
    assert torch.equal(cut, degrade_patches(images, program, boxes_of(12), 20, dtype=dtype, backend="cpu"))
    assert len(gpu.launches) == 2


def test_a_launch_on_another_device_than_the_current_one(gpu: FakeGpu) -> None:
    """cuda:1 with cuda:0 current: its own module, stream and limit of shared memory, and nothing on cuda:0."""
    images, program = smooth_images(6, HEIGHT, WIDTH), sample(6)
    for _ in range(2):
        out = cuda.degrade(on_second(images), program, None)
        assert torch.equal(out.as_subclass(torch.Tensor), degrade(images, program, backend="cpu"))
    assert [launch[0] for launch in gpu.launches] == [1, 1]
    assert [device for device, _ in gpu.loaded] == [1]
    assert gpu.current == 0 and not gpu.streams


def test_each_device_has_a_limit_of_shared_memory_of_its_own() -> None:
    """The kernel's static bytes are a part of what a block may have."""
    program = Program.from_chains([[("hue", 1), ("hue", 2)]], seeds=[1])
    side = 200
    images = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    needed = cuda.shared_bytes_used(program, side, side, None, 1 << 30)[0]
    head = cuda.HEAD_BYTES
    limits = (needed + head + STATIC_SHARED, needed + head + STATIC_SHARED - 1)
    with fake_gpu(FakeGpu(limits)) as gpu:
        gpu.cooperative = False  # of a team of several blocks no image is in shared memory
        cuda.degrade(images, program, None)
        cuda.degrade(on_second(images), program, None)
        cuda.degrade(images, program, None)
        asked = [(device, shared - head) for device, _, _, shared, _ in gpu.launches]
        assert asked == [(0, needed), (1, 0), (0, needed)]
        assert [cuda._kernel(device).shared_limit for device in (None, 1)] == [
            limit - head - STATIC_SHARED for limit in limits
        ]


def test_large_images_have_fewer_rows_in_flight() -> None:
    images, program = smooth_images(6, HEIGHT, WIDTH), sample(6)
    scratch = extension.load().team_scratch_bytes(HEIGHT, WIDTH, program.resizes(), False, 1)
    for rows, teams in ((100, 12), (12, 12), (5.9, 5), (1, 1), (0.1, 1)):
        gpu = FakeGpu()
        gpu.cooperative = False
        gpu.total_memory = int(rows * scratch / cuda.SCRATCH_SHARE)
        with fake_gpu(gpu):
            assert torch.equal(degrade(images, program), degrade(images, program, backend="cpu"))
        assert gpu.launches[0][1:3] == (teams, teams)


def test_a_launch_fills_the_multiprocessors() -> None:
    """Few rows have many blocks each, many rows enough of them that no long row runs alone at the end."""
    for rows in (1, 2, 16, 64, 256, 2048):
        program = sample(rows, views=1)
        config = cuda.LaunchConfig.of(program, 320, 320, None, multiprocessors=132, shared_limit=0)
        assert config.teams <= rows
        assert config.blocks == 132 or (rows < 4 and config.largest_team == 320 // cuda.LEAST_ROWS)
    small = cuda.LaunchConfig.of(sample(4), 7, 300, None, multiprocessors=132, shared_limit=0)
    assert (small.teams, small.blocks) == (8, 8)


@pytest.mark.parametrize("cooperative", [True, False])
def test_blocks_wait_for_each_other_only_in_a_cooperative_launch(gpu: FakeGpu, cooperative: bool) -> None:
    height = width = 160
    images, program = (
        smooth_images(1, height, width),
        Program.from_chains([[("sinc_filter", 5), ("hue", 1)]], seeds=[1]),
    )
    gpu.cooperative = cooperative
    assert torch.equal(degrade(images, program), degrade(images, program, backend="cpu"))
    ((_, blocks, teams, _, scratch),) = gpu.launches
    assert (blocks, teams) == (height // cuda.LEAST_ROWS if cooperative else 1, 1)
    assert scratch == extension.load().team_scratch_bytes(height, width, program.resizes(), False, blocks)


def test_what_132_multiprocessors_take_of_12_megapixels() -> None:
    program = Program.from_chains([[("jpeg2000", 3)]] * 500, seeds=range(500))
    config = cuda.LaunchConfig.of(
        program, 3000, 4000, None, multiprocessors=132, shared_limit=0, scratch_limit=80 * 2**30 * cuda.SCRATCH_SHARE
    )
    assert 120 < config.blocks <= 132 and config.teams * config.scratch_bytes <= 10 * 2**30


def test_a_full_device_takes_fewer_rows_and_says_what_one_needs(gpu: FakeGpu) -> None:
    images, program = smooth_images(6, HEIGHT, WIDTH), sample(6)
    expected = degrade(images, program, backend="cpu")
    gpu.cooperative = False
    scratch = extension.load().team_scratch_bytes(HEIGHT, WIDTH, program.resizes(), False, 1)
    out = len(program) * IMAGE
    assert out < scratch
    gpu.free_bytes = 4 * scratch
    result = cuda.degrade(on_second(images), program, None)
    assert torch.equal(result.as_subclass(torch.Tensor), expected)
    assert gpu.launches[0][1:3] == (3, 3)  # 12, 6, 3
    gpu.free_bytes = scratch - 1
    with pytest.raises(InputError, match=rf"must leave {scratch} bytes of cuda:1 free, .* 40 x 52 takes, got CUDA out"):
        cuda.degrade(on_second(images), program, None)


def test_inputs_are_sent_in_one_copy_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    program = sample(6)
    images = smooth_images(6, HEIGHT, WIDTH)
    patches = Patches.of(program, boxes_of(12), 20, HEIGHT, WIDTH, torch.float64, torch.channels_last)
    made: list[tuple[str, bool]] = []
    plain = torch.empty

    def empty(*size: object, device: object = None, pin_memory: bool = False, **options: object) -> torch.Tensor:
        made.append((str(device), pin_memory))
        return plain(*size, device="cpu", **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "empty", empty)
    inputs = cuda.KernelInputs.of(on_second(images), program, patches)
    assert made == [("cpu", False), ("cpu", True), ("cuda:1", False)]  # the first holds nothing
    sent = (program.ops, program.params, program.seeds, program.source)
    for given, wanted in zip(
        inputs[1:], (*sent, inputs.order, patches.windows, patches.boxes, patches.lut), strict=True
    ):
        assert given.is_contiguous() and given.data_ptr() % 256 == inputs.ops.data_ptr() % 256
        assert given.dtype == wanted.dtype and torch.equal(given, wanted)
    assert sorted(inputs.order.tolist()) == list(range(12))


def test_without_patches_their_pointers_are_null() -> None:
    images, program = smooth_images(1, 8, 9), sample(1, views=1)
    inputs = cuda.KernelInputs.of(images, program, None)
    out, scratch = torch.empty_like(images), torch.empty(1, dtype=torch.uint8)
    arguments = cuda.kernel_arguments(cuda.LaunchConfig(1, 1, 1, 0), inputs, None, out, scratch, scratch)
    assert [int(pointer) for pointer in arguments[7:10]] == [0, 0, 0] and all(arguments[:7])
    assert all(isinstance(argument, np.generic) for argument in arguments)


def test_no_kernel_is_one_error_with_every_cause(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> object:
        def load(*_: object) -> None:
            raise BackendError(text)

        return load

    monkeypatch.setattr(cuda, "_load_fat_binary", refuse("built with QPT_CUDA=0"))
    monkeypatch.setattr(cuda, "_load_from_nvrtc", refuse("libnvrtc was not found"))
    with pytest.raises(BackendError, match=r"device 1: fat binary: built with .*; NVRTC: libnvrtc was .*ARCHS=90 pip"):
        cuda.degrade(on_second(smooth_images(1, 8, 9)), sample(1), None)


@pytest.mark.parametrize(("version", "extra"), [("12.8", "cuda12"), ("13.0", "cuda13"), ("14.0", "cuda13")])
def test_the_cupy_that_a_message_names_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, version: str, extra: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    assert cuda.cupy_extra() == extra
