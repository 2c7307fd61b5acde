"""Figures and verdicts of the study: medians over seeds, paired differences, and their Markdown.

Called by ``experiments.study`` and ``docs/results.py`` with the content of ``results/study.json``.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import table
from experiments.recipe import ONE_SEED

REGIMES = {"all": "all labels", "few": "few labels"}
LEAST_SEEDS = 3
NOTHING = "no difference seen"


@dataclass(frozen=True)
class Difference:
    """An arm minus the one it is compared with.  by_seed: difference of each seed that both have, in order of seeds.
    spread: the wider of the two arms' ranges (largest minus smallest) over these seeds."""

    by_seed: tuple[float, ...]
    spread: float

    @property
    def median(self) -> float:
        return statistics.median(self.by_seed)

    @property
    def verdict(self) -> str:
        """A finding needs LEAST_SEEDS seeds, one sign in all of them, and a median beyond the spread over seeds."""
        if len(self.by_seed) < LEAST_SEEDS:
            return f"needs {LEAST_SEEDS} seeds"
        one_sign = all(value > 0 for value in self.by_seed) or all(value < 0 for value in self.by_seed)
        if not one_sign or abs(self.median) <= self.spread:
            return NOTHING
        return "better" if self.median > 0 else "worse"


def scores(content: Mapping[str, Any], arm: str, table: str, regime: str, metric: str = "srcc") -> dict[int, float]:
    """Return seed -> SRCC, or another metric (median over splits), of an arm, for the seeds that have the table."""
    rows = [row for row in content["rows"] if row["arm"] == arm and table in row["tables"]]
    return {row["seed"]: row["tables"][table][metric][regime] for row in sorted(rows, key=lambda row: row["seed"])}


def difference(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Pair two arms on the seed, which draws weights, order of data and degradations; None if they share none."""
    seeds = [seed for seed in mine if seed in other]
    if not seeds:
        return None
    ranges = [max(arm[seed] for seed in seeds) - min(arm[seed] for seed in seeds) for arm in (mine, other)]
    return Difference(tuple(mine[seed] - other[seed] for seed in seeds), max(ranges))


def table_names(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in content["rows"] for name in row["tables"]))


def columns_of(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every pair of table and regime."""
    return [(name, regime) for name in table_names(content) for regime in REGIMES]


def arm_names(content: Mapping[str, Any]) -> list[str]:
    """Return the arms that have rows, in the order of the recipe."""
    present = {row["arm"] for row in content["rows"]}
    return [arm for arm in content["arms"] if arm in present]


def best_arm(content: Mapping[str, Any]) -> str:
    """Return the pre-trained arm with the highest mean, over tables and regimes, of its median SRCC over seeds.

    Arms of another number of steps than the base are left out; ties go to the first. ValueError if there is none.
    """
    means = {}
    for arm in arm_names(content):
        about = content["arms"][arm]
        if about["kind"] == "pretrained" and about["steps"] == content["base"]["steps"]:
            cells = [scores(content, arm, *column) for column in columns_of(content)]
            means[arm] = statistics.mean(statistics.median(cell.values()) for cell in cells)
    if not means:
        raise ValueError("study: no pre-trained arm is finished")
    return max(means, key=lambda arm: means[arm])


def opponents(content: Mapping[str, Any], arm: str) -> list[str]:
    """Return what an arm is compared with, if it has rows: the arm it names, and its network's initial weights."""
    about = content["arms"][arm]
    initial = [
        name
        for name, other in content["arms"].items()
        if other["kind"] == "untrained" and other["settings"].get("width") == about["settings"].get("width")
    ]
    named = dict.fromkeys([about["against"], *initial])
    return [name for name in named if name != arm and name in arm_names(content)]


def differences(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, Difference]]:
    """Yield (arm, opponent, table, regime, difference) of every comparison."""
    for arm in arm_names(content):
        for other in opponents(content, arm):
            for column in columns_of(content):
                mine, theirs = scores(content, arm, *column), scores(content, other, *column)
                if content["arms"][other]["kind"] in ONE_SEED and theirs:
                    theirs = dict.fromkeys(mine, next(iter(theirs.values())))
                pair = difference(mine, theirs)
                if pair is not None:
                    yield arm, other, *column, pair


