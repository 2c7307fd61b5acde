"""Steps of ``gpu_day`` on the contrastive loss: errors against float64, then times and peaks beside other forms."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import contrastive_baselines as baselines
from benchmarks import roofline
from benchmarks.gpu_checks import tf32_products
from benchmarks.gpu_steps import Day
from benchmarks.harness import tensor_peak
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.problem import PRECISIONS

DIMS = (64, 128, 256, 512)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Slack in |truth - ours| <= |truth - torch in the same dtype| + slack |truth|, as in the project's tests.
SLACK = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMS = ("own keys and pool", "batch with images", "same rows")
PARTS = ("loss", "gradient of queries", "gradient of keys")
# H200 (NVIDIA H200 data sheet, 2024): the H100's arithmetic, with more and faster memory.
H200 = dataclasses.replace(roofline.GPUS[1], name="H200-SXM5-141GB", bandwidth=4.8e12, source="NVIDIA H200 data sheet")


def loss(day: Day) -> None:
    """Compare loss and gradients with float64, twice for determinism, and refuse TF32 that nobody asked for."""
    cases = [(dim, name) for dim in (DIMS[:1] if day.dry_run else DIMS) for name in DTYPES]
    if day.dry_run:
        wrong = [found for case in cases for found in _compare(day, *case)]
    else:  # compiling the kernels takes most of the time: in a process for each
        with ProcessPoolExecutor(len(cases), multiprocessing.get_context("spawn")) as pool:
            wrong = [
                found for case in pool.map(_compare, [day] * len(cases), *zip(*cases, strict=True)) for found in case
            ]
    if wrong:
        raise AssertionError(f"{len(wrong)} results are not within their bounds: {'; '.join(wrong)}"[:1500])


def _compare(day: Day, dim: int, name: str) -> list[str]:
    """Record the errors of all forms with embeddings of one length and dtype; return what is out of its bound."""
    dtype, wrong = DTYPES[name], []
    for form in FORMS:
        inputs = _inputs(form, dim, dtype, day)
        truth, rough = _dense(*inputs, torch.float64), _dense(*inputs, dtype)
        first, second = (_ours(*inputs) for _ in range(2))
        with tf32_products(True):
            careless = _ours(*inputs)
        for part, ours, again, exact, same in zip(PARTS, first, careless, truth, rough, strict=True):
            if exact is None:
                continue
            errors = {
                "ours": _error(ours, exact),
                "torch": _error(same, exact),
                "under_allow_tf32": _error(again, exact),
            }
            bound = errors["torch"] + SLACK[dtype]
            within = errors["ours"] <= bound and errors["under_allow_tf32"] <= bound
            day.record("relative errors", form=form, dtype=name, D=dim, part=part, **errors, within=within)
            wrong += [] if within else [f"{form}, {name}, D={dim}, {part}"]
        if not all(a is None or torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            wrong.append(f"{form}, {name}, D={dim}: two calls differ")
    if dtype == torch.float32:
        _precisions(day, dim)
    return wrong


def _inputs(form: str, dim: int, dtype: torch.dtype, day: Day) -> tuple[str, dict[str, Tensor]]:
    n, k = (24, 40) if day.dry_run else (300, 4099)
    generator = torch.Generator().manual_seed(dim)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator), dim=1).to(day.device, dtype)

    groups = torch.arange(n, device=day.device)
    tensors = {"queries": unit(n), "keys": unit(n), "groups": groups, "images": groups // 2}
    if form == "own keys and pool":
        tensors |= {"pool": unit(k), "pool_groups": torch.arange(k, device=day.device) + n}
    if form == "same rows":
        tensors["groups"] = groups // 2
    return form, tensors


def _ours(form: str, tensors: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    queries = tensors["queries"].clone().requires_grad_()
    keys = queries if form == "same rows" else tensors["keys"].clone().requires_grad_()
    options: dict[str, Any] = {"query_groups": tensors["groups"], "key_groups": tensors["groups"]}
    if form == "same rows":
        options["exclude_self"] = True
    elif form == "batch with images":
        options |= {"query_images": tensors["images"], "key_images": tensors["images"], "same_image_weight": 0.5}
    else:
        options |= {"pool": tensors["pool"], "pool_groups": tensors["pool_groups"], "in_batch_negatives": False}
    value = contrastive_loss(queries, keys, temperature=baselines.TEMPERATURE, **options)
    value.backward()
    return value.detach(), queries.grad, None if form == "same rows" else keys.grad


def _dense(form: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the same by all logits in ``dtype``; the losses' definition is in ``contrastive_loss``."""
    queries = tensors["queries"].to(dtype).clone().requires_grad_()
    keys = queries if form == "same rows" else tensors["keys"].to(dtype).clone().requires_grad_()
    every, groups = keys, tensors["groups"]
    if form == "own keys and pool":
        every, groups = torch.cat([keys, tensors["pool"].to(dtype)]), torch.cat([groups, tensors["pool_groups"]])
    logits = queries @ every.T / baselines.TEMPERATURE
    positive = tensors["groups"][:, None] == groups
    if form == "batch with images":
        same_image = (tensors["images"][:, None] == tensors["images"]) & ~positive
        logits = torch.where(same_image, logits + torch.tensor(0.5, dtype=dtype).log(), logits)
    if form == "own keys and pool":
        own = torch.arange(len(groups), device=groups.device) < len(keys)
        logits = logits.masked_fill(own & ~positive, -torch.inf)
    if form == "same rows":
        eye = torch.eye(len(queries), dtype=torch.bool, device=groups.device)
        logits, positive = logits.masked_fill(eye, -torch.inf), positive & ~eye
    log_shares = torch.where(positive, F.log_softmax(logits, 1), 0)
    value = -(log_shares.sum(1) / positive.sum(1)).mean()
    value.backward()
    return value.detach(), queries.grad, None if form == "same rows" else keys.grad


