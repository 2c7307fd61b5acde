"""Figures and verdicts of the study: medians over seeds, paired differences, and the Markdown that shows them.

Called by ``benchmarks.study`` and ``benchmarks.tables`` with the content of ``results/study.json``.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import table

REGIMES = {"all": "all labels", "few": "few labels"}
LEAST_SEEDS = 3
NOTHING = "no difference seen"


@dataclass(frozen=True)
class Difference:
    """An arm minus the one it is compared with. by_seed: difference of each seed that both have, in order of seeds.
    spread: of the two arms, the wider range (largest minus smallest) over these seeds."""

    by_seed: tuple[float, ...]
    spread: float

    @property
    def median(self) -> float:
        return statistics.median(self.by_seed)

    @property
    def verdict(self) -> str:
        """A finding needs one sign in all seeds, at least LEAST_SEEDS, and a median beyond the spread over seeds."""
        if len(self.by_seed) < LEAST_SEEDS:
            return f"needs {LEAST_SEEDS} seeds"
        one_sign = all(value > 0 for value in self.by_seed) or all(value < 0 for value in self.by_seed)
        if not one_sign or abs(self.median) <= self.spread:
            return NOTHING
        return "better" if self.median > 0 else "worse"


def score(row: Mapping[str, Any], table: str, regime: str, read_out: str | None = None) -> float:
    """SRCC of a row, median over splits; undefined ones (constant predictions) count as 0. read_out: one by itself, or
    None for the one chosen inside each training part."""
    found = row["tables"][table]["regimes"][regime]
    values = found["srcc"] if read_out is None else found["srcc_of_read_out"][read_out]
    return statistics.median(0.0 if value is None else value for value in values)


def scores(
    content: Mapping[str, Any], arm: str, table: str, regime: str, read_out: str | None = None
) -> dict[int, float]:
    """Seed -> SRCC of an arm, of the seeds that have the table."""
    rows = [row for row in content["rows"] if row["arm"] == arm and table in row["tables"]]
    return {row["seed"]: score(row, table, regime, read_out) for row in sorted(rows, key=lambda row: row["seed"])}


def difference(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Paired on the seed, which draws initial weights, order of data and degradations. None if they share none."""
    seeds = [seed for seed in mine if seed in other]
    if not seeds:
        return None
    ranges = [max(arm[seed] for seed in seeds) - min(arm[seed] for seed in seeds) for arm in (mine, other)]
    return Difference(tuple(mine[seed] - other[seed] for seed in seeds), max(ranges))


def table_names(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in content["rows"] for name in row["tables"]))


def arm_names(content: Mapping[str, Any]) -> list[str]:
    """Arms that have rows, in the order of the recipe."""
    present = {row["arm"] for row in content["rows"]}
    return [arm for arm in content["arms"] if arm in present]


def best_arm(content: Mapping[str, Any]) -> str:
    """The pre-trained arm with the highest mean, over tables and regimes, of its median SRCC over seeds; ties go to
    the first. Runs of other lengths do not compete. ValueError if there is none."""
    means = {}
    for arm in arm_names(content):
        about = content["arms"][arm]
        if about["kind"] == "pretrained" and about["steps"] == content["base"]["steps"]:
            cells = [scores(content, arm, table, regime) for table in table_names(content) for regime in REGIMES]
            means[arm] = statistics.mean(statistics.median(cell.values()) for cell in cells)
    if not means:
        raise ValueError("study: no pre-trained arm is finished")
    return max(means, key=lambda arm: means[arm])


def opponents(content: Mapping[str, Any], arm: str) -> list[str]:
    """What an arm is compared with: the one it names, and the initial weights of its network; of those with rows."""
    about = content["arms"][arm]
    initial = [
        name
        for name, other in content["arms"].items()
        if other["kind"] == "untrained" and other["settings"].get("width") == about["settings"].get("width")
    ]
    named = dict.fromkeys([about["against"], *initial])
    return [name for name in named if name != arm and name in arm_names(content)]


def markdown(content: Mapping[str, Any]) -> str:
    """Three tables: SRCC of every arm; differences with their verdicts; and SRCC by read-out."""
    columns = [(table, regime) for table in table_names(content) for regime in REGIMES]
    heads = [f"{table}, {REGIMES[regime]}" for table, regime in columns]
    score_lines, difference_lines, read_out_lines = [], [], []
    for arm in arm_names(content):
        about = content["arms"][arm]
        rows = [row for row in content["rows"] if row["arm"] == arm]
        minutes = statistics.median(row["seconds"] for row in rows) / 60
        cells = [_spread(scores(content, arm, *column)) for column in columns]
        score_lines.append([arm, about["about"], str(len(rows)), str(rows[0]["steps"]), f"{minutes:.1f}", *cells])
        for other in opponents(content, arm):
            pairs = [difference(scores(content, arm, *column), scores(content, other, *column)) for column in columns]
            if any(pairs):
                difference_lines.append([f"{arm} − {other}", *map(_difference, pairs)])
        for read_out in next(iter(rows[0]["tables"].values()))["regimes"]["all"]["srcc_of_read_out"]:
            cells = [_spread(scores(content, arm, *column, read_out)) for column in columns]
            read_out_lines.append([arm, read_out, *cells])
    parts = [
        "SRCC, median over seeds (range over seeds); minutes of pre-training on one thread:",
        table(["arm", "what", "seeds", "steps", "minutes", *heads], score_lines),
        "Differences, median over seeds [each seed] and verdict:",
        table(["difference", *heads], difference_lines),
        "SRCC with one read-out throughout, median over seeds (range over seeds):",
        table(["arm", "read-out", *heads], read_out_lines),
    ]
    return "\n\n".join(parts)


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values.values()):.3f} ({max(values.values()) - min(values.values()):.3f})"


def _difference(pair: Difference | None) -> str:
    if pair is None:
        return ""
    return f"{pair.median:+.3f} [{', '.join(f'{value:+.3f}' for value in pair.by_seed)}] {pair.verdict}"
