"""The contrastive loss's Triton kernels without a GPU: interpreted against the definition, compiled with limits.

The definition is ``dense`` of tests/contrastive_interpreted.py, in float64 as the truth and in float16 as the baseline.
Unless a test says otherwise float32 is multiplied as terms of bfloat16, which is the default on a GPU. TF32 is not
interpreted: tests/test_ptx_contrastive.py executes it.
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import resources
from qpt import build
from tests import contrastive_interpreted as interpreted
from tests import offline
from tests.contrastive_interpreted import Case
from tests.interpreter import Interpreter
from tests.tolerance import TOL, assert_close

# N, M, D, parts: one pair, one key, one query, ragged against blocks of 16, more parts than tiles
SHAPES = [(1, 1, 1, 1), (3, 1, 33, 1), (1, 40, 96, 2), (17, 33, 33, 5), (16, 32, 128, 2), (21, 75, 128, 3)]
LONG_SHAPES = [(n, m, dim, parts) for n in (1, 16, 33) for m in (1, 17, 64) for dim in (1, 33, 128) for parts in (1, 3)]
WEIGHTS = {"no images": None, "images": 0.0, "weight 0.5": math.log(0.5), "weight 0": -math.inf}


def check_float32(
    interpreter: Interpreter, case: Case, parts: int, *, logit_error: float = 0.0, **options: Any
) -> None:
    """logit_error: of one pair, where it shows: the tolerance of the table is for sums over many."""
    truth = interpreted.dense(case, torch.float64)
    found = interpreter(interpreted.run, case, truth[0], parts, **options)
    eligible = truth[0] > -math.inf
    assert torch.equal(found["lse"] > -math.inf, eligible)
    assert torch.equal(found["lse"], found["bare_lse"])
    # A log-sum-exp of few logits may be near 0 and is off by what they are off; a softmax by as much of itself.
    lse, expected = found["lse"][eligible].double(), truth[0][eligible]
    if logit_error == 0.0:
        assert_close(lse, expected, torch.float32)
    else:
        assert torch.all((lse - expected).abs() <= logit_error)
    scale = max(1.0, logit_error / TOL[torch.float32][0])
    assert_close(found["mean"], truth[1], torch.float32, scale)
    assert_close(found["gradient"], truth[2], torch.float32, scale)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_shapes_agree_with_float64(interpreter: Interpreter, shape: tuple[int, int, int, int]) -> None:
    check_float32(interpreter, interpreted.case(*shape[:3], log_weight=math.log(0.5)), shape[3])


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("self_offset", [None, 0, 7, -3])
@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_option_agrees_with_float64(
    interpreter: Interpreter, self_offset: int | None, negatives: bool, weight: str
) -> None:
    log_weight = WEIGHTS[weight]
    options = {"self_offset": self_offset, "negatives": negatives, "log_weight": log_weight or 0.0}
    case = interpreted.case(18, 35, 33, images=log_weight is not None, **options)
    check_float32(interpreter, case, parts=2)


@pytest.mark.rung("Triton interpreter")
def test_shapes_and_options_together(interpreter: Interpreter, long: bool) -> None:
    grid = itertools.product(LONG_SHAPES if long else LONG_SHAPES[::27], (None, 0, 2), (True, False), WEIGHTS.values())
    for seed, ((n, m, dim, parts), self_offset, negatives, log_weight) in enumerate(grid):
        options = {"self_offset": self_offset, "negatives": negatives, "log_weight": log_weight or 0.0}
        case = interpreted.case(n, m, dim, seed=seed, images=log_weight is not None, **options)
        # Of numbers of two terms each the products of the low ones are left out: 2^-18 of |q||k| or so (docs/loss.md).
        check_float32(interpreter, case, parts, logit_error=2**-18 / case.temperature)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize(("dim", "columns"), [(50, 16), (64, 32), (200, 128)])
def test_columns_in_slices_agree_with_float64(interpreter: Interpreter, dim: int, columns: int) -> None:
    case = interpreted.case(18, 35, dim, log_weight=math.log(0.5), self_offset=1)
    check_float32(interpreter, case, parts=2, columns=columns)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("dim", [257, 1024])
def test_long_rows_agree_with_float64(interpreter: Interpreter, dim: int) -> None:
    check_float32(interpreter, interpreted.case(5, 20, dim, log_weight=math.log(0.5)), parts=1)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("log_weight", [0.0, math.log(0.5), -math.inf])
@pytest.mark.parametrize("negatives", [True, False])
def test_both_roles_agree_with_float64(interpreter: Interpreter, log_weight: float, negatives: bool) -> None:
    rows = interpreted.case(35, 35, 33)
    assert (rows.query_groups < 0).any()  # ignored as a key, and has no gradient as a query
    case = Case(
        rows.queries,
        rows.queries,
        rows.query_groups,
        rows.query_groups,
        rows.query_images,
        rows.query_images,
        log_weight=log_weight,
        negatives=negatives,
        self_offset=0,
        both_roles=True,
    )
    check_float32(interpreter, case, parts=2)


@pytest.mark.rung("Triton interpreter")
def test_nothing_eligible_anywhere(interpreter: Interpreter) -> None:
    case = interpreted.case(18, 35, 33)
    case.key_groups.fill_(-1)
    check_float32(interpreter, case, parts=3)


@pytest.mark.rung("Triton interpreter")
def test_ids_differ_above_the_low_32_bits(interpreter: Interpreter) -> None:
    case = interpreted.case(18, 35, 33, negatives=False)
    case.key_groups[::2] += 1 << 32
    assert case.query_images is not None
    assert case.key_images is not None
    case.key_images[::3] += 1 << 40
    check_float32(interpreter, case, parts=2)


@pytest.mark.rung("Triton interpreter")
def test_huge_embeddings_stay_finite_and_agree(interpreter: Interpreter) -> None:
    case = interpreted.case(18, 35, 33, scale=1e4 * math.sqrt(33), temperature=0.07)
    largest = (case.queries @ case.keys.T).abs().max().item() / case.temperature
    assert largest > 1e9
    truth = interpreted.dense(case, torch.float64)
    found = interpreter(interpreted.run, case, truth[0], 2)
    assert (found["lse"].double() - truth[0]).abs().max() <= 1e-5 * largest
    # Softmaxes are 0 or 1 there, but for ties within rounding: a convex mean, and gradients no larger than their sum.
    assert found["mean"].abs().max() <= case.keys.abs().max() * (1 + 1e-5)
    assert found["gradient"].isfinite().all()
    assert found["gradient"].abs().max() <= 1.01 * case.queries.abs().sum(0).max() / case.temperature


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize(("shape", "columns"), [((17, 33, 33), None), ((21, 75, 128), None), ((18, 35, 50), 16)])
def test_float16_is_no_worse_than_torch_in_float16(
    interpreter: Interpreter, shape: tuple[int, int, int], columns: int | None
) -> None:
    case = interpreted.converted(interpreted.case(*shape, log_weight=math.log(0.5)), torch.float16)
    truth, baseline = interpreted.dense(case, torch.float64), interpreted.dense(case, torch.float16)
    found = interpreter(interpreted.run, case, truth[0], 2, columns=columns)
    relative, absolute = TOL[torch.float16]
    for name, right, theirs in zip(("lse", "mean", "gradient"), truth, baseline, strict=True):
        fine = right.isfinite()
        bound = (theirs.double() - right)[fine].norm() + absolute + relative * right[fine].norm()
        assert (found[name].double() - right)[fine].norm() <= bound, name


@pytest.mark.rung("Triton interpreter")
def test_softmax_below_float16s_range_is_kept(interpreter: Interpreter) -> None:
    """Key gradients over very many keys are sums of softmaxes below 6e-8, which a float16 cannot hold."""
    case = interpreted.converted(interpreted.case(18, 35, 33, images=False), torch.float16)
    many = interpreted.dense(case, torch.float64)[0] + 14.0  # as with e^14, 1.2 million, times the keys
    gradient = interpreter(interpreted.run, case, many, 2)["gradient"].double()
    expected = interpreted.dense(case, torch.float64)[2] * math.exp(-14.0)
    assert (gradient - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["auto", "ieee"])
def test_two_dtypes_lose_no_more_than_float32(interpreter: Interpreter, dtype: torch.dtype, precision: str) -> None:
    case = interpreted.case(18, 35, 33)
    mixed = Case(case.queries, case.keys.to(dtype), case.query_groups, case.key_groups)
    check_float32(interpreter, mixed, parts=2, precision=precision)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["bf16x3", "ieee"])
def test_a_precision_that_is_named_holds_for_half_precision_too(
    interpreter: Interpreter, dtype: torch.dtype, precision: str
) -> None:
    case = interpreted.converted(interpreted.case(18, 35, 33), dtype)
    check_float32(interpreter, case, parts=2, precision=precision)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("shape", SHAPES[3:], ids=str)
def test_ieee_products_agree_with_float64(interpreter: Interpreter, shape: tuple[int, int, int, int]) -> None:
    case = interpreted.case(*shape[:3], log_weight=math.log(0.5))
    check_float32(interpreter, case, shape[3], precision="ieee")


@pytest.mark.parametrize(
    ("rows", "stream", "precision", "capability", "kind"),
    [
        (torch.float32, torch.float32, "auto", 80, "terms"),
        (torch.float32, torch.bfloat16, "auto", 90, "terms"),
        (torch.float32, torch.float32, "auto", 75, "float32"),
        (torch.bfloat16, torch.bfloat16, "auto", 75, "half"),
        (torch.float16, torch.float16, "ieee", 80, "float32"),
        (torch.float32, torch.float32, "tf32", 80, "tf32"),
        (torch.float32, torch.float32, "tf32x3", 90, "tf32"),
        (torch.bfloat16, torch.bfloat16, "bf16x3", 80, "terms"),
    ],
)
def test_products_by_dtype_precision_and_device(
    rows: torch.dtype, stream: torch.dtype, precision: str, capability: int, kind: str
) -> None:
    from qpt.kernels import contrastive as kernels

    products = kernels.Products.of(rows, stream, precision, capability, by_pairs=False)
    assert products.kind == kind
    assert products.precision == (precision if kind == "tf32" else "ieee"), "TF32 by accident"
    split = (products.split_rows, products.split_stream)
    assert split == ((rows != torch.bfloat16, stream != torch.bfloat16) if kind == "terms" else (False, False))


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called directly with tensors on cuda:1 while cuda:0 is current."""
    from qpt.kernels import contrastive as kernels
    from qpt.kernels import contrastive_graded, contrastive_launch

    current, launched = [0], []

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before, current[0] = current[0], chosen.index
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, _: object) -> Any:
            return lambda *_, **__: launched.append(current[0])

    class OnGpu(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "device", device)
    for module, name in ((kernels, "_pass_kernel"), (kernels, "_merge_kernel"), (contrastive_graded, "_graded_kernel")):
        monkeypatch.setattr(module, name, Kernel())
    monkeypatch.setattr(kernels, "_device", lambda _: (90, 132))
    case = interpreted.case(4, 5, 16)
    queries = (case.queries.as_subclass(OnGpu), case.query_groups, case.query_images)
    keys = (case.keys.as_subclass(OnGpu), case.key_groups, case.key_images, None, True)
    kernels.lse_forward(queries, keys, torch.tensor(0.2), 0.0, weighted=True)
    kernels.key_gradient(queries, keys, torch.tensor(0.2), 0.0, torch.zeros(4))
    severities = torch.zeros(4, 2)
    side = (severities, case.query_groups, None)
    contrastive_graded.add_graded(side, side, 0.3, None, queries[0], torch.zeros(4, 16).as_subclass(OnGpu))
    assert launched == [1] * 5
    assert current == [0]
    assert isinstance(contrastive_launch.device_of(case.queries), contextlib.nullcontext)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_no_rows(interpreter: Interpreter, n: int, m: int) -> None:
    row_max, row_sum, acc, gradient = interpreter(interpreted.run_empty, n, m, 8)
    assert row_max.tolist() == [-math.inf] * n
    assert row_sum.tolist() == [0.0] * n
    assert torch.equal(acc, torch.zeros(n, 8))
    assert torch.equal(gradient, torch.zeros(m, 8))


