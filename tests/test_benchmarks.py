"""The benchmarks' common ground: the equality gate, order and statistics of timing, strict JSON, resources.

Times are never asserted: where a test needs some, the clock is replaced.
"""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks import __main__ as command
from benchmarks import (
    bench_contrastive,
    bench_degrade,
    degrade_rivals,
    harness,
    resources,
    roofline_degrade,
)
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from benchmarks.roofline import GPUS
from qpt.degradations.op_table import NAMES
from qpt.errors import BackendError


def case(calls: list[str], agree=lambda answers: {"difference": 0.5}, backends=("a", "b"), items=10) -> Case:
    contenders = [Contender(name, lambda name=name: calls.append(name) or name) for name in backends]
    return Case("op", "4x4", items, contenders, agree)


def check_schema(content: dict) -> None:
    """What a reader of benchmarks/results may rely on."""
    keys = {"schema", "settings", "circumstances", "name", "rows", "predictions", "compiled", "remarks"}
    assert set(content) - {"ratios", "figures", "agreement"} == keys
    assert content["schema"] == harness.SCHEMA
    assert set(content["settings"]) == {"rounds", "quick"}
    around = content["circumstances"]
    assert {"time", "commit", "modified_files", "machine", "versions", "threads"} <= set(around)
    assert around["threads"] >= 1
    assert {"python", "torch", "numpy"} <= set(around["versions"])
    assert {"cpu", "cores", "gpu", "load_before"} <= set(around["machine"])
    for row in content["rows"]:
        assert row["median_ms"] >= row["min_ms"] >= 0
        assert row["iqr_ms"] >= 0
        assert 1 <= row["rounds"] <= content["settings"]["rounds"]
        assert row["items_per_s"] > 0
        assert row["op"]
        assert row["backend"]
        assert row["shape"]
    for prediction in content["predictions"]:
        named = {"gpu", "predicted_ms", "bound_by", "efficiency", "peaks"}
        if content["name"] == "scaling":  # of whole steps, from the predictions of others
            named = {"gpus", "images_per_s", "first_to_saturate", "degrade_ms", "encode_ms", "loss_ms"}
        assert named <= set(prediction)
    assert content["rows"] or content["compiled"] or content["predictions"]
    if "ratios" in content:
        named = ("op", "shape", "backend")
        assert [[entry[n] for n in named] for entry in content["ratios"]] == [
            [row[n] for n in named] for row in content["rows"]
        ]


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
    assert row.median_ms == pytest.approx(3)
    assert row.iqr_ms == pytest.approx(2)
    assert row.min_ms == pytest.approx(1)
    assert row.items_per_s == pytest.approx(10 / 0.003)
    assert row.differences == {"difference": 0.5}
    assert row.peak_mib is None


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        measure([case([])], rounds=0)
    with pytest.raises(ValueError, match="two contenders have one backend name"):
        measure([case([], backends=("a", "a"))])


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


