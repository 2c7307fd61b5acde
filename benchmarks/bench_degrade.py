"""Degradations beside six libraries (degrade_baselines, degrade_libraries): each op, chains of five, threads and sizes.

Run by ``python -m benchmarks degrade``. Every image of a batch has its own parameters, the same for all. Libraries
that work on an image get a pool over images of as many threads (their own threading off), batched ones as many of
torch's; ours gets them too. Results are compared before anything is timed (``Baseline`` says how closely).
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import degrade_levels, degrade_libraries
from benchmarks.degrade_baselines import Baseline, Pixels
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from qpt.data.boxes import draw_pair
from qpt.data.crops import cut_crops
from qpt.data.images import load_rgb
from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.data.sample_images import sample_images
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.ops.degrade.api import degrade, degrade_patches
from qpt.ops.degrade.patches import row_windows

HELP = "milliseconds per op, per chain of five, by threads and by size, beside six libraries"
CHAIN = 5
# The chain's seven ops; the fifth is any one of four that change colour. Ranges of their parameters, uniform.
CHAIN_OPS: dict[str, tuple[tuple[float, float], ...]] = {
    "gaussian_blur": ((0.5, 5.0),),
    "motion_blur": ((3.0, 21.0), (0.0, 180.0)),
    "gaussian_noise": ((2.0, 25.0),),
    "jpeg": ((10.0, 90.0),),
    "colour": (),
    "rescale_bilinear": ((2.0, 4.0),),
    "median_blur": ((2.0, 2.0),),
}
COLOURS: dict[str, tuple[float, float]] = {
    "brightness": (0.6, 1.4),
    "contrast": (0.6, 1.4),
    "saturation": (0.5, 1.8),
    "hue": (-30.0, 30.0),
}
CHAIN_OP = "chains of 5 different ops"
CHAIN_ALLOWED = 4.0  # grey levels, mean absolute, of chains without noise: five roundings, and 8-bit HSV
SIDES = (64, 128, 256, 512, 1024, 2048)
Chains = list[list[tuple[str, tuple[float, ...]]]]


@dataclass(frozen=True)
class DegradeReport(Report):
    """A report with figures: the ratio of each op's fastest baseline to qpt, and of chains by library; the speed-up by
    threads, beside that of matrix products in cache; the slope of log time over log pixels of an image by op; and the
    fixed cost of a call in microseconds."""

    figures: dict[str, Any] = field(default_factory=dict)


def run(settings: Settings) -> DegradeReport:
    """Time every op of the table and chains in interleaved rounds, then threads and sizes."""
    images = sample_crops(8 if settings.quick else 32, 48 if settings.quick else 256)
    threads, device = torch.get_num_threads(), settings.device
    cv2.setNumThreads(1)
    baselines = degrade_libraries.all_baselines()
    with ThreadPoolExecutor(threads) as pool:
        cases = [_case(op, baselines.get(op, []), images, pool, threads, device) for op in NAMES]
        cases.append(_chain_case(baselines, images, pool, threads, device, narrower=not settings.quick))
        cases.append(_preset_case(images.to(device), threads))
        cases.append(_patches(*((4, 40, 20) if settings.quick else (32, 320, 160)), threads, device))
        rows = measure(cases, settings.rounds, device=device)
    ratios = ratios_of(rows)
    if device == "cpu":
        ratios |= {"threads": _scaling(images, threads, settings), "slopes": _slopes(settings), "call_us": _call_us()}
    count, side = images.shape[:2]
    remarks = [
        f"Batches of {count} crops of photographs, {side} x {side}, parameters of their own (levels 1 to 5 in turn), "
        f"{threads} threads; qpt and libraries of batches on {device}. Differences from qpt are in the record.",
        degrade_libraries.REMARK,
        *([_summary(ratios)] if device == "cpu" else []),
    ]
    return DegradeReport("degrade", rows, remarks=remarks, figures=ratios)


def sample_crops(count: int, side: int) -> torch.Tensor:
    """Return uint8 [count, side, side, 3]: crops of the images in the wheels of scikit-image and scikit-learn."""
    return torch.from_numpy(cut_crops([load_rgb(path) for path in sample_images()], count, size=side, seed=0))


def ratios_of(rows: list[Row]) -> dict[str, Any]:
    """Return, by op, the fastest baseline and its time over qpt's; the median over ops; by library for chains."""
    by_op: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.op in NAMES or row.op == CHAIN_OP:
            by_op.setdefault(row.op, {})[row.backend] = row.median_ms
    fastest = {
        op: min((ms, name) for name, ms in times.items() if name != "qpt")
        for op, times in by_op.items()
        if len(times) > 1
    }
    chains = by_op.get(CHAIN_OP, {})
    narrower = chains.pop(degrade_levels.NAME, None)
    ops = {
        op: {"baseline": name, "ratio": ms / by_op[op]["qpt"]} for op, (ms, name) in fastest.items() if op != CHAIN_OP
    }
    return {
        "ops": ops,
        "median_over_ops": statistics.median(entry["ratio"] for entry in ops.values()),
        "without_baseline": [op for op, times in by_op.items() if len(times) == 1],
        "chains": {name: ms / chains["qpt"] for name, ms in chains.items() if name != "qpt"},
        "chains_avx2": {name: ms / narrower for name, ms in chains.items() if name != "qpt"} if narrower else {},
    }


