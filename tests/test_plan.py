"""``qpt plan``: the traced peak compared with allocations, the search with traces; known GPUs; errors."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from qpt import cli
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.ops import workspace
from qpt.ops.contrastive.api import contrastive_loss
from qpt.planning import search
from qpt.planning.gpus import GIB, MIB, Gpu, find_gpu, known_gpus
from qpt.planning.text import render
from qpt.planning.trace import StepTrace, Target, full_logits_bytes
from qpt.planning.tracker import MemoryTracker, Peak
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.failure import StepInput
from qpt.pretraining.learner import Learner
from tests.tensor_peak import tensor_peak

SMALL = {"arch": "resnet18", "width": 8, "patch_size": 48, "pool_size": 2048, "batch_images": 12}
# Small for the encoder, so that the peak is in a custom op.
LARGE_REGION = {**SMALL, "region_size": 480, "patch_size": 16}
LONG_LOSS = {**SMALL, "mode": "in_batch", "patch_size": 8, "width": 1, "projection_dim": 900, "batch_images": 300}
TINY_GPU = Gpu("tiny", 2 * GIB, 4, "made up")


def _config(**fields):
    return PretrainConfig(**{"data": "", "out": "", **SMALL, **fields})


def _two_steps(config):
    """Do what the engine does, on random pixels: from nothing to the end of the second step, with a full pool."""
    learner = Learner(config, torch.device("cpu"))
    images, views = config.batch_images, config.compositions
    regions = torch.randint(0, 256, (images, config.region, config.region, 3), dtype=torch.uint8)
    space = DegradationSpace.named(config.space)
    program = space.sample(images, views=views, generator=torch.Generator().manual_seed(0))
    boxes = torch.zeros(images * views, config.patches, 2, dtype=torch.int32)
    if learner.pool is not None:
        learner.pool.load_state_dict({**learner.pool.state_dict(), "count": config.pool_size})
    for step in range(2):
        groups = torch.arange(images * views) + step * images * views
        half_scale = torch.zeros(images * views, dtype=torch.int64) if config.half_scale else None
        given = StepInput(regions, boxes, program, groups, groups // views, 0.01, half_scale)
        learner.step(given.patches(config.patch_size, learner.device), groups, groups // views, 0.01)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "step"),
        ({"chunk_images": 4}, "step"),
        ({"optimizer": "adamw", "activation_checkpointing": True}, "step"),
        ({"precision": "bfloat16", "chunk_images": 3, "optimizer": "adamw"}, "step"),
        ({"mode": "in_batch"}, "step"),
        ({"mode": "in_batch", "chunk_images": 4, "optimizer": "adamw"}, "step"),
        ({"mode": "in_batch", "precision": "bfloat16", "activation_checkpointing": True}, "step"),
        ({"symmetric": True, "accumulate": 2, "pool_dtype": "float16"}, "step"),
        ({"patches": 3, "chunk_images": 4}, "step"),
        ({"patches": 3, "mode": "in_batch"}, "step"),
        ({"arch": "resnet50", "precision": "bfloat16", "activation_checkpointing": True, "chunk_images": 4}, "step"),
        ({"half_scale": 1.0, "patch_size": 64, "width": 1, "chunk_images": 1, "batch_images": 32}, "step"),
        (LARGE_REGION, "degrade_patches"),
        (LONG_LOSS, "contrastive"),
    ],
    ids=lambda value: "-".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else value,
)
@pytest.mark.usefixtures("one_thread")
def test_the_predicted_peak_is_that_of_the_tensors_allocated(fields, part):
    config = _config(**fields)
    measured = tensor_peak(lambda: _two_steps(config))
    trace = StepTrace(config, Target(gpu=False, teams=1, batches=1))
    peaks = trace.peaks(config.batch_images, config.chunk_images)
    highest = max(peaks, key=lambda name: peaks[name].bytes)
    assert highest.startswith(part)
    assert peaks[highest].bytes == pytest.approx(measured, rel=0.1)
    assert sum(peaks[highest].by_category.values()) == peaks[highest].bytes


@pytest.mark.parametrize("dim", [64, 100])
@pytest.mark.usefixtures("one_thread")
def test_workspace_of_the_symmetric_loss_is_what_it_allocates(dim):
    rows = 3000
    vectors = nn.functional.normalize(torch.randn(rows, dim), dim=1).requires_grad_()
    ids = torch.arange(rows) // 2
    options = {"query_groups": ids, "key_groups": ids, "exclude_self": True}
    contrastive_loss(vectors, vectors, **options).backward()
    vectors.grad = None
    losses = []
    forward = tensor_peak(lambda: losses.append(contrastive_loss(vectors, vectors, **options)))
    backward = tensor_peak(losses[0].backward)
    outputs = rows * (4 * dim + 4 + 8)  # gradient, log-sum-exps, numbers of positives
    predicted = workspace.contrastive_self_forward_bytes(rows, dim, native=True)
    assert forward - outputs == pytest.approx(predicted, rel=0.1)
    predicted = workspace.contrastive_self_backward_bytes(rows, dim, native=True)
    assert backward - rows * 4 * dim == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("pool", [0, 5000, 20_000])
@pytest.mark.usefixtures("one_thread")
def test_workspace_of_graded_positives_is_what_it_allocates(dim, pool):
    """The C++ form of the loss without severities has its sums from malloc; with them they are tensors."""
    rows = 3000
    vectors = nn.functional.normalize(torch.randn(rows, dim), dim=1).requires_grad_()
    ids, severities = torch.arange(rows), torch.rand(rows, 3)
    options = {"query_groups": ids, "key_groups": ids, "query_severities": severities, "key_severities": severities}
    if pool:
        options |= {"pool": torch.randn(pool, dim), "pool_groups": torch.arange(pool) + rows}
    allocated = tensor_peak(lambda: contrastive_loss(vectors, vectors.detach(), severity_width=0.3, **options))
    outputs = rows * (4 * dim + 4 + 4)  # gradient, log-sum-exps, weights of positives
    predicted = workspace.contrastive_forward_bytes(rows, pool, dim, native=True, graded=True)
    assert predicted == pytest.approx(allocated - outputs, rel=0.1)


def test_tracker_agrees_with_the_one_of_torch():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))

    def step(tracker):
        with tracker:
            network(torch.ones(16, 3, 16, 16)).square().mean().backward()
            network.zero_grad(set_to_none=True)

    theirs = MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5)
        )
        theirs.track_external(network)
        step(theirs)
        ours = MemoryTracker(lambda *_: (0, ""))
        for tensor in (*network.parameters(), *network.buffers()):
            ours.assign(tensor, "weights")
        step(ours)
    (snapshot,) = theirs.get_tracker_snapshot("peak").values()
    assert ours.peaks["step"].bytes == snapshot["Total"]


def test_gpu_trace_holds_the_next_batch_and_the_scratch_of_every_multiprocessor():
    config = _config()
    region = config.batch_images * config.region**2 * 3
    rows = config.batch_images * config.compositions
    peaks = [
        StepTrace(config, Target(gpu=True, teams=teams, batches=2)).peaks(config.batch_images, 0) for teams in (1, 9)
    ]
    assert peaks[0]["step"].by_category["regions"] == 2 * region
    scratch = [
        workspace.degrade_bytes(rows, 5, config.patches, config.region, resizes=False, teams=teams, gpu=True)
        for teams in (1, 9)
    ]
    assert peaks[1]["degrade_patches"].bytes - peaks[0]["degrade_patches"].bytes == scratch[1] - scratch[0]


def test_curve_finds_the_largest_batch_between_and_beyond_points():
    def trace(images):
        return {"step": Peak(max(100, 7 * images), {"activations": max(100, 7 * images)}), "loss": Peak(3 * images)}

    curve = search.Curve(trace, 20, 40)
    assert curve.largest(7 * 1000 + 6, 1) == 1000
    assert curve.largest(7 * 1000 + 6, 64) == 960
    assert curve.largest(139, 20) == 0
    assert curve.peak(30).by_category == {"activations": 210}
    curve = search.Curve(trace, 2, 20)  # the bend lies between
    assert curve.peak(2000).bytes < 14000
    assert curve.add(2000) == 14000
    assert curve.largest(14000, 1) == 2000


@pytest.mark.parametrize("fields", [{}, {"mode": "in_batch", "accumulate": 2, "optimizer": "adamw"}])
def test_the_largest_batch_fits_and_the_next_one_does_not(fields):
    config = _config(width=32, patch_size=96, **fields)
    answer = search.plan(config, TINY_GPU)
    trace = StepTrace(config, Target(gpu=True, teams=4, batches=search.DEVICE_BATCHES))

    def peak(images, chunk):
        return max(peak.bytes for peak in trace.peaks(images, chunk).values())

    assert answer.fits
    assert answer.asked.peak_bytes == peak(config.batch_images, 0)
    unit = config.accumulate
    assert peak(answer.plain.images, 0) == answer.plain.peak_bytes <= answer.available_bytes
    assert peak(answer.plain.images + unit, 0) > answer.available_bytes
    assert answer.cached.images > answer.plain.images
    assert answer.cached.images % (answer.cached.chunk * unit) == 0
    assert answer.cached.traced_bytes == pytest.approx(answer.cached.predicted_bytes, rel=0.01)
    assert answer.available_bytes + answer.allowance.total == TINY_GPU.memory_bytes
    if config.mode == "in_batch":
        assert answer.pool_rows is None
    else:
        spare = answer.available_bytes - answer.asked.peak_bytes
        assert 0 <= spare - (answer.pool_rows - config.pool_size) * search.key_bytes(config) < search.key_bytes(config)
    assert "none fits" in render(dataclasses.replace(answer, plain=None))


def test_full_logits_hold_several_copies_of_them():
    logits = 1000 * 9000 * 4
    assert 3 * logits < full_logits_bytes(1000, 1000, 8000, 32) < 5 * logits


def test_a_config_that_does_not_fit_says_what_would():
    small = Gpu("small", GIB + 100 * MIB, 4, "made up")
    with pytest.raises(InputError, match=r"what would fit: pool_size \d+ \(of 1000000\)"):
        search.plan(_config(pool_size=1_000_000), small)
    with pytest.raises(InputError, match="what would fit: the memory of RTX3080, or"):
        search.plan(_config(width=64, patch_size=640, mode="in_batch"), small)


def test_gpus_are_found_by_name_and_by_gib():
    assert find_gpu("rtx4090") == find_gpu("RTX4090")
    assert find_gpu("24").memory_bytes == 24 * GIB
    for name in ("A100-40", "A100-80", "H100-80", "RTX3090", "RTX4090", "L4", "V100-16", "T4"):
        gpu = find_gpu(name)
        assert gpu.source
        nominal = {"L4": 24, "T4": 16, "A100-40": 40, "V100-16": 16}.get(name)
        assert nominal is None or 0.93 * nominal * GIB < gpu.memory_bytes <= nominal * GIB
    assert len({gpu.name for gpu in known_gpus()}) == len(known_gpus())


@pytest.mark.parametrize("text", ["RTX4099", "nonsense", "0", "-3", "nan"])
def test_an_unknown_gpu_is_one_line_that_lists_the_known_ones(text, capsys):
    assert cli.main(["plan", text]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if text.isalnum() and not text.isdigit() and text != "nan":
        assert all(gpu.name in error for gpu in known_gpus())


def test_command_prints_text_and_json(capsys, tmp_path):
    settings = tmp_path / "config.yaml"
    _config(batch_images=16).save(settings)
    assert cli.main(["plan", "2", "--config", str(settings), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["asked"]["images"] == 16
    assert found["config"]["width"] == SMALL["width"]
    assert sum(found["asked"]["by_category"].values()) == found["asked"]["peak_bytes"]
    assert cli.main(["plan", "2", "--config", str(settings), "--batch_images", "200000"]) == 1
    text = capsys.readouterr().out
    assert "too much" in text
    assert "logits" in text
