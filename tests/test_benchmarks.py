"""The benchmarks: equality before time, statistics of timing, strict records, and the compile report.

Times are never asserted: where a test needs some, the clock is replaced.
"""

import importlib.util
import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks import __main__ as command
from benchmarks import (
    bench_contrastive,
    bench_degrade,
    bench_step,
    contrastive_baselines,
    degrade_baselines,
    degrade_libraries,
    harness,
    resources,
    roofline_degrade,
)
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from benchmarks.roofline import GPUS
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.errors import BackendError
from qpt.ops.degrade import order
from tests import offline


def case(calls: list[str], agree=lambda answers: {"a": {"difference": 0.5}}, backends=("a", "b"), items=10) -> Case:
    contenders = [Contender(name, lambda name=name: calls.append(name) or name) for name in backends]
    return Case("op", "4x4", items, contenders, agree)


def check_schema(content: dict) -> None:
    """Check what a reader of benchmarks/results may rely on."""
    keys = {"schema", "settings", "environment", "name", "rows", "predictions", "compiled", "remarks"}
    assert set(content) - {"figures", "agreement"} == keys
    assert content["schema"] == harness.SCHEMA
    where = content["environment"]
    assert {"time", "commit", "modified_files", "machine", "versions", "threads"} <= set(where)
    assert {"python", "torch", "numpy"} <= set(where["versions"])
    assert {"cpu", "cores", "gpu", "load_before"} <= set(where["machine"])
    for row in content["rows"]:
        assert row["op"] and row["backend"] and row["shape"]
        assert row["median_ms"] >= row["min_ms"] >= 0 <= row["iqr_ms"]
        assert 1 <= row["rounds"] <= content["settings"]["rounds"]
        assert row["items_per_s"] > 0
    assert content["rows"] or content["compiled"] or content["predictions"]