def _summary(ratios: dict[str, Any]) -> str:
    slowest = sorted((entry["ratio"], op) for op, entry in ratios["ops"].items())[:3]
    chains = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios["chains"].items())
    if ratios["chains_avx2"]:
        chains += "; with code for AVX2 "
        chains += ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios["chains_avx2"].items())
    slopes = sorted((value, op) for op, value in ratios["slopes"].items())
    threads = ratios["threads"]
    return (
        f"Fastest baseline / qpt, median over {len(ratios['ops'])} ops: {ratios['median_over_ops']:.1f}; the least: "
        + ", ".join(f"{op} {ratio:.2f}" for ratio, op in slowest)
        + f". Chains of 5, baseline / qpt: {chains}. From 1 to {threads['threads']} threads the chains gain "
        f"{threads['qpt']:.2f}x, matrix products in cache {threads['products']:.2f}x. Slope of log time over log "
        f"pixels of an image, {slopes[0][0]:.2f} ({slopes[0][1]}) to {slopes[-1][0]:.2f} ({slopes[-1][1]}), in batches "
        f"of equally many pixels; a call costs {ratios['call_us']:.0f} us whatever it does."
    )


def parameters_of(op: str, count: int) -> list[tuple[float, ...]]:
    """Return the parameters of ``count`` images: levels 1 to 5 in turn, drawn as the preset draws them."""
    chains = [[(op, 1 + i % LEVELS)] for i in range(count)]
    program = Program.from_chains(chains, seeds=range(count), source=range(count))
    return [tuple(values) for values in program.params[:, 0].tolist()]


def _case(
    op: str, baselines: list[Baseline], images: torch.Tensor, pool: ThreadPoolExecutor, threads: int, device: str
) -> Case:
    parameters = parameters_of(op, len(images))
    names = len(DEGRADATIONS[NAMES.index(op)].parameters)
    chains: Chains = [[(op, values[:names])] for values in parameters]
    contenders = [_ours(chains, images, threads, device)]
    contenders += [_theirs({op: baseline}, baseline.library, chains, images, pool, device) for baseline in baselines]

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        pixels, found = images.numpy(), {}
        for way in baselines:
            measure_name = "relative_size" if way.spread else "mean_levels"
            found[way.library] = {measure_name: compare(op, way, answers["qpt"], answers[way.library], pixels)}
        return found

    return Case(op, "x".join(map(str, images.shape)), len(images), contenders, agree)


def _ours(chains: Chains, images: torch.Tensor, threads: int, device: str) -> Contender:
    count, there = len(images), images.to(device)
    program = Program.from_chains([list(chain) for chain in chains], seeds=range(count), source=range(count))
    return Contender("qpt", lambda: degrade(there, program, threads=threads))


def _theirs(
    ways: dict[str, Baseline],
    library: str,
    chains: Chains,
    images: torch.Tensor,
    pool: ThreadPoolExecutor,
    device: str,
) -> Contender:
    note = "; ".join(dict.fromkeys(baseline.note for baseline in ways.values() if baseline.note))
    if any(baseline.batch for baseline in ways.values()):
        return Contender(library, _batched(ways, chains, images.to(device)), note)
    every_image = list(images.numpy())

    def one(job: tuple[Pixels, list[tuple[str, tuple[float, ...]]]]) -> Pixels:
        image, chain = job
        for op, values in chain:
            image = ways[op].call(image, values)
        return image

    return Contender(library, lambda: np.stack(list(pool.map(one, zip(every_image, chains, strict=True)))), note)


def _batched(ways: dict[str, Baseline], chains: Chains, images: torch.Tensor) -> Callable[[], np.ndarray]:
    """Return a call that goes through the positions of the chains, images with the same op there as one batch."""
    pixels = images.permute(0, 3, 1, 2).float().div_(255).contiguous()
    steps = []
    for position in range(max(map(len, chains))):
        for op in ways:
            mine = [i for i, chain in enumerate(chains) if position < len(chain) and chain[position][0] == op]
            if mine:
                values = torch.tensor([chains[i][position][1] for i in mine], device=images.device)
                steps.append((ways[op].call, torch.tensor(mine, device=images.device), values))

    @torch.no_grad()
    def call() -> torch.Tensor:
        out = pixels
        for way, mine, values in steps:
            if len(mine) == len(out):
                out = way(out, values)
            else:
                out = out.clone() if out is pixels else out
                out[mine] = way(out[mine], values)
        return out

    return call


