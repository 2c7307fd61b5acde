"""degrade and degrade_patches: the error of every wrong argument and of missing backends."""

import multiprocessing
import os
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qpt import build
from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, NAMES
from qpt.degradations.program import Program
from qpt.errors import BackendError, InputError
from qpt.ops import extension
from qpt.ops.degrade import cuda
from qpt.ops.degrade.api import choose_backend, degrade, degrade_patches
from qpt.process import is_forked
from tests.programs import sample, smooth_images

IMAGES, PROGRAM = smooth_images(2, 16, 20), sample(2, views=1, seed=8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.numpy(), r"be \(B, H, W, 3\) uint8, got .* ndarray"),
        (IMAGES.float(), r"got \(2, 16, 20, 3\) float32"),
        (IMAGES.permute(0, 3, 1, 2), r"got \(2, 3, 16, 20\) uint8"),
        (IMAGES[0], r"got \(16, 20, 3\) uint8"),
        (IMAGES[..., :1], r"got \(2, 16, 20, 1\) uint8"),
        (IMAGES.to("meta"), "on the CPU or a CUDA device, got meta"),
        (IMAGES[:, :0], "H, W of at least 1"),
        (IMAGES[:1].expand(2, 16, 20, 3)[:, :1, :1].expand(2, 30_000, 30_000, 3), r"H \* W \* 3 < 2\^31"),
    ],
)
def test_images_refused(images, message):
    with pytest.raises(InputError, match=f"^degrade: images must .*{message}"):
        degrade(images, PROGRAM)


def test_a_batch_without_images_has_no_rows_to_degrade():
    with pytest.raises(InputError, match=r"degrade: program.source must be below the number of images, 0, got 1"):
        degrade(IMAGES[:0], PROGRAM)
    assert degrade(IMAGES[:0], PROGRAM[:0]).shape == (0, 16, 20, 3)


def with_value(field: str, index: tuple[int, ...], value: float) -> Program:
    changed = getattr(PROGRAM, field).clone()
    changed[index] = value
    return replace(PROGRAM, **{field: changed})


JPEG = Program.from_chains([[("jpeg", 3)]], seeds=[0])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([PROGRAM], "program must be a qpt.Program, got list"),
        (replace(PROGRAM, table="0" * 16), "program must be made with op table .* got 0000000000000000"),
        (replace(PROGRAM, ops=PROGRAM.ops.long()), r"program.ops must be \(r, S\) int16 .* got \(2, 5\) int64"),
        (replace(PROGRAM, ops=PROGRAM.ops.numpy()), "program.ops must be a torch tensor, got ndarray"),
        (replace(PROGRAM, ops=PROGRAM.ops[0]), r"program.ops must be \(r, S\) int16 .* got \(5,\) int16"),
        (replace(PROGRAM, levels=PROGRAM.levels[:, :4]), r"program.levels must be \(r, S\) int8 .* got \(2, 4\) int8"),
        (replace(PROGRAM, levels=PROGRAM.levels.short()), "program.levels must be .* got .* int16"),
        (replace(PROGRAM, params=PROGRAM.params.double()), "program.params must be .* float32 .* float64"),
        (replace(PROGRAM, params=PROGRAM.params[..., :3]), r"program.params must be .* got \(2, 5, 3\)"),
        (
            replace(PROGRAM, params=PROGRAM.params.clone().requires_grad_()),
            "program.params must not require a gradient",
        ),
        (replace(PROGRAM, seeds=PROGRAM.seeds[:1]), r"program.seeds must be \(r,\) int64 .* got \(1,\) int64"),
        (replace(PROGRAM, seeds=PROGRAM.seeds.int()), r"program.seeds must be \(r,\) int64 .* int32"),
        (replace(PROGRAM, seeds=PROGRAM.seeds.to("meta")), "program.seeds must be .* on the CPU, got .* on meta"),
        (replace(PROGRAM, source=PROGRAM.source.long()), r"program.source must be \(r,\) int32 .* int64"),
        (with_value("ops", (1, 0), len(NAMES)), f"program.ops must be op ids in -1..{len(NAMES) - 1}, got"),
        (with_value("ops", (1, 0), -2), "program.ops must be op ids .* got -2 in row 1"),
        (with_value("levels", (0, 0), 6), r"program.levels must be in 0\.\.5, got 6 in row 0"),
        (with_value("levels", (0, 0), -1), "program.levels must be in .* got -1"),
        (with_value("source", (1,), 2), "program.source must be below the number of images, 2, got 2"),
        (with_value("source", (1,), -1), "program.source must be image indices from 0, got -1 in row 1"),
        (replace(JPEG, params=torch.full((1, 1, 4), float("nan"))), r"quality an integer in \[1, 100\] .* got nan"),
        (replace(JPEG, params=torch.tensor([[[50.0, 0, 0, float("nan")]]])), "params of jpeg must be numbers, got nan"),
        (
            replace(JPEG, params=torch.zeros(1, 1, 4)),
            "program.params of jpeg must have quality .* got 0 in row 0, slot 0",
        ),
        (replace(JPEG, params=torch.full((1, 1, 4), 50.5)), "quality an integer"),
        (replace(JPEG, params=torch.full((1, 1, 4), float("inf"))), "quality an integer .* got inf"),
    ],
)
def test_programs_refused(program, message):
    with pytest.raises(InputError, match=f"^degrade: {message}|^degrade: program.*{message}"):
        degrade(IMAGES, program)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_beyond_the_table_are_refused(name):
    entry = DEGRADATIONS[op_table.op_id(name)]
    good = Program.from_chains([[(name, 3)]], seeds=[0])
    for slot, p in enumerate(entry.parameters):
        for value in (p.low - 1, p.high + 1, float("nan"), float("-inf")):
            params = good.params.clone()
            params[0, 0, slot] = value
            with pytest.raises(InputError, match=f"params of {name} must have {p.name}"):
                degrade(IMAGES, replace(good, params=params))
        for value in (p.low, p.high):  # the ends themselves run
            params = good.params.clone()
            params[0, 0, slot] = value
            assert degrade(IMAGES, replace(good, params=params)).shape == (1, 16, 20, 3)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_refused(threads):
    with pytest.raises(InputError, match="degrade: threads must be an integer of at least 1"):
        degrade(IMAGES, PROGRAM, threads=threads)


