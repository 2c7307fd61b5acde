"""The table of speeds in the README: qpt beside what one would use without it. Called by ``docs/results.py``."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import table

Content = dict[str, Any]
POOL = "own keys and pool, forward + gradient"
SIZE = "N=256 K=65536 D=128"
LIBRARIES = {  # of single ops: backend -> how it is written
    "opencv": "OpenCV",
    "pillow": "Pillow",
    "albumentations": "albumentations",
    "variopinta": "variopinta",
    "kornia": "Kornia",
    "kornia compiled": "Kornia under `torch.compile`",
    "numpy": "NumPy",
}


def markdown(load: Callable[[str], Content]) -> str:
    """Return a line about the machine, and the table.  load: reads a record of benchmarks/results by name."""
    degrade, contrastive, loader, step = (load(name) for name in ("degrade", "contrastive", "loader", "step"))
    ratios = sorted(op["ratio"] for op in degrade["figures"]["ops"].values())
    median = degrade["figures"]["median_over_ops"]
    beside = {row["backend"] for row in degrade["rows"]}
    names = [name for backend, name in LIBRARIES.items() if backend in beside]
    lines = [
        [
            f"one op, 32 photographs of 256² ({len(ratios)} ops with a baseline)",
            "",
            f"the fastest of {_listed(names)}",
            f"{median:.1f}× at the median, {ratios[0]:.2f}× to {ratios[-1]:.0f}×",
        ],
    ]
    chains = _figures(degrade, "chains of 5 different ops", "")
    for baseline, name in (("opencv", "OpenCV"), ("kornia", "Kornia")):
        beside = f"{name}: {chains[baseline]:.0f} ms"
        ratio = f"{chains[baseline] / chains['qpt']:.1f}×"
        lines.append(["chains of five ops, the same photographs", f"{chains['qpt']:.0f} ms", beside, ratio])
    times, peaks = _figures(contrastive, POOL, SIZE), _figures(contrastive, POOL, SIZE, "peak_mib")
    for baseline, name in (("full logits", "full logits"), ("full logits compiled", "full logits, `torch.compile`")):
        peak = f", {peaks[baseline]:.0f} MiB" if baseline in peaks else ""
        lines.append(
            [
                "loss and gradient, 256 queries against a pool of 65,536",
                f"{times['qpt']:.0f} ms, {peaks['qpt']:.0f} MiB",
                f"{name}: {times[baseline]:.0f} ms{peak}",
                f"{times[baseline] / times['qpt']:.1f}×",
            ]
        )
    loads = _figures(loader, "load", "2 loader processes", "items_per_s")
    for baseline, name in (
        ("torch DataLoader", "`DataLoader` over Pillow"),
        ("decoding alone", "Pillow, decoding alone"),
    ):
        lines.append(
            [
                "loader, 2 processes, 320 px of ImageNet photographs",
                f"{loads['qpt']:.0f} a second",
                f"{name}: {loads[baseline]:.0f}",
                f"{loads['qpt'] / loads[baseline]:.2f}×",
            ]
        )
    share = step["figures"]["both"]
    lines.append(["degradations and loss in a ResNet-18 step", f"{share:.1%} of the step", "", ""])
    where = degrade["environment"]
    machine = f"{where['machine']['cpu']}, {where['threads']} threads, no GPU, {where['time'][:10]}"
    sets = instructions((degrade, contrastive, loader, step))
    return f"{machine}; medians.{sets}\n\n" + table(["what", "qpt", "baseline", "ratio"], lines)


def instructions(records: Sequence[Content]) -> str:
    """Return a sentence, after a space, about the instruction sets that records were made with; "" if none says so.

    Where they differ, or one was made before records named them, the sentence says which is of which.
    """
    names: dict[str, list[str]] = {}
    for record in records:
        found = record["environment"]["machine"].get("instructions")
        names.setdefault("not recorded" if found is None else ", ".join(found) or "none", []).append(record["name"])
    if set(names) == {"not recorded"}:
        return ""
    shown = list(names) if len(names) == 1 else [f"{sets} ({', '.join(of)})" for sets, of in names.items()]
    return f" Instruction sets: {'; '.join(shown)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]])


def _figures(content: Content, op: str, shape: str, field: str = "median_ms") -> dict[str, float]:
    """Return, by backend, a figure of the rows of one op and shape ("": any)."""
    rows: Sequence[dict[str, Any]] = content["rows"]
    chosen = [row for row in rows if row["op"] == op and shape in ("", row["shape"]) and row[field] is not None]
    if not chosen:
        raise ValueError(f"{content['name']}.json: must have rows of {op!r}, {shape!r}, got none")
    return {row["backend"]: row[field] for row in chosen}