def _levels(answer: Any) -> np.ndarray:
    """Convert an answer to float64 grey levels [n, H, W, 3]; a float tensor is of channels first."""
    if isinstance(answer, torch.Tensor):
        floats = answer.is_floating_point()
        answer = (answer.mul(255).clamp(0, 255).permute(0, 2, 3, 1) if floats else answer).cpu().numpy()
    return np.asarray(answer, np.float64)


def compare(op: str, baseline: Baseline, ours: Any, theirs: Any, images: np.ndarray) -> float:
    """Return the difference of two results; raises Disagreement if it is larger than the baseline is allowed."""
    first, second = _levels(ours), _levels(theirs)
    if baseline.spread:  # away from black and white, where clipping shortens a change
        middle = (images > 100) & (images < 155)
        sizes = [float(np.sqrt(np.mean((result - images)[middle] ** 2))) for result in (first, second)]
        difference = abs(sizes[0] / sizes[1] - 1)
    else:
        difference = float(np.abs(first - second).mean())
    if not difference <= baseline.allowed:
        raise Disagreement(
            f"degrade: {op}: {baseline.library}'s result differs by {difference:.3g}, allowed {baseline.allowed:g}"
        )
    return difference


def draw_chains(count: int, seed: int = 0) -> Chains:
    """Draw ``count`` chains of five different ops of CHAIN_OPS, in any order, parameters uniform in their ranges."""
    generator = np.random.default_rng(seed)
    chains: Chains = []
    for _ in range(count):
        chain = []
        for place in generator.permutation(len(CHAIN_OPS))[:CHAIN]:
            op = list(CHAIN_OPS)[place]
            ranges = CHAIN_OPS[op]
            if op == "colour":
                op = str(generator.choice(list(COLOURS)))
                ranges = (COLOURS[op],)
            values = tuple(float(np.float32(generator.uniform(*bounds))) for bounds in ranges)
            chain.append((op, tuple(map(round, values)) if op in ("jpeg", "median_blur") else values))
        chains.append(chain)
    return chains


def _chain_case(
    baselines: dict[str, list[Baseline]],
    images: torch.Tensor,
    pool: ThreadPoolExecutor,
    threads: int,
    device: str,
    narrower: bool,
) -> Case:
    chains = draw_chains(len(images))
    used = [op for op in (*CHAIN_OPS, *COLOURS) if op != "colour"]
    # A library takes part if it has all of the ops; the last of its ways to do one (the one meant for speed) is taken.
    of_library: dict[str, dict[str, Baseline]] = {}
    for op in used:
        for baseline in baselines.get(op, []):
            of_library.setdefault(baseline.library, {})[op] = baseline
    complete = {library: ways for library, ways in of_library.items() if len(ways) == len(used)}
    quiet = [i for i, chain in enumerate(chains) if all(op != "gaussian_noise" for op, _ in chain)]

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        found = {}
        for library in complete:
            difference = float(np.abs(_levels(answers["qpt"])[quiet] - _levels(answers[library])[quiet]).mean())
            if not difference <= CHAIN_ALLOWED:
                raise Disagreement(f"degrade: chains: {library} differs by {difference:.3g}, allowed {CHAIN_ALLOWED}")
            found[library] = {"mean_levels": difference}
        if any(not torch.equal(answers["qpt"], answers[level.backend]) for level in levels):
            raise Disagreement("degrade: chains: code for another instruction set gives other bytes")
        return found

    ours = _ours(chains, images, threads, device)
    levels = degrade_levels.contenders(ours.call) if narrower and device == "cpu" else []
    theirs = [_theirs(ways, library, chains, images, pool, device) for library, ways in complete.items()]
    contenders = [ours, *levels, *theirs]
    return Case(CHAIN_OP, "x".join(map(str, images.shape)), len(images), contenders, agree)


def _preset_case(images: torch.Tensor, threads: int) -> Case:
    program = DegradationSpace.preset("qpt").sample(len(images), generator=torch.Generator().manual_seed(0))
    return Case(
        op="random chains of the preset qpt",
        shape="x".join(map(str, images.shape)),
        items=len(images),
        contenders=[Contender("qpt", lambda: degrade(images, program, threads=threads), "0 to 5 ops an image")],
        agree=lambda answers: {},
    )


