"""Tables of the record of the shipped score, for README.md, docs/results.md and docs/model-card.md."""

from collections.abc import Mapping
from typing import Any

ROWS = {
    "qpt": "the score that comes with qpt",
    "brisque": "BRISQUE (the PyPI package, trained on human scores of LIVE)",
    "niqe": "NIQE (fitted on the photographs that ours was learnt from)",
    "contrast": "contrast",
}
_WEAK = 0.5  # an op whose level the score follows less is named


def without_labels(record: Mapping[str, Any]) -> str:
    """Return SRCC of each score with the whole of each table."""
    tables = record["tables"]
    lines = ["| score | " + " | ".join(table["name"] for table in tables) + " |"]
    lines.append("| --- |" + " ---: |" * len(tables))
    for name, words in ROWS.items():
        lines.append(f"| {words} | " + " | ".join(f"{table['without_labels'][name]:.3f}" for table in tables) + " |")
    again = record.get("again", [])
    if again:
        seeds = ", ".join(str(one["seed"]) for one in again)
        cells = []
        for table in tables:
            found = [one["without_labels"][table["name"]] for one in again]
            cells.append(f"{min(found):.3f} to {max(found):.3f}")
        lines.insert(3, f"| the same, made again from seeds {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_labels(record: Mapping[str, Any]) -> str:
    """Return the median SRCC over splits of a regressor on the shipped encoder."""
    tables = record["tables"]
    regimes = list(tables[0]["with_labels"])
    lines = ["| labels | " + " | ".join(table["name"] for table in tables) + " |"]
    lines.append("| --- |" + " ---: |" * len(tables))
    for regime in regimes:
        lines.append(f"| {regime} | " + " | ".join(f"{table['with_labels'][regime]:.3f}" for table in tables) + " |")
    return "\n".join(lines)


def severity(record: Mapping[str, Any]) -> str:
    """Say how the score follows the level of each op, and name those that it does not."""
    found = record["severity"]
    weak = sorted((value, op) for op, value in found["ops"].items() if value < _WEAK)
    named = ", ".join(f"`{op}` ({value:.2f})" for value, op in weak) or "none"
    return (
        f"Minus the SRCC of the score with the level (0 to 5), the mean over {found['photographs']} photographs never "
        f"trained on, {found['side_px']} px of each: {found['median']:.2f} at the median of {len(found['ops'])} ops. "
        f"Below {_WEAK}: {named}."
    )
