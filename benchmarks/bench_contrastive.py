"""The contrastive loss, forward and with its gradient, beside its baselines: time and peak memory.

Run by ``python -m benchmarks contrastive``. The forms of the loss are in ``contrastive_baselines.py``. Each gets
the same rows and must agree with the full logits before anything is timed. The floor is the matrix products alone, one
for the forward and two with the gradient. Peaks are of fresh processes (``memory.py``).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks import contrastive_baselines as baselines
from benchmarks import memory
from benchmarks.contrastive_baselines import FLOOR, Answer, Call, Inputs, Setting, Unavailable
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure

HELP = "the loss, forward and gradient: time and peak memory beside torch forms, libraries and bare products"
SWEEP = "sweep over K, forward + gradient"  # drawn by benchmarks/tables.py
# The forms that keep logits leave gigabytes of freed memory and a cold cache to the next one: they come first, and the
# forms that are compared with the floor follow one another.
_MOCO = (
    "full logits",
    "full logits compiled",
    "lightly",
    "cut-cross-entropy",
    "chunked recompute",
    "qpt torch",
    "attention",
    "attention bfloat16",
    "qpt bfloat16",
    "qpt",
    FLOOR,
)
_NTXENT = ("full logits", "full logits compiled", "lightly", "chunked recompute", "qpt torch", "qpt", FLOOR)
_DTYPES = ("qpt bfloat16 pool", "qpt float16 pool", "qpt")
_TORCH_FORMS = ("full logits", "full logits compiled", "lightly", "chunked recompute", "qpt torch", "attention", "qpt")
_METRIC_LEARNING = ("pytorch-metric-learning", "lightly", "full logits", "qpt")  # its pairs of pairs grow with N^3
_SWEEP = ("full logits", "chunked recompute", "attention", "qpt", FLOOR)
_PEERS = ("lightly", "cut-cross-entropy")
# With gigabytes of logits a case takes minutes: only the closest baselines take part.
_AT_LARGE_SIZES = ("full logits", "attention", "attention bfloat16", "qpt bfloat16", "qpt", FLOOR)
_WITH_PEAK = ("full logits", "chunked recompute", "attention", "attention bfloat16", "qpt bfloat16", "qpt")
SIZES = ((256, 65536), (1024, 65536), (4096, 65536), (256, 1048576))
SWEEP_KEYS = tuple(2**power for power in range(12, 21))
SWEEP_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """One case: a setting and the forms that are measured.  repeat: number of calls that are timed as one."""

    op: str
    setting: Setting
    contenders: Sequence[str]
    repeat: int = 1
    rounds: int | None = None  # upper limit
    with_peak: Sequence[str] = ()


def run(settings: Settings) -> Report:
    """Measure every plan, then peak memory."""
    rows: list[Row] = []
    remarks: dict[str, None] = {}  # in order, each once
    for plan in plans(settings.quick):
        print(f"contrastive: {plan.op}, {plan.setting.shape}", file=sys.stderr)
        measured, missing = _measure(plan, settings.rounds, settings.device)
        remarks |= dict.fromkeys(missing)
        for position, row in enumerate(measured):
            if row.backend in plan.with_peak and settings.device == "cpu":
                try:
                    peak = memory.peak_mib(plan.setting, row.backend, torch.get_num_threads())
                    measured[position] = replace(row, peak_mib=peak)
                except RuntimeError as error:
                    remarks[f"No peak: {error}"] = None
        rows += with_ratios(measured)
    return Report("contrastive", rows, remarks=[*_REMARKS, *remarks])


_REMARKS = (
    "Own keys and pool (MoCo): N queries, their N own keys and K pool keys, float32 but where a form is named after "
    "another dtype; the gradient is that of the queries. NT-Xent: 2N rows against each other, gradients of both roles. "
    "A forward-only call asks for no gradient.",
    "The floor is the matrix products alone, in blocks of 2,048 keys with their buffer given; one for the forward, two "
    "with the gradient. Ratios are of medians in one case, whose rounds are interleaved.",
    "Peak: high-water mark of a fresh process beyond inputs and gradients, after a small call. Inputs include "
    "lightly's bank and cut-cross-entropy's concatenated keys; compiled forms are measured at their second call.",
)


def plans(quick: bool) -> list[Plan]:
    """Return every case in the order it is run; ``quick``: the same kinds at tiny sizes."""
    found: list[Plan] = []
    modes = ((False, "forward"), (True, "forward + gradient"))
    for n, k in ((32, 2500),) if quick else SIZES:
        for gradient, mode in modes:
            included = _MOCO if n * k < 2**28 else _AT_LARGE_SIZES
            peaks = (("qpt",) if quick else _WITH_PEAK) if gradient else ()
            setting = Setting("moco", n, k, gradient)
            peaks = [name for name in peaks if name in included]
            found.append(Plan(f"own keys and pool, {mode}", setting, included, with_peak=peaks))
    for gradient, mode in modes:
        rows = Setting("ntxent", 300 if quick else 8192, 0, gradient)
        peaks = _WITH_PEAK if gradient and not quick else ()
        included = [name for name in _NTXENT if quick or name not in _PEERS]
        found.append(Plan(f"NT-Xent, {mode}", rows, included, with_peak=[p for p in peaks if p in included]))
    for n, k in ((32, 2500),) if quick else ((1024, 65536), (256, 1048576)):
        for gradient, mode in modes:
            found.append(Plan(f"dtype of the pool, {mode}", Setting("moco", n, k, gradient), _DTYPES))
    for gradient, mode in modes:
        small = Setting("moco", 16, 512 if quick else 4096, gradient)
        found.append(Plan(f"small batch, {mode}", small, _TORCH_FORMS, repeat=2 if quick else 50))
    pairs = Setting("ntxent", 16 if quick else 128, 0, True)
    found.append(Plan("NT-Xent, few rows, forward + gradient", pairs, _METRIC_LEARNING))
    for k in (512, 4096) if quick else SWEEP_KEYS:
        setting = Setting("moco", 32 if quick else 256, k, True)
        peaks = () if quick else ("full logits", "qpt")
        found.append(Plan(SWEEP, setting, _SWEEP, rounds=SWEEP_ROUNDS, with_peak=peaks))
    # Compiling takes seconds a shape: at tiny sizes one case, the first with a gradient, shows that it runs.
    return [_without_compiled(plan) if quick and place != 1 else plan for place, plan in enumerate(found)]


def _without_compiled(plan: Plan) -> Plan:
    return replace(plan, contenders=[name for name in plan.contenders if not baselines.FORMS[name].compiles])


def _measure(plan: Plan, rounds: int, device: str = "cpu") -> tuple[list[Row], list[str]]:
    """Return the rows of one plan, times of one call, and a remark for each form that cannot run here."""
    inputs = baselines.make_inputs(plan.setting, device)
    contenders, missing = [], []
    for name in plan.contenders:
        form = baselines.FORMS[name]
        try:
            call = form.make(inputs)
        except Unavailable as reason:
            missing.append(f"Not measured: {name}: {reason}.")
            continue
        contenders.append(Contender(name, _repeated(call, plan.repeat), form.note))
    case = Case(
        op=plan.op,
        shape=plan.setting.shape,
        items=plan.setting.n,
        contenders=contenders,
        agree=lambda answers: compare(inputs, answers),
        peak=device != "cpu" and bool(plan.with_peak),  # on the CPU, of fresh processes
    )
    rows = measure([case], min(rounds, plan.rounds or rounds), warmup=1, device=device)
    return [_per_call(row, plan.repeat) for row in rows], missing


def _repeated(call: Call, times: int) -> Call:
    def calls() -> Answer:
        first = call()  # lightly puts the keys into its bank at each call: only the first has the others' rows
        for _ in range(times - 1):
            call()
        return first

    return call if times == 1 else calls


def _per_call(row: Row, calls: int) -> Row:
    return replace(
        row,
        median_ms=row.median_ms / calls,
        iqr_ms=row.iqr_ms / calls,
        min_ms=row.min_ms / calls,
        items_per_s=row.items_per_s * calls,
    )


def compare(inputs: Inputs, answers: dict[str, Answer]) -> dict[str, dict[str, float]]:
    """Return, by contender, the relative differences of loss and gradient from the full logits.

    Raises Disagreement if one is larger than its form is allowed.
    """
    truths: dict[str, Answer] = {}
    differences = {}
    for name, (loss, gradient) in answers.items():
        gives, allowed = baselines.FORMS[name].gives, baselines.FORMS[name].allowed
        if not gives:
            continue
        if gives not in truths:
            truths[gives] = baselines.expected(inputs, gives)
        true_loss, true_gradient = truths[gives]
        found = {"loss": (abs(loss - true_loss) / abs(true_loss)).item()}
        wrong = not found["loss"] <= allowed.loss
        if gradient is not None and true_gradient is not None:
            difference = ((gradient - true_gradient).norm() / true_gradient.norm()).item()
            found["gradient"] = difference
            wrong |= not difference <= allowed.gradient
        elif inputs.setting.gradient:
            wrong = True
        if wrong:
            raise Disagreement(f"contrastive: {name} differs at {inputs.setting.shape}: {found}")
        differences[name] = found
    return differences


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Put the ratios of a row's median to the floor's and to that of qpt in the same case before its note."""
    medians = {row.backend: row.median_ms for row in rows}
    found = []
    for row in rows:
        shown = {"floor": medians.get(FLOOR), "qpt": medians.get("qpt")}
        ratios = ", ".join(f"{row.median_ms / ms:.2f} x {name}" for name, ms in shown.items() if ms is not None)
        found.append(replace(row, note="; ".join(part for part in (ratios, row.note) if part)))
    return found
