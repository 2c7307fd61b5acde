"""The sections of a report about the training of runs, from nothing but the records that they keep.

Called by ``qpt.report.build`` with what ``run_records`` read; ``curves`` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from qpt.io import shown
from qpt.report import curves
from qpt.report.page import Picture, Section
from qpt.report.run_records import RunRecord
from qpt.report.thumbnails import patches_in_a_row
from qpt.runs.files import DATA_BOUND
from qpt.runs.observations import KINDS, mean_similarity

UNREADABLE_MOST = 50  # files that a page lists
_TRAINING, _PAIRS, _SPEED, _SEEN = "Training", "Similarities of pairs", "Throughput", "What the run saw"
_NO_LOG = "Not shown: no run directory with a log.csv was given."


def training_sections(records: Sequence[RunRecord]) -> list[Section]:
    """Return curves, histograms of similarities, throughput, and the first batch."""
    return [*_curves(records), *_pairs(records), _throughput(records), *_seen(records)]


def last_values(run: RunRecord) -> dict[str, str]:
    """Return the last values of a run's log and observations, by name."""
    found = {}
    for column, name in (
        ("loss", "last loss"),
        ("positive_similarity", "last similarity of positives"),
        ("same_image_similarity", "last similarity of same-photograph negatives"),
        ("negative_similarity", "last similarity of all negatives"),
    ):
        if run.log.get(column):
            found[name] = f"{run.log[column][-1]:.3f}"
    if run.observations:
        last = list(run.observations.values())[-1]
        found["last alignment (lower is closer)"] = f"{last.alignment:.3f}"
        found["last uniformity (lower is more even)"] = f"{last.uniformity:.3f}"
    if run.log.get("images_per_s"):
        found["images a second, median"] = f"{median(run.log['images_per_s']):.3g}"
    return found


def _curves(records: Sequence[RunRecord]) -> list[Section]:
    logs = {run.name: run.log for run in records}
    if not any(logs.values()):
        return [Section(_TRAINING, _NO_LOG)]
    without = [run.name for run in records if not run.log]
    text = (
        "The loss falls as patches of one composition become more alike than the same photograph under another "
        "composition. Losses of runs with another batch, pool or temperature are not comparable."
        + (f" Without a log: {', '.join(without)}." if without else "")
    )
    pictures = [
        Picture(curves.training_loss(logs), "Loss. Thin: as logged; thick: moving average."),
        Picture(curves.over_steps(curves.columns(logs, "lr"), "learning rate", noisy=False), "Learning rate"),
        Picture(curves.training_similarity(logs), "Mean similarities, over a batch and the pool"),
    ]
    pictures += [
        Picture(curves.over_steps(_observed(records, name), name), caption)
        for name, caption in (
            ("alignment", "Alignment: mean squared distance of positives; lower is closer"),
            ("uniformity", "Uniformity: log mean Gaussian potential of queries; lower is more even"),
        )
        if any(run.observations for run in records)
    ]
    return [Section(_TRAINING, text, pictures=pictures, size="medium")]


def _observed(records: Sequence[RunRecord], name: str) -> Mapping[str, tuple[Sequence[float], Sequence[float]]]:
    return {
        run.name: (list(run.observations), [getattr(each, name) for each in run.observations.values()])
        for run in records
    }


def _pairs(records: Sequence[RunRecord]) -> list[Section]:
    observed = [run for run in records if run.observations]
    if not observed:
        why = "Not shown: it needs the measurements of a run (observe_every), and no run directory with any was given."
        return [Section(_PAIRS, why)]
    text = (
        "Cosine similarities of queries and keys of one batch. Positives are two patches of one composition; the "
        "negatives of the same photograph differ from them in nothing but the degradation. Where orange leaves blue, "
        "the encoder tells degradations apart; where it follows blue, it knows the photograph and not its quality."
    )
    pictures = []
    for run in observed:
        step, last = list(run.observations.items())[-1]
        means = ", ".join(
            f"{words} {round(mean_similarity(getattr(last, kind)), 2) + 0.0:.2f}"
            for kind, words in zip(KINDS, ("positives", "same photograph", "other photographs"), strict=True)
        )
        pictures += [
            Picture(
                curves.similarity_ridges(run.observations),
                f"{run.name}: over training, from the top; each curve has its own scale",
            ),
            Picture(
                curves.similarity_histogram(step, last),
                f"{run.name}: step {step:,}, {last.rows} queries; means: {means}",
            ),
        ]
    return [Section(_PAIRS, text, pictures=pictures, size="medium")]


