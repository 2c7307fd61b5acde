"""The benchmark of the contrastive loss: comparison before time, forms, ratios, peak memory, plot and roofline.

Times are never asserted.
"""

import dataclasses
import json
import math

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bench_contrastive, contrastive_baselines, memory, roofline, roofline_loss, tables
from benchmarks.contrastive_baselines import FLOOR, FORMS, Form, Setting, Unavailable, make_inputs
from benchmarks.harness import Disagreement, Row
from tests.test_benchmarks import check_schema


def test_command_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert command.main(["contrastive", "--quick", "--rounds", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    check_schema(content)
    assert content["name"] == "contrastive"
    assert capsys.readouterr().out.count("\n| ") > len(content["rows"])
    assert all(row["differences"] for row in content["rows"] if row["backend"] != FLOOR)
    seen = {row["backend"] for row in content["rows"]}
    for form in set(FORMS) - seen:
        assert any(remark.startswith(f"Not measured: {form}: ") for remark in content["remarks"]), form
    assert {row["op"] for row in content["rows"]} == {plan.op for plan in bench_contrastive.plans(quick=False)}
    peaks = [row["peak_mib"] for row in content["rows"] if row["peak_mib"] is not None]
    assert peaks or any("No peak" in remark for remark in content["remarks"])


@pytest.mark.parametrize("kind", ["moco", "ntxent"])
def test_a_wrong_loss_or_gradient_is_a_disagreement(kind):
    inputs = make_inputs(Setting(kind, 6, 9 if kind == "moco" else 0, gradient=True, dim=8))
    loss, gradient = FORMS["qpt torch"].make(inputs)()
    differences = bench_contrastive.compare(inputs, {"qpt torch": (loss, gradient), FLOOR: (gradient, None)})
    assert set(differences) == {"qpt torch"} and set(differences["qpt torch"]) == {"loss", "gradient"}
    for wrong in ((loss, gradient * 1.001), (loss * 1.001, gradient), (loss, gradient * math.nan), (loss, None)):
        with pytest.raises(Disagreement, match="qpt torch differs at"):
            bench_contrastive.compare(inputs, {"qpt torch": wrong})


def test_expected_answers_by_hand():
    inputs = make_inputs(Setting("moco", 5, 7, gradient=True, dim=4))
    queries, keys, pool = (t.detach().double() for t in (inputs.queries, inputs.keys, inputs.pool))
    own = (queries * keys).sum(1) / 0.2
    negatives = (queries @ pool.T / 0.2).exp().sum(1)
    loss, gradient = contrastive_baselines.expected(inputs, "loss")
    assert loss.item() == pytest.approx((torch.log(own.exp() + negatives) - own).mean().item(), rel=1e-5)
    others = (queries @ keys.T / 0.2).exp().sum(1) + negatives
    all_keys = contrastive_baselines.expected(inputs, "all keys")[0]
    assert all_keys.item() == pytest.approx((torch.log(others) - own).mean().item(), rel=1e-5)
    _, projected = contrastive_baselines.expected(inputs, "projected")
    torch.testing.assert_close((projected * inputs.queries).sum(1), torch.zeros(5), rtol=0, atol=1e-6)
    along = (gradient - projected).double()
    torch.testing.assert_close(along, (along * queries).sum(1, keepdim=True) * queries, rtol=1e-4, atol=1e-6)
    rounded, _ = contrastive_baselines.expected(inputs, "bfloat16")
    assert 1e-6 < abs(rounded.item() / loss.item() - 1) < 1e-2


def test_a_missing_peer_is_a_remark(monkeypatch):
    def missing(inputs):
        raise Unavailable("it is not here")

    monkeypatch.setitem(FORMS, "lightly", Form(missing))
    plan = bench_contrastive.Plan("o", Setting("moco", 4, 8, False), ("lightly", "qpt torch", FLOOR), repeat=3)
    rows, remarks = bench_contrastive._measure(plan, rounds=1)
    assert [row.backend for row in rows] == ["qpt torch", FLOOR]
    assert remarks == ["Not measured: lightly: it is not here."]


@pytest.mark.parametrize("name", ["attention bfloat16", "qpt bfloat16"])
def test_bfloat16_forms_round_their_rows_and_have_a_tolerance_of_their_own(name):
    inputs = make_inputs(Setting("moco", 64, 3000, gradient=True))
    loss, gradient = FORMS[name].make(inputs)()
    found = bench_contrastive.compare(inputs, {name: (loss, gradient)})[name]
    assert found["gradient"] > 3e-5  # float32 is within 1e-6: something was rounded to 8 bits
    for wrong in ((loss * 1.001, gradient), (loss, gradient * 1.02), (loss, gradient * math.nan)):
        with pytest.raises(Disagreement, match=f"{name} differs at"):
            bench_contrastive.compare(inputs, {name: wrong})
    with pytest.raises(Disagreement, match="full logits differs at"):  # what they are allowed is not for others
        bench_contrastive.compare(inputs, {"full logits": FORMS["qpt bfloat16"].make(inputs)()})


def test_forms_keep_the_dtype_of_inputs_that_are_in_bfloat16(monkeypatch):
    inputs = make_inputs(Setting("moco", 4, 8, gradient=False))
    half = dataclasses.replace(
        inputs, queries=inputs.queries.bfloat16(), keys=inputs.keys.bfloat16(), pool=inputs.pool.bfloat16()
    )
    seen: list[list[torch.dtype]] = []

    def loss(queries, keys, *, pool, **further):
        seen.append([rows.dtype for rows in (queries, keys, pool)])
        return torch.zeros(())

    monkeypatch.setattr(contrastive_baselines, "contrastive_loss", loss)
    for name, given in (("qpt", half), ("qpt", inputs), ("qpt bfloat16", inputs), ("qpt bfloat16 pool", inputs)):
        FORMS[name].make(given)()
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == [[narrow] * 3, [wide] * 3, [narrow] * 3, [wide, wide, narrow]]


def test_which_forms_take_part_at_which_size():
    alternatives = {"attention", "attention bfloat16", "qpt bfloat16", "qpt", "full logits"}
    found = [plan for plan in bench_contrastive.plans(quick=False) if plan.op.startswith("own keys and pool")]
    assert [(plan.setting.n, plan.setting.k) for plan in found[::2]] == list(bench_contrastive.SIZES)
    for plan in found:
        assert alternatives <= set(plan.contenders)
        assert ("full logits compiled" in plan.contenders) == (plan.setting.n * plan.setting.k < 2**28)


def row_of(backend: str, median_ms: float) -> Row:
    return Row("o", backend, "N=1 K=8 D=2", median_ms, 0.0, median_ms, 1.0, 0.0, 1, {}, "n")


def test_times_are_of_one_call_and_ratios_of_medians():
    calls: list[int] = []
    assert bench_contrastive._repeated(lambda: calls.append(1) or len(calls), 4)() == 1
    assert len(calls) == 4
    row = bench_contrastive._per_call(row_of("a", 8.0), 4)
    assert (row.median_ms, row.min_ms, row.items_per_s) == (2.0, 2.0, 4.0)
    rows = bench_contrastive.with_ratios([row_of("full logits", 8.0), row_of("qpt", 2.5), row_of(FLOOR, 2.0)])
    assert [row.note for row in rows][:2] == ["4.00 x floor, 3.20 x qpt; n", "1.25 x floor, 1.00 x qpt; n"]
    assert bench_contrastive.with_ratios(rows[:1])[0].note == rows[0].note


@pytest.mark.skipif(not memory.AVAILABLE, reason="memory of a process is read from Linux's /proc")
def test_peak_memory_sees_the_logits_and_nothing_of_the_inputs():
    # 128 x 32,769 logits are 16 MiB, of which the full form holds three or more at once; the inputs are 16 MiB too.
    setting = Setting("moco", 128, 32768, gradient=True)
    peaks = {name: memory.peak_mib(setting, name, threads=1) for name in ("full logits", FLOOR)}
    assert 45 < peaks["full logits"] < 120
    assert peaks[FLOOR] < 8


def test_plot_of_the_sweep(tmp_path):
    content = tables.load("contrastive")
    assert {len(points) for points in tables.sweep_lines(content).values()} == {len(bench_contrastive.SWEEP_KEYS)}
    tables.plot_sweep(content, tmp_path / "images" / "plot.png")
    assert (tmp_path / "images" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_roofline_by_hand():
    gpu = roofline.Gpu(
        "G", {"float32": 1e12}, special=1e11, bandwidth=1e12, multiprocessors=10, architecture=80, source="-"
    )
    work = roofline.Work(matrix_ops=2e9, special_ops=1e8, bytes_moved=1e9, peak_bytes=2**20)
    predicted = roofline.predict(work, gpu, "float32", efficiency=0.5)
    # 2 ms of products, 1 ms of exponentials, 1 ms of traffic, at half the peak.
    assert predicted["predicted_ms"] == 4.0
    assert predicted["bound_by"] == "matrix"
    assert predicted["peak_mib"] == 1.0
    with pytest.raises(ValueError, match="dtype must be one of float32, got 'int8'"):
        roofline.predict(work, gpu, "int8")


def test_roofline_of_the_loss_counts_the_products_and_the_logits():
    fused = roofline.fused_contrastive(256, 65536, 128, 2, gradient=True)
    full = roofline.full_logits_contrastive(256, 65536, 128, 2, gradient=True)
    assert fused.matrix_ops == full.matrix_ops == 2 * 2 * 256 * 65536 * 128
    assert full.peak_bytes == 3 * 256 * 65536 * 4
    assert fused.peak_bytes < full.peak_bytes / 100
    for gpu in roofline.GPUS:
        times = [roofline.predict(work, gpu, "bfloat16")["predicted_ms"] for work in (fused, full)]
        assert times[0] < times[1]


def test_launch_counts_idle_multiprocessors():
    gpu = roofline.Gpu("G", {"float32": 1e12}, 1e11, 1e12, multiprocessors=10, architecture=80, source="-")
    # 25 row blocks on 10 multiprocessors, two at a time: one full wave of 20, then 5 blocks on 5 of them.
    launch = roofline.Launch(block_rows=4, blocks_per_multiprocessor=2, splits=1)
    assert (launch.blocks(100, gpu), launch.waves(100, gpu)) == (25, 1.25)
    assert launch.stretch(100, gpu) == pytest.approx(3 / 2.5)
    # Few rows: the pool is split, 3 row blocks x 6 parts on 20 places.
    filling = roofline.Launch(block_rows=4, blocks_per_multiprocessor=2)
    assert (filling.parts(12, gpu), filling.blocks(12, gpu)) == (6, 18)
    assert filling.stretch(12, gpu) == pytest.approx(2 / 1.8)
    assert filling.parts(1000, gpu) == 1
    work = roofline.Work(matrix_ops=2e9, special_ops=0, bytes_moved=0, peak_bytes=0)
    predicted = roofline.predict(work, gpu, "float32", efficiency=1.0, launch=launch, rows=100)
    assert (predicted["predicted_ms"], predicted["waves"]) == (2.4, 1.25)
    with pytest.raises(ValueError, match="blocks_per_multiprocessor must be >= 1, got 0"):
        roofline.Launch(block_rows=4, blocks_per_multiprocessor=0)


def test_partial_results_of_a_split_pool_are_counted():
    whole, split = (roofline.fused_contrastive(64, 4096, 128, 2, True, parts) for parts in (1, 5))
    assert split.peak_bytes == 5 * 64 * 130 * 4 == 5 * whole.peak_bytes
    assert split.bytes_moved - whole.bytes_moved == 2 * 4 * 64 * 130 * 4


def test_the_loop_of_a_kernel_is_counted_without_tensor_cores_and_inner_turns():
    def line(place: int, text: str) -> str:
        return f"        /*{place:04x}*/                   {text} ;                /* 0x0 */"

    body = ["LDS R1", "HMMA.16816.F32.BF16 R4", "@P0 FADD R2", "NOP", "@!UP1 IADD3 R3", "@P1 BRA 0x10"]
    listing = [line(0, "MOV R1"), *(line(16 * place, text) for place, text in enumerate(body, 1)), line(160, "EXIT")]
    assert roofline_loss.count_loop("\n".join(listing)) == 4
    # LDS, FADD and the branch are a loop of their own here, of five turns.
    nested = ["MOV R9", "LDS R1", "HMMA R4", "FADD R2", "@P0 BRA 0x20", "MUFU.EX2 R3", "@P1 BRA 0x10"]
    listing = [line(16 * place, text) for place, text in enumerate(nested, 1)]
    assert roofline_loss.count_loop("\n".join(listing), steps=5) == 6 + 4 * 3
    with pytest.raises(ValueError, match="must hold a loop"):
        roofline_loss.count_loop(line(0, "EXIT"))


def test_the_prediction_of_the_loss_by_hand(monkeypatch):
    loop = roofline_loss.Loop(instructions=1000, rows=64, stream=32, warps=4, blocks=2)
    monkeypatch.setattr(roofline_loss, "compiled_loop", lambda *_: loop)
    monkeypatch.setattr("qpt.kernels.contrastive_launch.OLD_TRITON", False)  # another row of the launch table
    gpu = roofline.GPUS[0]
    found = roofline_loss.predict(roofline_loss.FORMS[0], 512, 65536, gpu)
    # 8 row blocks in 27 parts: two blocks on each of 108 multiprocessors; 2,428 keys a part, 76 turns. A scheduler has
    # a warp of each block, which issues for 2,000 clocks a turn beside 1,536 of its tensor core.
    milliseconds = 76 * 2 * 2000 / gpu.clock * 1e3
    merge = 2 * 27 * 512 * 4 * 130 / (5120 * gpu.clock * 0.6) * 1e3
    assert found["predicted_ms"] == pytest.approx(milliseconds + merge, abs=1e-4)
    assert found["bound_by"] == "instructions"
    assert found["roofline_ms"] == pytest.approx(3 * 4 * 512 * 65536 * 128 / 312e12 * 1e3, abs=1e-4)


def test_the_recorded_loss_reaches_most_of_its_roofline():
    content = tables.load("roofline_loss")
    step = [entry for entry in content["predictions"] if entry["form"] == "float32" and "N=512 " in entry["shape"]]
    assert len(step) == 2 * len(roofline.GPUS)
    assert min(entry["share_of_roofline"] for entry in step) >= 0.6