def _error(ours: Tensor | None, exact: Tensor) -> float:
    assert ours is not None
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def _precisions(day: Day, dim: int) -> None:
    """Record the errors of the log-sum-exp pass of float32 embeddings by the precision of its products."""
    from qpt.kernels import contrastive

    _, tensors = _inputs("own keys and pool", dim, torch.float32, day)
    temperature = torch.tensor(baselines.TEMPERATURE, device=day.device)
    exact = torch.logsumexp(tensors["queries"].double() @ tensors["pool"].double().T / baselines.TEMPERATURE, 1)
    for precision in PRECISIONS:
        row_max, row_sum, _ = contrastive.lse_forward(
            (tensors["queries"], tensors["groups"], None),
            (tensors["pool"], tensors["pool_groups"], None, None, True),
            temperature, 0.0, weighted=True, precision=precision,
        )  # fmt: skip
        day.record("log-sum-exp of float32", D=dim, precision=precision, error=_error(row_max + row_sum.log(), exact))


def loss_times(day: Day) -> None:
    """Time loss and gradient beside full logits and attention, with the peak of memory, and predict them."""
    sizes = ((16, 64),) if day.dry_run else ((512, 65_536), (512, 1_048_576))
    for n, k in sizes:
        inputs = baselines.make_inputs(baselines.Setting("moco", n, k, True), str(day.device))
        wanted = baselines.expected(inputs, "loss")
        for name, (dtype, terms), call in _contenders(inputs, compiled=k <= 65_536 and not day.dry_run):
            try:
                loss, gradient = call()
                assert gradient is not None and wanted[1] is not None
                error = float((gradient.float() - wanted[1]).norm() / wanted[1].norm())
                peak = tensor_peak(call, str(day.device)) / 2**20
                ms = day.milliseconds(call)
            except Exception as failure:  # a form that does not run here is a line of the table
                day.record("loss and gradient", shape=inputs.setting.shape, form=name, note=str(failure)[:200])
                continue
            row = {"relative_loss": float(abs(loss.float() - wanted[0]) / wanted[0]), "relative_gradient": error}
            predicted = predicted_ms(n, k, dtype, terms, fused=not name.startswith("full"))
            day.record(
                "loss and gradient", shape=inputs.setting.shape, form=name, ms=ms, peak_mib=peak, **row,
                predicted_ms=predicted, measured_over_predicted=ms / predicted,
            )  # fmt: skip


def _contenders(
    inputs: baselines.Inputs, compiled: bool
) -> list[tuple[str, tuple[str, int], Callable[[], baselines.Answer]]]:
    """Return (name, dtype of the products and how many stand for one, for the prediction, call)."""
    half = dataclasses.replace(
        inputs,
        queries=inputs.queries.detach().bfloat16().requires_grad_(),
        keys=inputs.keys.bfloat16(),
        pool=inputs.pool.bfloat16(),
    )
    forms = baselines.FORMS

    def under(allowed: bool, call: Callable[[], baselines.Answer]) -> Callable[[], baselines.Answer]:
        def run() -> baselines.Answer:
            with tf32_products(allowed):
                return call()

        return run

    full = forms["full logits"].make
    found = [
        ("qpt, float32", ("bfloat16", 3), forms["qpt"].make(inputs)),
        ("qpt, float32 queries and bfloat16 pool", ("bfloat16", 2), forms["qpt bfloat16 pool"].make(inputs)),
        ("qpt, bfloat16", ("bfloat16", 1), forms["qpt"].make(half)),
        ("full logits, float32", ("float32", 1), under(False, full(inputs))),
        ("full logits, TF32", ("tf32", 1), under(True, full(inputs))),
        ("full logits, bfloat16", ("bfloat16", 1), full(half)),
        ("attention, float32", ("float32", 1), forms["attention"].make(inputs)),
        ("attention, bfloat16", ("bfloat16", 1), forms["attention"].make(half)),
    ]
    if compiled:  # made at its call, since it may not compile here
        found.append(("full logits compiled, float32", ("float32", 1), lambda: _compiled(inputs)()))
    return found


_COMPILED: dict[int, baselines.Call] = {}


def _compiled(inputs: baselines.Inputs) -> baselines.Call:
    if id(inputs) not in _COMPILED:
        _COMPILED[id(inputs)] = baselines.FORMS["full logits compiled"].make(inputs)
    return _COMPILED[id(inputs)]


def predicted_ms(n: int, k: int, dtype: str, terms: int = 1, *, fused: bool) -> float:
    """Return milliseconds by the roofline of an H200; multiprocessors that a launch leaves idle are not counted.

    terms: products that stand for one.
    """
    key_bytes = 2 if dtype == "bfloat16" and terms < 3 else 4
    if fused:
        work = roofline.fused_contrastive(n, k, 128, key_bytes, True, terms=terms)
    else:
        work = roofline.full_logits_contrastive(n, k, 128, key_bytes, True)
    return max(float(roofline.predict(work, H200, dtype)["predicted_ms"]), 1e-4)