BOXES = torch.zeros(2, 3, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": BOXES.long()}, r"boxes must be \(2, P, 2\) int32, .* got \(2, 3, 2\) int64"),
        ({"boxes": BOXES.numpy()}, "boxes must be .* got .* ndarray"),
        ({"boxes": BOXES[:1]}, r"boxes must be \(2, P, 2\) .* got \(1, 3, 2\)"),
        ({"boxes": BOXES[0]}, r"boxes must be .* got \(3, 2\)"),
        ({"boxes": torch.zeros(2, 3, 4, dtype=torch.int32)}, r"boxes must be .* got \(2, 3, 4\)"),
        ({"boxes": BOXES.to("meta")}, "boxes must be on the CPU"),
        ({"boxes": BOXES - 1}, r"boxes must keep a 8 x 8 patch inside 16 x 20, got .* \(-1, -1\) for row 0, patch 0"),
        ({"boxes": BOXES + torch.tensor([9, 0], dtype=torch.int32)}, r"got \(top, left\) = \(9, 0\)"),
        ({"boxes": BOXES + torch.tensor([0, 13], dtype=torch.int32)}, r"got \(top, left\) = \(0, 13\)"),
        ({"size": 0}, r"size must be an integer in 1\.\.16, got 0"),
        ({"size": 17}, "size must be an integer in .* got 17"),
        ({"size": 8.0}, "size must be an integer"),
        ({"dtype": torch.int8}, "dtype must be a floating-point torch dtype or torch.uint8, got torch.int8"),
        ({"memory_format": torch.preserve_format}, "memory_format must be torch.channels_last"),
        ({"threads": 0}, "threads must be"),
        ({"backend": "gpu"}, "backend must be one of auto, cpu, cuda, got 'gpu'"),
        ({"images": IMAGES.float()}, "images must be"),
        ({"program": replace(PROGRAM, table="x")}, "program must be made with op table"),
    ],
)
def test_patches_refused(changes, message):
    arguments = {"images": IMAGES, "program": PROGRAM, "boxes": BOXES, "size": 8} | changes
    with pytest.raises(InputError, match=f"^degrade_patches: .*{message}|^degrade_patches: {message}"):
        degrade_patches(**arguments)


def test_backends_refused():
    with pytest.raises(InputError, match="backend must be one of auto, cpu, cuda, got 'gpu'"):
        degrade(IMAGES, PROGRAM, backend="gpu")
    with pytest.raises(InputError, match="images must be on a CUDA device under"):
        degrade(IMAGES, PROGRAM, backend="cuda")


