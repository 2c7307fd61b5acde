"""Settings of the whole process: forked children finish, and threads follow what was granted."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from qpt import process
from qpt.commands.doctor import diagnose
from qpt.pretraining.process_group import use_threads
from tests.labelled import image_regions

# The parent works with two threads first, so that OpenMP has a pool; then its child does the same work.
_FORK = """
import os, sys, numpy as np, torch, qpt
from PIL import Image
from qpt.models.encoder import untrained_encoder
torch.set_num_threads(2)
space = qpt.DegradationSpace.preset("qpt")
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8, generator=generator)
program = space.sample(4, views=2, generator=generator)
encoder, photos = untrained_encoder("resnet18", 8, 0), sys.argv[1]
rows = torch.nn.functional.normalize(torch.randn(600, 64, generator=generator), dim=1)
ids, pool = torch.arange(600) // 2, qpt.NegativePool(20000, 64)
for step in range(30):
    pool.push(rows + 0.01 * step, pool.new_groups(600))
def loss(backend):
    q, k = rows.clone().requires_grad_(), rows.flip(0).requires_grad_()
    value = qpt.contrastive_loss(q, k, query_groups=ids, key_groups=ids, pool=pool, backend=backend)
    value.backward()
    qpt.supcon(q, ids, backend=backend).backward()
    return value.item() + q.grad.sum().item() + k.grad.sum().item()
def pretrain(threads, name=[0]):
    name[0] += 1
    config = qpt.PretrainConfig(data=photos, out=f"{photos}-{os.getpid()}-{name[0]}", arch="resnet18", width=8,
        mode="in_batch", patch_size=32, batch_images=4, steps=1, workers=name[0] % 2, threads=threads,
        tensorboard=False, page=False)
    return qpt.pretrain(config).step
from qpt.evaluate.features import image_features
def work():
    return [
        qpt.degrade(images, program, threads=4).sum().item(),
        qpt.degrade_patches(images, program, torch.zeros((8, 1, 2), dtype=torch.int32), 64).sum().item(),
        loss("auto"), loss("torch"),
        encoder(torch.ones(8, 3, 64, 64)).square().sum().item(),
        float(image_features(encoder, images[0].numpy()).sum()),
        pretrain(0),
    ]
before = work()
child = os.fork()
if child == 0:
    status = 1
    try:
        assert np.allclose(work(), before, rtol=1e-3), (work(), before)
        try:
            pretrain(2)
        except qpt.BackendError as error:
            assert "threads must be at most 1 in a forked process" in str(error)
            status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
assert torch.get_num_threads() == 2, torch.get_num_threads()
assert np.allclose(after := work(), before, rtol=1e-3), (after, before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_all_that_its_parent_did(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(photos / f"{name}.png")
    done = subprocess.run([sys.executable, "-c", _FORK, str(photos)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def granted(monkeypatch, tmp_path):
    """A machine of eight cores without limits; ``granted(variables, files of control groups)`` sets some."""
    for name in (*process.THREAD_LIMITS, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(process, "_CGROUPS", tmp_path)
    monkeypatch.setattr(process, "_OWN_CGROUP", tmp_path / "own")

    def grant(variables: dict[str, str], files: dict[str, str], own: str = "0::/a/b\n") -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    grant({}, {})
    return grant


V1 = "7:memory:/x\n4:cpu,cpuacct:/x\n0::/\n"


@pytest.mark.parametrize(
    ("variables", "files", "own", "threads"),
    [
        ({}, {}, "0::/a/b\n", 8),
        ({"OMP_NUM_THREADS": "3"}, {}, "0::/\n", 3),
        ({"OMP_NUM_THREADS": "3,2"}, {}, "0::/\n", 3),
        ({"OMP_NUM_THREADS": "64"}, {}, "0::/\n", 8),
        ({"OMP_NUM_THREADS": ""}, {}, "0::/\n", 8),
        ({"OMP_NUM_THREADS": "many"}, {}, "0::/\n", 8),
        ({"OMP_NUM_THREADS": "0"}, {}, "0::/\n", 8),
        ({"OMP_THREAD_LIMIT": "2", "OMP_NUM_THREADS": "4"}, {}, "0::/\n", 2),
        ({"MKL_NUM_THREADS": "5"}, {}, "0::/\n", 5),
        ({}, {"a/b/cpu.max": "400000 100000\n"}, "0::/a/b\n", 4),
        ({}, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, "0::/a/b\n", 2),
        ({}, {"a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 1),
        ({}, {"cpu.max": "300000 100000\n"}, "0::/of/the/host\n", 3),
        ({"OMP_NUM_THREADS": "2"}, {"cpu.max": "300000 100000\n"}, "0::/\n", 2),
        ({}, {"cpu.max": "damaged"}, "0::/\n", 8),
        ({}, {"cpu/x/cpu.cfs_quota_us": "600000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, V1, 6),
        ({}, {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, V1, 8),
    ],
)
def test_the_default_is_the_least_that_was_granted(granted, variables, files, own, threads) -> None:
    granted(variables, files, own)
    assert process.usable_threads() == threads


def test_processes_share_cores_and_quota_but_not_the_environment_s_number(granted) -> None:
    assert process.usable_threads(3) == 2
    assert process.usable_threads(100) == 1
    granted({"OMP_NUM_THREADS": "4"}, {})
    assert process.usable_threads(1) == 4 and process.usable_threads(2) == 4
    granted({"OMP_NUM_THREADS": "1"}, {})
    assert process.usable_threads(2) == 1
    granted({"TORCHELASTIC_RUN_ID": "none"}, {})  # torchrun sets 1 where the user set none
    assert process.usable_threads(2) == 4 and process.usable_threads(1) == 1


def test_pre_training_and_commands_follow_it(granted) -> None:
    before = torch.get_num_threads()
    try:
        granted({"OMP_NUM_THREADS": "1"}, {})
        torch.set_num_threads(2)
        with use_threads(0, 1):
            assert torch.get_num_threads() == 1
        with use_threads(3, 1):  # what the user asks for counts
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 2
        granted({"OMP_NUM_THREADS": ""}, {"cpu.max": "100000 100000\n"})
        process.follow_thread_limits()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_doctor_shows_each_limit(granted) -> None:
    granted({"OMP_NUM_THREADS": "3"}, {"cpu.max": "500000 100000\n"})
    shown = diagnose().machine["threads"]
    assert shown == "3 (affinity 8, OMP_NUM_THREADS 3, OMP_THREAD_LIMIT unset, MKL_NUM_THREADS unset, cgroup 5)"


_MEMORY = """
import resource
import numpy as np
from qpt.process import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(16 << 20)  # 128 MiB, 32,768 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with keep_freed_memory():
    faults()
    inside = faults()
    kept = int(open("/proc/self/statm").read().split()[1])
left = int(open("/proc/self/statm").read().split()[1])
print(faults(), inside, kept - left)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    outside, inside, given_back = map(int, done.stdout.split())
    assert inside < 100 and given_back > 30_000 and outside > 200  # with huge pages a fault is of 2 MiB


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with process.keep_freed_memory():
        pass