@pytest.mark.parametrize(
    ("cpuinfo", "name", "instructions"),
    [
        (
            "processor\t: 0\nmodel name\t: Cpu A: 9\nflags\t\t: fpu avx avx512_vnni avx512f avx2\n\n"
            "processor\t: 1\nmodel name\t: Cpu B\nflags\t\t: fpu amx_bf16\n",
            "Cpu A: 9",
            ["avx2", "avx512_vnni", "avx512f"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU part\t: 0xd40\n", None, ["asimd", "bf16", "sve"]),
        ("flags : fpu sse2\n", None, []),
        ("processor : 0\n", None, None),
        (None, None, None),
    ],
)
def test_the_instruction_sets_of_the_processor_are_recorded(cpuinfo, name, instructions, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        harness.CPUINFO.write_text(cpuinfo, encoding="utf-8")
    machine = harness.environment()["machine"]
    assert machine["instructions"] == instructions
    assert machine["cpu"] == (name or harness.platform.processor())


def test_disagreement_stops_before_anything_is_timed(monkeypatch):
    calls: list[str] = []

    def disagree(answers):
        assert answers == {"a": "a", "b": "b"}
        raise Disagreement("a and b differ")

    monkeypatch.setattr(harness, "_milliseconds", lambda call: pytest.fail("timed"))
    with pytest.raises(Disagreement, match="a and b differ"):
        measure([case([]), case(calls, disagree)])
    assert calls == ["a", "b"]


def test_rounds_are_interleaved_and_start_elsewhere_each_time():
    calls: list[str] = []
    measure([case(calls), case(calls, backends=("c",))], rounds=3, warmup=1)
    assert calls == [*"abc", *"abc", *"abc", *"bca", *"cab"]  # equality, warm-up, three rounds


def test_median_and_quartiles(monkeypatch):
    # Calls of 1, 2, 3, 4 and 100 ms: median 3, quartiles 2 and 4.
    durations = [0.100, 0.001, 0.004, 0.002, 0.003]
    clock = itertools.chain.from_iterable((0.0, duration) for duration in durations)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    (row,) = measure([case([], backends=("a",))], rounds=5)
    assert (row.median_ms, row.iqr_ms, row.min_ms) == pytest.approx((3, 2, 1))
    assert row.items_per_s == pytest.approx(10 / 0.003)
    assert row.differences == {"difference": 0.5} and row.peak_mib is None


def test_tensor_peak_counts_what_is_held_together():
    mebi = 2**20

    def call() -> torch.Tensor:
        first = torch.ones(3 * mebi, dtype=torch.uint8)
        del first
        second, third = torch.ones(4 * mebi, dtype=torch.uint8), torch.ones(mebi, dtype=torch.uint8)
        del third
        return second

    assert 5 * mebi <= harness.tensor_peak(call) < 5 * mebi + 65536
    assert harness.tensor_peak(lambda: None) < 65536


def test_records_are_whole_strict_and_short(tmp_path):
    rows = measure([case([])], rounds=2)
    path = tmp_path / "results" / "x.json"
    written = harness.write_json(Report("x", rows * 50), Settings(2), path)
    assert json.loads(path.read_text()) == written
    check_schema(written)
    assert path.read_text().count("\n") < 50 * 2 + 40  # a line for each row
    nan = Report("x", rows, predictions=[{"predicted_ms": math.nan}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write_json(nan, Settings(2), path)
    assert json.loads(path.read_text()) == written
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_records_have_the_schema(path):
    content = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    check_schema(content)
    assert not content["settings"]["quick"]
    assert content["name"] == path.stem and path.stem in command.NAMES


@pytest.mark.parametrize("name", ["degrade", "step", "loader"])
def test_command_measures_and_writes(name, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert command.main([name, "--quick", "--rounds", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    check_schema(content)
    assert content["name"] == name
    assert capsys.readouterr().out.count("\n| ") > len(content["rows"])
    if name == "degrade":  # every baseline was compared
        assert all(row["differences"] for row in content["rows"] if row["backend"] != "qpt")
    if name == "step":
        trained = [row["shape"].split(",")[0] for row in content["rows"] if row["op"] == bench_step.TRAINING]
        assert set(trained) == set(bench_step.ARCHITECTURES)


def test_command_reports_disagreement_and_bad_arguments(monkeypatch, capsys, tmp_path):
    def disagree(settings):
        raise Disagreement("they differ")

    monkeypatch.setattr(bench_contrastive, "run", disagree)
    out = tmp_path / "out.json"
    assert command.main(["contrastive", "--out", str(out)]) == 1
    assert "they differ; nothing was timed" in capsys.readouterr().err
    assert not out.exists()
    for wrong in (["unknown"], ["contrastive", "--rounds", "0"], ["contrastive", "--threads", "0"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(wrong)
        assert stopped.value.code == 2


def test_degrade_compares_to_one_grey_level_and_noise_by_its_size():
    images = bench_degrade.sample_crops(2, 48).numpy()
    exact, near = (degrade_baselines.Baseline("other", lambda x, p: x, allowed) for allowed in (0.0, 1.0))
    assert bench_degrade.compare("jpeg", near, images // 2, images // 2 + 1, images) == 1
    with pytest.raises(Disagreement, match="rescale_bilinear: other's result differs by 1, allowed 0"):
        bench_degrade.compare("rescale_bilinear", exact, images // 2, images // 2 + 1, images)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    assert bench_degrade.compare("jpeg", near, images, floats, images) < 1e-4
    noise = np.random.default_rng(0).normal(0, 10, images.shape)
    louder, noisy = (np.clip(np.rint(images + noise * scale), 0, 255) for scale in (1.1, 1.0))
    spread = degrade_baselines.Baseline("other", lambda x, p: x, 0.02, spread=True)
    assert bench_degrade.compare("gaussian_noise", spread, noisy, noisy, images) == 0
    with pytest.raises(Disagreement, match=r"result differs by 0\.(1|09)"):
        bench_degrade.compare("gaussian_noise", spread, louder, noisy, images)


def test_variopinta_agrees_at_an_odd_shape_and_lacks_ops_of_the_chains():
    pytest.importorskip("variopinta", reason="not installed: extra bench")
    calls = degrade_libraries.variopinta_calls()
    used = {op for op in (*bench_degrade.CHAIN_OPS, *bench_degrade.COLOURS) if op != "colour"}
    assert used - set(calls) == {"motion_blur", "median_blur", "saturation"}
    images = bench_degrade.sample_crops(5, 64)[:, :41, :55].contiguous()  # levels 1 to 5
    with ThreadPoolExecutor(1) as pool:
        for op, baselines in calls.items():
            case = bench_degrade._case(op, baselines, images, pool, 1, "cpu")
            found = case.agree({contender.backend: contender.call() for contender in case.contenders})
            assert set(found) == {"variopinta"} and op in NAMES


@pytest.mark.parametrize("library", ["albumentations", "variopinta", "kornia"])
def test_a_library_that_is_not_installed_has_no_rows(library, monkeypatch):
    calls = getattr(degrade_libraries, f"{library}_calls")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find(name))
    assert calls() == {}


def test_compiled_functions_of_kornia_are_contenders_of_their_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: ("compiled", call))
    monkeypatch.setattr(degrade_libraries, "require_compiler", lambda: None)
    eager = {op: [degrade_baselines.Baseline("kornia", op, 0.5, batch=True)] for op in ("hue", "jpeg")}
    ((op, (way,)),) = degrade_libraries.compiled_kornia_calls(eager).items()
    assert (op, way.library, way.call, way.batch) == ("hue", "kornia compiled", ("compiled", "hue"), True)
    assert eager["hue"][0].library == "kornia"

    def missing():
        raise contrastive_baselines.Unavailable("no compiler")

    monkeypatch.setattr(degrade_libraries, "require_compiler", missing)
    assert degrade_libraries.compiled_kornia_calls(eager) == {}


def test_degrade_ratios_are_of_the_fastest_baseline():
    def row(op, backend, ms):
        return Row(op, backend, "", ms, 0.0, ms, 1.0, None, 1, {}, "")

    rows = [row("hue", "qpt", 2.0), row("hue", "a", 8.0), row("hue", "b", 6.0), row("median_blur", "qpt", 1.0)]
    rows += [row("jpeg", "qpt", 2.0), row("jpeg", "a", 2.0)]
    chain = bench_degrade.CHAIN_OP
    found = bench_degrade.ratios_of([*rows, row(chain, "qpt", 1.0), row(chain, "a", 7.0)])
    assert found["ops"] == {"hue": {"baseline": "b", "ratio": 3.0}, "jpeg": {"baseline": "a", "ratio": 1.0}}
    assert (found["median_over_ops"], found["without_baseline"], found["chains"]) == (2.0, ["median_blur"], {"a": 7.0})


def test_predictions_of_the_engine_are_the_busiest_team_or_the_memory(monkeypatch):
    model, rows = roofline_degrade, roofline_degrade.ROWS
    program = Program.from_chains([[("hue", 3)]] * rows, seeds=range(rows))
    pixels = model.SIDE**2
    for gpu in GPUS:
        for work, one_block in itertools.product((1000.0, 1.0), (True, False)):
            costs = np.full((len(NAMES), LEVELS + 1), work)
            monkeypatch.setattr(model, "_costs", lambda _, costs=costs: costs)
            found = model.predict("hue", program, None, gpu, one_block=one_block)
            config = model._seconds(program, None, gpu, one_block)[2]
            mean = config.blocks / config.teams
            assert found["blocks_of_a_row"] == pytest.approx(mean, abs=0.05)
            assert mean == 1 or not one_block
            barriers = order.gpu_barriers()[NAMES.index("hue"), 3] * model.BARRIER if mean > 1 else 0.0
            starts = []  # of all rows that each team could take; the first of them are taken
            for team in range(config.teams):
                blocks = (config.blocks - team + config.teams - 1) // config.teams
                share = -(-model.SIDE // blocks) / model.SIDE
                taken = share * work * pixels / (128 * model.IPC * gpu.clock) + barriers
                starts += [(turn * taken, taken) for turn in range(rows)]
            seconds = max(start + taken for start, taken in sorted(starts)[:rows])
            moved = rows * pixels * model.BYTES / (0.6 * gpu.bandwidth)
            assert found["predicted_ms"] == pytest.approx(1000 * max(seconds, moved), abs=0.02)
            assert found["bound_by"] == ("instructions" if seconds > moved else "memory")


USAGE = """
 Function _Z1gIfEvPT_:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function f:
  REG:31 STACK:40 SHARED:2048 LOCAL:16 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
		Function : _Z1gIfEvPT_
        /*0050*/                   LDG.E R0, desc[UR4][R2.64] ;
		Function : f
        /*0040*/                   STL.64 [R1], R2 ;
        /*0050*/                   LDL R2, [R1] ;
        /*0060*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0070*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;
        /*0080*/                   LDSM.16.M88.4 R8, [R6] ;
"""


def test_resources_are_read_from_the_report():
    found = resources.parse(USAGE, SASS)
    assert found["_Z1gIfEvPT_"] == resources.Resources(8, 0, 0, 0, 0, 0)
    assert found["f"] == resources.Resources(31, 40, 16, 2048, 2, 2)


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "blocks"),
    [
        (128, 0, 256, 80, 2),  # registers: 65536 / (128 x 256)
        (33, 0, 1024, 90, 1),  # 33 x 32 rounds up to 1280 a warp: 65536 / 40960
        (16, 0, 32, 90, 32),  # the most blocks a multiprocessor takes
        (16, 0, 1024, 80, 2),  # 64 warps
        (32, 100_000, 128, 80, 1),  # shared memory: 167936 / 101024
        (255, 0, 1024, 80, 0),  # cannot be launched
    ],
)
def test_resident_blocks_by_hand(registers, shared, threads, architecture, blocks):
    found = resources.Resources(registers, 0, 0, 0, 0, 0)
    assert resources.blocks_per_multiprocessor(found, threads, architecture, shared) == blocks


@triton.jit
def _product(a, b, out, SIDE: tl.constexpr):
    index = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(out + index, tl.dot(tl.load(a + index), tl.load(b + index)))


@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_tensor_cores_are_found_in_a_half_precision_product(architecture):
    signature = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "SIDE": "constexpr"}
    cubin, _ = resources.triton_cubin(_product, signature, {"SIDE": 64}, architecture, warps=4)
    (found,) = resources.read(cubin).values()
    assert found.tensor_core > 0
    assert found.registers > 8


@offline.needs_triton
@pytest.mark.rung("offline compile")
def test_report_lists_every_kernel():
    report = resources.run(Settings(quick=True))
    assert {entry["source"] for entry in report.compiled} == {kernel.label for kernel in resources.kernels()}
    assert all(entry["registers"] > 0 and entry["blocks_per_multiprocessor"] > 0 for entry in report.compiled)


def test_missing_tool_is_one_explained_error(monkeypatch, tmp_path):
    monkeypatch.setattr(resources.shutil, "which", lambda name, path: None)
    with pytest.raises(BackendError, match=r"cuobjdump not found .* run: pip install triton"):
        resources.cuobjdump("-sass", tmp_path / "x.cubin")


@pytest.mark.parametrize(
    ("name", "device", "problem"),
    [
        ("step", "cuda", "--device must be usable here, got 'cuda' with 0 CUDA devices"),
        ("contrastive", "gpu", "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        ("resources", "cuda:0", "--device must be cpu for resources, which computes nothing on a device, got 'cuda:0'"),
    ],
)
def test_devices_that_are_refused(name, device, problem, capsys):
    with pytest.raises(SystemExit):
        command.main([name, "--device", device])
    assert problem in capsys.readouterr().err