def _patches(count: int, side: int, size: int, threads: int, device: str) -> Case:
    """Return the case of pairs of patches, as in pre-training: chains on windows, and on whole images cropped after."""
    images = sample_crops(count, side).to(device)
    program = DegradationSpace.preset("qpt").sample(count, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    boxes = torch.tensor([draw_pair(rng, size, side, 0.1, 0.3) for _ in range(count)], dtype=torch.int32)
    # Tensors all: CUDA divides by a Python number by way of its reciprocal.
    mean, std, white = (torch.tensor(x, device=device) for x in (IMAGENET_MEAN, IMAGENET_STD, 255.0))

    def crop_whole_images() -> torch.Tensor:
        rows = degrade(images, program, threads=threads)
        corners = [(row, *corner) for row, pair in zip(rows, boxes.tolist(), strict=True) for corner in pair]
        crops = torch.stack([row[top : top + size, left : left + size] for row, top, left in corners])
        normalised = crops.float().div_(white).sub_(mean).div_(std)
        return normalised.permute(0, 3, 1, 2).unflatten(0, (count, 2))

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        if not torch.equal(answers["qpt"], answers["whole, then crop"]):
            raise Disagreement("degrade: patches of windows differ from those of whole images")
        return {"whole, then crop": {"mean_levels": 0.0}}

    share = pixel_share(program, boxes, size, side)
    return Case(
        op=f"two {size} px patches of random chains of the preset qpt",
        shape="x".join(map(str, images.shape)),
        items=count,
        contenders=[
            Contender(
                "qpt",
                lambda: degrade_patches(images, program, boxes, size, threads=threads),
                f"ops see {share:.0%} of the pixels of whole images",
            ),
            Contender("whole, then crop", crop_whole_images),
        ],
        agree=agree,
    )


def pixel_share(program: Program, boxes: torch.Tensor, size: int, side: int) -> float:
    """Return the share of the pixels of side x side images that the ops of a program compute for these patches."""
    windows = row_windows(program, boxes, size, side, side)
    used, slot = program.ops >= 0, torch.arange(program.ops.shape[1])
    area = (windows[:, 3] * windows[:, 4]).double() / side**2
    return float((torch.where(slot < windows[:, :1], 1.0, area[:, None]) * used).sum() / used.sum())


def _median_seconds(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Return the median seconds of each call, in interleaved rounds, after one call that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if turn:
                times[place].append(time.perf_counter() - started)
    return [statistics.median(each) for each in times]


def _scaling(images: torch.Tensor, threads: int, settings: Settings) -> dict[str, float]:
    """Return the speed-up from one thread to ``threads`` of the chains, and of matrix products in cache."""
    chains = draw_chains(len(images))
    program = Program.from_chains(chains, seeds=range(len(images)), source=range(len(images)))
    square = np.full((96, 96), 0.5, np.float32)
    outputs = [np.empty_like(square) for _ in range(threads)]
    times = 200 if settings.quick else 4000

    def products(place: int, count: int) -> None:
        for _ in range(count):
            np.dot(square, square, out=outputs[place])

    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1):
        one, all_of_them, alone, together = _median_seconds(
            [
                lambda: degrade(images, program, threads=1),
                lambda: degrade(images, program, threads=threads),
                lambda: products(0, times),
                lambda: list(pool.map(products, range(threads), [times // threads] * threads)),
            ],
            settings.rounds,
        )
    return {"threads": threads, "qpt": one / all_of_them, "products": alone / together}


def _slopes(settings: Settings) -> dict[str, float]:
    """Return, by op, the least-squares slope of log time of an image over log pixels, at level 3, one thread."""
    # Calls of all sides have equally many pixels, so that the cost of a call weighs the same in each.
    sides = SIDES[:2] if settings.quick else SIDES
    batches = [sample_crops((sides[-1] // side) ** 2, side) for side in sides]
    found = {}
    for row in DEGRADATIONS:
        calls = []
        for images in batches:
            count = len(images)
            program = Program.from_chains([[(row.name, 3)]] * count, seeds=[0] * count, source=range(count))
            calls.append(lambda images=images, program=program: degrade(images, program, threads=1))
        seconds = np.array(_median_seconds(calls, 1 if settings.quick else 3)) / [len(images) for images in batches]
        pixels = np.log(np.square(np.array(sides, np.float64)))
        found[row.name] = float(np.polyfit(pixels, np.log(seconds), 1)[0])
    return found


def _call_us() -> float:
    """Return the microseconds of a call on an image of 1 x 1: checks, allocation, the engine's entry."""
    image, program = torch.zeros((1, 1, 1, 3), dtype=torch.uint8), Program.from_chains([[("posterise", 3)]], seeds=[0])
    return 1e6 * _median_seconds([lambda: degrade(image, program, threads=1)], 1000)[0]