def _throughput(records: Sequence[RunRecord]) -> Section:
    logs = {run.name: run.log for run in records}
    logged = {name: log for name, log in logs.items() if "images_per_s" in log}
    if not logged:
        return Section(_SPEED, _NO_LOG)
    pictures = [Picture(curves.over_steps(curves.columns(logs, "images_per_s"), "images a second"), "Images a second")]
    pictures += [Picture(curves.stage_shares(log), f"{name}: where the time goes") for name, log in logged.items()]
    text = " ".join(f"{name}: {_limit(log)}." for name, log in logged.items())
    alone = "_images_per_s"
    stages = dict.fromkeys(column for log in logged.values() for column in log if column.endswith(alone))
    rows = [[stage.removesuffix(alone), *(_rate(log.get(stage, ())) for log in logged.values())] for stage in stages]
    header = ["images a second of each stage alone, median", *logged] if rows else ()
    return Section(_SPEED, text, header=header, rows=rows, pictures=pictures, size="medium")


def _rate(rates: Sequence[float]) -> str:
    """Return the median of the measured rates; a stage that took no time is logged as 0."""
    measured = [rate for rate in rates if rate > 0]
    return f"{median(measured):.3g}" if measured else "–"


def _limit(log: Mapping[str, Sequence[float]]) -> str:
    """Return in words whether a run was data-bound or step-bound over its whole length."""
    # A row's share is of its own time; rows count equally many steps, so each weighs by the time of its steps.
    names = ("images_per_s", "load_share", "degrade_share")
    rows = [row for row in zip(*(log.get(name, ()) for name in names), strict=False) if row[0] > 0]
    if not rows:
        return "not measured"
    total = sum(1 / speed for speed, _, _ in rows)
    load, degrade = (sum(row[column] / row[0] for row in rows) / total for column in (1, 2))
    shares = f"{load:.0%} of the time waiting for photographs, {degrade:.0%} degrading, the rest in the step"
    return f"{'data-bound' if load >= DATA_BOUND else 'step-bound'}: {shares}"


def _seen(records: Sequence[RunRecord]) -> list[Section]:
    kept = [(run, run.seen) for run in records if run.seen is not None]
    if not kept:
        return [Section(_SEEN, "Not shown: no run directory that kept its first batch (seen.npz) was given.")]
    text = (
        "Patches of the first batch as the encoder got them, pixel for pixel. The two patches of a picture are a "
        "positive pair: one composition, two places. Pictures of the same photograph are each other's negatives."
    )
    sections = [Section(_SEEN, text)]
    for run, seen in kept:
        pictures = []
        counts: dict[int, int] = {}
        for patches, photograph, chain in zip(seen.patches, seen.image_numbers.tolist(), seen.chains, strict=True):
            counts[photograph] = counts.get(photograph, 0) + 1
            view = chr(ord("A") + (counts[photograph] - 1) % 26)
            pictures.append(Picture(patches_in_a_row(patches), f"Photograph {photograph + 1}, {view}: {chain}"))
        sections.append(Section(run.name, pictures=pictures, size="quarter", part=True))
    return sections


def record_section(records: Sequence[RunRecord]) -> list[Section]:
    """Return the starts of each run with their versions, and the records and images that could not be read."""
    sections = [Section("Record", "" if any(run.history for run in records) else "Starts were not recorded.")]
    for run in records:
        if run.history:
            sections.append(_starts(run))
        if run.faults:
            sections.append(Section(f"{run.name}: damaged records", "; ".join(run.faults) + ".", part=True))
        sections += _unreadable(run)
    return sections


def _starts(run: RunRecord) -> Section:
    rows = [
        [
            ("resumed" if number else "started") + f" after step {entry['step']:,}",
            *(str(entry.get(key, "–")) for key in ("time", "qpt", "torch", "python", "device", "threads")),
        ]
        for number, entry in enumerate(run.history)
    ]
    header = ["", "time (UTC)", "qpt", "torch", "Python", "device", "threads"]
    return Section(f"{run.name}: starts", header=header, rows=rows, part=True, words=True)


def _unreadable(run: RunRecord) -> list[Section]:
    """Return the unreadable files by name where a finished run's summary has them, else their number."""
    title = f"{run.name}: unreadable files"
    listed = run.summary.get("unreadable")
    if isinstance(listed, list) and all(isinstance(each, dict) for each in listed):
        if not listed:
            return []
        rows = [[shown(str(each.get("file"))), str(each.get("reason"))] for each in listed[:UNREADABLE_MOST]]
        text = _skipped(len(listed)) + (f" The first {len(rows)}:" if len(rows) < len(listed) else "")
        return [Section(title, text, header=["file", "why"], rows=rows, part=True, words=True)]
    count = len(run.checkpoint.get("unreadable", ()))
    return [Section(title, _skipped(count), part=True)] if count else []


def _skipped(count: int) -> str:
    return "1 file was skipped." if count == 1 else f"{count} files were skipped."