def test_json_is_whole_and_strict(tmp_path):
    (row,) = measure([case([], backends=("a",))], rounds=2)
    path = tmp_path / "results" / "x.json"
    written = harness.write_json(Report("x", [row]), Settings(2), path)
    assert json.loads(path.read_text()) == written
    check_schema(written)
    nan = Report("x", [row], predictions=[{"predicted_ms": math.nan}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write_json(nan, Settings(2), path)
    assert json.loads(path.read_text()) == written
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_published_results_have_the_schema(path):
    content = json.loads(path.read_text())
    if "circumstances" in content:  # evaluations keep their results here too, in their own form
        check_schema(content)
        assert not content["settings"]["quick"]
        assert content["name"] in command.NAMES


def test_table_shows_every_row_and_says_what_is_predicted():
    (row,) = measure([case([], backends=("a",))], rounds=2)
    text = harness.markdown(Report("x", [row], predictions=[{"gpu": "G", "predicted_ms": 1.5}], remarks=["So."]))
    lines = text.splitlines()
    assert lines[0].startswith("| op | backend | shape |")
    assert lines[2].startswith("| op | a | 4x4 |")
    assert "Predictions, not measurements:" in lines
    assert "| G | 1.5 |" in lines
    assert lines[-1] == "So."


@pytest.mark.parametrize("name", ["degrade", "step", "loader"])
def test_command_measures_and_writes(name, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert command.main([name, "--quick", "--rounds", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    check_schema(content)
    assert content["name"] == name
    assert capsys.readouterr().out.count("\n| ") > len(content["rows"])
    if name == "degrade":  # every rival was compared
        assert all(row["differences"] for row in content["rows"] if row["backend"] != "qpt")


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


def test_gate_of_the_degrade_benchmark_notices_one_grey_level():
    images = bench_degrade.photographs(2, 48).numpy()
    exact, near = (degrade_rivals.Rival("other", lambda x, p: x, allowed) for allowed in (0.0, 1.0))
    assert bench_degrade.compare("jpeg", near, images, images, images) == 0
    assert bench_degrade.compare("jpeg", near, images // 2, images // 2 + 1, images) == 1
    with pytest.raises(Disagreement, match="rescale_bilinear: other's result differs by 1, allowed 0"):
        bench_degrade.compare("rescale_bilinear", exact, images // 2, images // 2 + 1, images)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    assert bench_degrade.compare("jpeg", exact, images, floats, images) < 1e-4
    noise = np.random.default_rng(0).normal(0, 10, images.shape)
    louder, noisy = (np.clip(np.rint(images + noise * scale), 0, 255) for scale in (1.1, 1.0))
    spread = degrade_rivals.Rival("other", lambda x, p: x, 0.02, spread=True)
    assert bench_degrade.compare("gaussian_noise", spread, noisy, noisy, images) == 0
    with pytest.raises(Disagreement, match=r"result differs by 0\.(1|09)"):
        bench_degrade.compare("gaussian_noise", spread, louder, noisy, images)


def test_chains_of_the_degrade_benchmark_are_five_different_ops_of_seven():
    chains = bench_degrade.draw_chains(200)
    for chain in chains:
        names = ["colour" if op in bench_degrade.COLOURS else op for op, _ in chain]
        assert len(set(names)) == 5 and set(names) <= set(bench_degrade.CHAIN_OPS)
    assert {op for chain in chains for op, _ in chain} == {*bench_degrade.CHAIN_OPS, *bench_degrade.COLOURS} - {
        "colour"
    }


def test_ratios_of_the_degrade_benchmark():
    def row(op, backend, ms):
        return Row(op, backend, "", ms, 0.0, ms, 1.0, None, 1, {}, "")

    rows = [row("hue", "qpt", 2.0), row("hue", "a", 8.0), row("hue", "b", 6.0), row("median_blur", "qpt", 1.0)]
    rows += [row("jpeg", "qpt", 2.0), row("jpeg", "a", 2.0)]
    chain = bench_degrade.CHAIN_OP
    found = bench_degrade.ratios_of([*rows, row(chain, "qpt", 1.0), row(chain, "a", 7.0)])
    assert found["ops"] == {"hue": {"rival": "b", "ratio": 3.0}, "jpeg": {"rival": "a", "ratio": 1.0}}
    assert (found["median_over_ops"], found["without_rival"], found["chains"]) == (2.0, ["median_blur"], {"a": 7.0})


def test_predictions_of_the_engine_are_the_busiest_multiprocessor_or_the_memory():
    blocks = {gpu.name: 1 for gpu in GPUS}
    pixels = roofline_degrade.SIDE**2
    busy, idle = (roofline_degrade._predict("op", [work], 1, blocks) for work in (1000.0, 1.0))
    for gpu, slow, fast in zip(GPUS, busy, idle, strict=True):
        rows = -(-roofline_degrade.ROWS // gpu.multiprocessors)  # of the busiest
        seconds = rows * 1000 * pixels / (128 * roofline_degrade.IPC * gpu.clock)
        assert slow["predicted_ms"] == pytest.approx(1000 * seconds, abs=0.01)
        moved = roofline_degrade.ROWS * pixels * roofline_degrade.BYTES / (0.6 * gpu.bandwidth)
        assert fast["predicted_ms"] == pytest.approx(1000 * moved, abs=0.01)
        assert (slow["gpu"], slow["bound_by"], fast["bound_by"]) == (gpu.name, "instructions", "memory")


def test_instructions_of_chains_are_those_of_their_ops():
    counted = {name: [10.0 * level for level in range(1, 6)] for name in NAMES}
    rows, ops = roofline_degrade._chains(counted)
    assert len(rows) == roofline_degrade.ROWS and 2 < ops < 3  # of 0 to 5
    assert np.mean(rows) == pytest.approx(30 * ops, rel=0.1)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind, which counts the instructions")
def test_instructions_are_counted_by_level(tmp_path):
    program = roofline_degrade.build_counter(tmp_path)
    mild, strong = roofline_degrade.count_instructions(program, "gaussian_blur", 16, (1, 5))
    assert 100 < mild < strong < 100_000


USAGE = """
Resource usage:
 Common:
  GLOBAL:0
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
        (48, 0, 128, 80, 10),  # 65536 / (48 x 128) = 10.67
        (33, 0, 1024, 90, 1),  # 33 x 32 rounds up to 1280 a warp: 65536 / 40960
        (16, 0, 32, 90, 32),  # the most blocks a multiprocessor takes
        (16, 0, 1024, 80, 2),  # 64 warps
        (32, 100_000, 128, 80, 1),  # shared memory: 167936 / 101024
        (32, 100_000, 128, 90, 2),  # 233472 / 101024
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


@pytest.mark.rung("offline compile")
def test_report_lists_every_kernel():
    report = resources.run(Settings(quick=True))
    assert {entry["source"] for entry in report.compiled} == {kernel.label for kernel in resources.kernels()}
    assert all(entry["registers"] > 0 and entry["blocks_per_multiprocessor"] > 0 for entry in report.compiled)


def test_missing_tool_is_one_explained_error(monkeypatch, tmp_path):
    monkeypatch.setattr(resources.shutil, "which", lambda name, path: None)
    with pytest.raises(BackendError, match=r"cuobjdump not found .* run: pip install triton"):
        resources.cuobjdump("-sass", tmp_path / "x.cubin")