def means(content: Mapping[str, Any], metric: str = "srcc") -> str:
    """Return a table of the arms: the mean over seeds [smallest, largest] of the median over splits."""
    columns = columns_of(content)
    header = ["features", *(f"{name}, {REGIMES[regime]}" for name, regime in columns)]
    lines = []
    for arm in arm_names(content):
        cells = [list(scores(content, arm, *column, metric).values()) for column in columns]
        seeds = max(map(len, cells))
        label = content["arms"][arm]["about"] + (f" ({seeds} seeds)" if seeds > 1 else "")
        lines.append([label, *map(_mean, cells)])
    return table(header, lines, others="---:")


def distances(content: Mapping[str, Any]) -> str:
    """Return a table of the arms with an encoder: SRCC of minus the distance to clean images, as ``means`` has it."""
    names = table_names(content)
    shrinkages = sorted({s for row in content["rows"] for t in row["tables"].values() for s in t["clean_distance"]})[
        ::-1
    ]
    header = ["features", *(f"{name}, shrinkage {shrinkage}" for name in names for shrinkage in shrinkages)]
    lines = []
    for arm in arm_names(content):
        rows = [row["tables"] for row in content["rows"] if row["arm"] == arm]
        found = [
            [row[name]["clean_distance"][s] for row in rows if row[name]["clean_distance"]]
            for name in names
            for s in shrinkages
        ]
        if any(found):
            lines.append([content["arms"][arm]["about"], *map(_mean, found)])
    return table(header, lines, others="---:")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def findings(content: Mapping[str, Any]) -> str:
    """Return the comparisons whose verdict is "better" or "worse" as a table."""
    lines = [
        [f"{arm} − {other}", f"{name}, {REGIMES[regime]}", _shown(pair)]
        for arm, other, name, regime, pair in differences(content)
        if pair.verdict in ("better", "worse")
    ]
    return table(["difference", "set", "SRCC, median over seeds [each seed]"], lines)


def markdown(content: Mapping[str, Any]) -> str:
    """Return two tables: SRCC of every arm, and every difference with its verdict."""
    columns = columns_of(content)
    heads = [f"{table}, {REGIMES[regime]}" for table, regime in columns]
    score_lines = []
    for arm in arm_names(content):
        rows = [row for row in content["rows"] if row["arm"] == arm]
        minutes = statistics.median(row["seconds"] for row in rows) / 60
        cells = [_spread(scores(content, arm, *column)) for column in columns]
        about = content["arms"][arm]["about"]
        score_lines.append([arm, about, str(len(rows)), str(rows[0]["steps"]), f"{minutes:.1f}", *cells])
    pairs: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for arm, other, name, regime, pair in differences(content):
        pairs.setdefault((arm, other), {})[name, regime] = _shown(pair)
    difference_lines = [
        [f"{arm} − {other}", *(cells.get(column, "") for column in columns)] for (arm, other), cells in pairs.items()
    ]
    parts = [
        "SRCC, median over seeds (range over seeds); minutes of pre-training on one thread:",
        table(["arm", "what", "seeds", "steps", "minutes", *heads], score_lines),
        "Differences, median over seeds [each seed] and verdict:",
        table(["difference", *heads], difference_lines),
    ]
    return "\n\n".join(parts)


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values.values()):.3f} ({max(values.values()) - min(values.values()):.3f})"


def _shown(pair: Difference) -> str:
    return f"{pair.median:+.3f} [{', '.join(f'{value:+.3f}' for value in pair.by_seed)}] {pair.verdict}"