def test_launch_table_serves_every_device_and_dim() -> None:
    from qpt.kernels import contrastive as kernels
    from qpt.kernels import contrastive_launch

    kinds = {kind for _, kind, _ in contrastive_launch.LAUNCHES}
    for capability, kind, dim in itertools.product((70, 80, 86, 90, 100, 120), kinds, [*range(1, 1025), 4096]):
        launch = kernels.launch_for(capability, kind, dim)
        for extent in launch[:4]:
            assert extent >= 16  # what a product of tiles takes
            assert extent & (extent - 1) == 0


def test_parts_fill_a_large_gpu_and_bound_the_partials() -> None:
    from qpt.kernels import contrastive as kernels

    for n, m, dim in itertools.product((1, 16, 1024, 65536), (1, 1000, 65536, 1 << 24), (1, 128, 1024)):
        launch = kernels.launch_for(90, "terms", dim)
        parts = kernels.parts_for(n, m, dim, launch, 132)
        assert 1 <= parts <= 2**16 - 1  # the grid's second axis
        assert parts == 1 or parts * n * dim * 4 <= 8 << 20
        assert parts == 1 or m // parts >= launch.stream
    launch = kernels.launch_for(90, "terms", 128)
    assert -(-256 // launch.rows) * kernels.parts_for(256, 65536, 128, launch, 132) >= 132


def test_parts_leave_no_multiprocessor_a_third_program() -> None:
    """Two programs run at once on a multiprocessor: 1,024 queries were 224 of them on 216 places of an A100."""
    from qpt.kernels import contrastive as kernels

    launch = kernels.launch_for(80, "terms", 128)
    for rows, multiprocessors in itertools.product((64, 256, 512, 1024, 2048), (108, 132)):
        programs = -(-rows // launch.rows) * kernels.parts_for(rows, 65536, 128, launch, multiprocessors)
        assert -(-programs // multiprocessors) <= 2
        assert programs >= 1.5 * multiprocessors


def check_compiled(dtype: str, dim: int, architecture: int, precision: str, **role: bool) -> None:
    known = {name: role[name] for name in ("running", "all_options") if name in role}
    _, launch = resources.contrastive_products(dtype, dim, architecture, precision=precision, **known)
    compiled = resources.contrastive_pass(dtype, dim, architecture, precision=precision, **role)
    (found,) = resources.read(compiled.asm["cubin"]).values()
    shared_bytes = compiled.metadata.shared
    # The registers of one block; ptxas gives a thread 255 at most.
    most = min(255, 65_536 // (launch.warps * 32))
    offline.check(found, architecture, registers=most, launch_shared_bytes=shared_bytes)
    assert resources.blocks_per_multiprocessor(found, launch.warps * 32, architecture, shared_bytes) >= 1
    assert (found.tensor_core > 0) == (precision != "ieee"), found


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("variant", resources.CONTRASTIVE, ids=str)
def test_pass_compiles_without_spills(architecture: int, variant: tuple[str, int, str, str]) -> None:
    dtype, dim, name, precision = variant
    check_compiled(dtype, dim, architecture, precision, **resources.PASSES[name])


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("name", resources.PASSES)
def test_pass_compiles_without_spills_for_newer_gpus(name: str, long: bool) -> None:
    for architecture in build.NEWER_ARCHITECTURES:
        for dim in (64, 128, 256, 512) if long else (128, 256):
            check_compiled("fp32", dim, architecture, "auto", **resources.PASSES[name])


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_every_launch_of_the_table_compiles_without_spills(architecture: int, long: bool) -> None:
    wide = [("fp32", 1024, "ieee"), ("fp32", 1024, "auto"), ("fp16", 1024, "auto"), ("bf16", 64, "auto")]
    wide += [("fp32", 512, "tf32x3"), ("fp32", 512, "tf32"), ("bf16", 128, "bf16x3"), ("fp16", 128, "bf16x3")]
    wide += [("fp32 x bf16", dim, "auto") for dim in (64, 256, 512)]
    reported = [
        (dtype, dim, precision) for dtype, dim, name, precision in resources.CONTRASTIVE if name == "key gradient"
    ]
    for dtype, dim, precision in [*reported, *wide] if long else wide[:1]:
        for role in (*resources.PASSES.values(), {"running": False, "both_roles": True}):
            check_compiled(dtype, dim, architecture, precision, **role)


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("name", resources.PASSES)
def test_both_products_of_the_training_step_are_on_tensor_cores(architecture: int, name: str) -> None:
    """The step has float32 queries of 128 and, unless told otherwise, a float32 pool."""
    counts = {}
    for precision in ("auto", "ieee"):
        compiled = resources.contrastive_pass("fp32", 128, architecture, precision=precision, **resources.PASSES[name])
        text = compiled.asm["ptx"]
        counts[precision] = len(re.findall(r"\bfma\.rn\.f32", text)), len(re.findall(r"\b(?:mma\.sync|wgmma)\.", text))
    multiply_adds, matrix = counts["auto"]
    _, launch = resources.contrastive_products("fp32", 128, architecture, **resources.PASSES[name])
    # What is left is the scale's and the running maximum's: at most three of them for a logit of a thread.
    logits = launch.rows * launch.stream // (launch.warps * 32)
    assert multiply_adds <= 3 * logits + 16
    assert matrix >= 2 * 3 * launch.rows * 128 * launch.stream // (64 * 128 * 16 * launch.warps)
    in_float32, none = counts["ieee"]
    assert none == 0
    # Of a step of the first product and of the columns of the second, by thread: loops over D are not unrolled.
    _, launch = resources.contrastive_products("fp32", 128, architecture, precision="ieee", **resources.PASSES[name])
    assert in_float32 >= launch.rows * launch.stream * (launch.step + launch.columns) // (launch.warps * 32)


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_merge_compiles_without_spills(architecture: int) -> None:
    cubin, shared_bytes = resources.contrastive_merge(architecture)
    (found,) = resources.read(cubin).values()
    offline.check(found, architecture, registers=128, launch_shared_bytes=shared_bytes)
