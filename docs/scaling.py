"""Write docs/scaling.md from benchmarks/results/scaling.json: ``python docs/scaling.py``.

The text is ``render()``, which tests/test_measured_pages.py compares with the committed page. The model is
benchmarks/scaling.py; ``python -m benchmarks scaling`` writes the JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is a folder of the checkout

from benchmarks import scaling
from benchmarks.harness import RESULTS, table

PAGE = Path(__file__).parent / "scaling.md"

TEXT = """\
# Scaling

What a step of pre-training costs, stage by stage, and what that makes of 1, 8 and 64 GPUs. **No GPU was at hand**:
decoding was measured, the rest is predicted from published figures, and [the last section](#not-measured) says what
is missing. Written by `python docs/scaling.py` from `benchmarks/results/scaling.json` (`python -m benchmarks
scaling`).

The run: ResNet-50, mode moco, {compositions} compositions of every photograph, two patches of {patch} px, mixed
precision, a pool of {pool:,} keys on every GPU, {photographs} photographs a step and GPU ({rows} pairs), no
gradient caching, synchronised batch norm; on {gpu}.

## The model

    step = max(copy, degrade + encode + loss + communicate)
    photographs per second = GPUs x min(photographs a step / step, cores per GPU x decoded per core and second)

Decoding runs in loader processes and the copy on a stream of its own, one batch ahead of the step; the rest is one
after another, as the engine has it. Milliseconds of a step:

{stages}

- **copy**: {region_kb:.0f} kB a region, at what of PCI Express is reached.
- **degrade**: the CUDA kernel as predicted from its counted instructions (`roofline_degrade.json`), whole regions
  of {region} px.
- **encode**: the published rate of ResNet-50 at 224 px, by multiplications ({share:.1%} of them at {patch} px), for
  a query forward and backward and a key forward: four forward passes a pair. Gradient caching makes it five:
  {caching:.0f} ms.
- **loss**: the predicted fused kernel (`roofline_loss.json`), by pairs of query and key; keys come from all GPUs.
- **communicate**: one message of the {parameters:.1f} M gradients after the backward pass, the gathered keys, and
  three small messages for each of {norms} batch norms.

## Decoding, measured

{machine}, one thread, {decoder}, processor time:

{decoding}

## Predicted

An epoch is one pass over the photographs. *needed* is how many cores of that machine a GPU would keep busy; a node
is taken to have {cores:.0f} a GPU.

{predicted}

What saturates first: {saturates}

- **Gradient caching** costs one more query forward: {slower:.0%} fewer photographs a second where GPUs are the
  limit.
- **More GPUs**: of a step on 64 GPUs, {communication:.0%} is communication. The published strong scaling of the
  same network is {strong:.2f} on 8 GPUs, which this model puts at {weak:.2f} at a fixed batch per GPU: it is the
  optimist.

## Figures used

| published | value | source |
|---|---:|---|
{published}

| assumed | value | |
|---|---:|---|
{assumed}

## Not measured

{missing}
"""


def render(result: dict[str, Any]) -> str:
    """Return the page.  result: content of scaling.json."""
    rows, predictions = result["rows"], result["predictions"]
    facts = scaling.counted()
    stages = {line["gpus"]: {name: line[f"{name}_ms"] for name in scaling.STAGES} for line in predictions}
    cached = predictions[0]["encode_with_caching_ms"]
    one = stages[1]
    busy = {gpus: sum(parts.values()) - parts["copy"] for gpus, parts in stages.items()}
    return TEXT.format(
        gpu=scaling.GPU,
        compositions=scaling.COMPOSITIONS,
        patch=scaling.PATCH,
        pool=scaling.POOL,
        photographs=scaling.IMAGES,
        rows=scaling.IMAGES * scaling.COMPOSITIONS,
        region=scaling.REGION,
        region_kb=scaling.REGION**2 * 3 / 1e3,
        share=facts["patch_share"],
        parameters=facts["parameters"] / 1e6,
        norms=facts["norms"],
        caching=cached,
        slower=1 - busy[1] / (busy[1] - one["encode"] + cached),
        communication=stages[64]["communicate"] / busy[64],
        strong=scaling.PUBLISHED["the same on 8 GPUs"].value
        / scaling.PUBLISHED["ResNet-50 training, 224 px, mixed precision"].value,
        weak=8 * busy[1] / busy[8],
        cores=scaling.PUBLISHED["processor cores of a node of 8"].value / 8,
        machine=f"{result['environment']['machine']['cpu']}, {result['environment']['time'][:10]}",
        decoder=_decoder(result["environment"]["versions"]),
        stages=_table(
            ["GPUs", *one, "step"],
            [[str(n), *(f"{ms:.2f}" for ms in parts.values()), f"{busy[n]:.0f}"] for n, parts in stages.items()],
        ),
        decoding=_table(
            ["photograph", "file", "ms, all of it", "ms, a region of 320 px", "regions/s"],
            [
                _decoded(whole, region)
                for whole, region in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
            ],
        ),
        predicted=_table(
            ["GPUs", "photograph", "photographs/s", "GPUs allow", "decoding allows", "needed", "limit"]
            + [f"epoch of {name}" for name in scaling.SETS],
            [_prediction(line) for line in predictions],
        ),
        saturates=_saturates(predictions),
        published=_figures(scaling.PUBLISHED),
        assumed=_figures(scaling.ASSUMED),
        missing="\n".join(f"- {sentence}" for sentence in result["remarks"]),
    )


def _decoded(whole: dict[str, Any], region: dict[str, Any]) -> list[str]:
    file = whole["note"].split("; ")[1]
    times = (f"{row['median_ms']:.2f}" for row in (whole, region))
    return [whole["shape"], file, *times, f"{region['items_per_s']:.0f}"]


def _decoder(versions: dict[str, str]) -> str:
    """Return the decoders of the run: those of simplejpeg and nvImageCodec, if it had them, and Pillow."""
    return ", ".join(
        f"{name} {versions[name]}" for name in ("simplejpeg", "nvidia-nvimgcodec-cu13", "pillow") if name in versions
    )


def _prediction(line: dict[str, Any]) -> list[str]:
    rates = ("images_per_s", "gpu_limit_images_per_s", "decode_limit_images_per_s", "cores_per_gpu_needed")
    hours = (line[f"hours_per_epoch, {name}"] for name in scaling.SETS)
    times = (f"{value:.1f} h" if value >= 1 else f"{value * 60:.1f} min" for value in hours)
    return [str(line["gpus"]), line["image_size"], *(f"{line[name]:,}" for name in rates), _limit(line), *times]


def _limit(line: dict[str, Any]) -> str:
    return "decoding" if line["first_to_saturate"] == "decode" else f"GPU ({line['first_to_saturate']})"


def _saturates(predictions: list[dict[str, Any]]) -> str:
    sizes = dict.fromkeys(line["image_size"] for line in predictions)
    words = []
    for size in sizes:
        limits = dict.fromkeys(_limit(line) for line in predictions if line["image_size"] == size)
        words.append(f"{' or '.join(limits)} with photographs of {size}")
    return "; ".join(words) + "."


def _figures(figures: dict[str, scaling.Figure]) -> str:
    return "\n".join(
        f"| {name} | {figure.value:g} {figure.unit} | {figure.source} |" for name, figure in figures.items()
    )


def _table(header: list[str], lines: list[list[str]]) -> str:
    return table(header, lines, first=":---", others="---:")


if __name__ == "__main__":
    PAGE.write_text(render(json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))), encoding="utf-8")