def test_cuda_images_go_to_cuda_or_fall_back_once(monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda: None)
    assert choose_backend("degrade", "cuda", "auto") == "cuda"
    assert choose_backend("degrade", "cuda", "cpu") == "cpu"
    reason = "no CuPy for this test"
    monkeypatch.setattr(cuda, "available", lambda: reason)
    with pytest.raises(BackendError, match=f"degrade: the CUDA kernels are unavailable: {reason}"):
        choose_backend("degrade", "cuda", "cuda")
    with pytest.warns(UserWarning, match=f"running on the CPU, since .*{reason}"):
        assert choose_backend("degrade", "cuda", "auto") == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("degrade", "cuda", "auto") == "cpu"


def test_a_device_without_a_kernel_falls_back_once_or_raises(monkeypatch):
    """Images stay on the CPU here; only the choice of backend is replaced."""

    def no_kernel(images: torch.Tensor, program: Program, patches: None) -> torch.Tensor:
        raise BackendError("no CUDA kernel for this test")

    expected = degrade(IMAGES, PROGRAM)
    monkeypatch.setattr("qpt.ops.degrade.api.choose_backend", lambda caller, device, backend: "cuda")
    monkeypatch.setattr(cuda, "degrade", no_kernel)
    with pytest.raises(BackendError, match="no CUDA kernel for this test"):
        degrade(IMAGES, PROGRAM, backend="cuda")
    with pytest.warns(UserWarning, match="running on the CPU, since .*no CUDA kernel for this test"):
        assert torch.equal(degrade(IMAGES, PROGRAM), expected)


def test_a_missing_module_is_explained_and_remembered(monkeypatch):
    attempts = []

    def fail(name: str) -> None:
        attempts.append(name)
        raise ImportError("no such file for this test")

    monkeypatch.setattr(extension, "_loaded", None)
    monkeypatch.setattr(extension, "importlib", SimpleNamespace(import_module=fail))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"qpt\._C .*no such file for this test; rebuild it: pip install"):
            degrade(IMAGES, PROGRAM)
    assert attempts == ["qpt._C"]
    assert "no such file" in (extension.available() or "")


def test_a_module_with_other_ops_or_for_another_processor_is_refused(monkeypatch):
    for ops, message in (
        ((*NAMES[:2], "other", *NAMES[3:]), f"op 2 is other in the module and {NAMES[2]} in the table"),
        (NAMES[:-1], f"op {len(NAMES) - 1} is nothing in the module and {NAMES[-1]} in the table"),
        ((*NAMES, "newer"), f"op {len(NAMES)} is newer in the module and nothing in the table"),
    ):
        module = SimpleNamespace(op_names=lambda ops=ops: ops, __file__="qpt/_C.so")
        monkeypatch.setattr(extension, "_loaded", None)
        monkeypatch.setattr(extension, "importlib", SimpleNamespace(import_module=lambda name, module=module: module))
        with pytest.raises(BackendError, match=f"{message}; rebuild it"):
            extension.load()
    monkeypatch.setattr(extension, "_loaded", None)
    monkeypatch.setattr(build, "instruction_set_mismatch", lambda facts: "it was compiled for another processor")
    with pytest.raises(BackendError, match="cannot run here: it was compiled for another processor"):
        extension.load()


def _degrade_in_child(queue: multiprocessing.Queue, images: np.ndarray, path: str) -> None:
    try:
        queue.put(degrade(torch.from_numpy(images), Program.load(path)).numpy())
    except BackendError as error:
        queue.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_workers_agree(method, tmp_path):
    PROGRAM.save(tmp_path / "p.npz")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_degrade_in_child, args=(queue, IMAGES.numpy(), str(tmp_path / "p.npz")))
    child.start()
    answer = queue.get(timeout=120)
    child.join()
    assert np.array_equal(answer, degrade(IMAGES, PROGRAM).numpy())


class _DegradingDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return degrade(IMAGES, PROGRAM)[index]


def test_a_dataloader_worker_agrees():
    loader = torch.utils.data.DataLoader(_DegradingDataset(), num_workers=1, multiprocessing_context="fork")
    assert torch.equal(next(iter(loader))[0], degrade(IMAGES, PROGRAM)[0])


def test_a_plain_fork_is_noticed_and_the_parent_goes_on():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"yes" if is_forked() and torch.get_num_threads() == 1 else b"no")
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 3) == b"yes"
    os.close(read)
    assert not is_forked()
