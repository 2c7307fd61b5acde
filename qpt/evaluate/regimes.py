"""The settings of an evaluation, and the splits that follow from them.

Called by ``qpt evaluate`` and ``qpt.evaluate.run``. ``make_regimes`` turns the settings and one or several tables into
named lists of splits (regimes) over one table, which are all that the rest of the evaluation gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qpt.errors import InputError, check_int, check_number
from qpt.evaluate.features import READ_OUTS
from qpt.evaluate.finetune import FineTuning
from qpt.evaluate.protocol import REGIMES, label_share, make_splits, official_splits
from qpt.evaluate.regressors import REGRESSORS
from qpt.evaluate.table import ScoreTable, Split

PROTOCOLS = ("random", "official", "cross", "leave-one-out")


@dataclass(frozen=True)
class EvaluationConfig:
    """Splits, labels, regressor and fine-tuning of an evaluation.

    protocol: one of PROTOCOLS.  splits: number of random 80/20 splits.  label_shares: None for the protocol's own
    regimes, else shares of the training labels, above 0 and below 1, each of which adds regimes.  regressor: "ridge",
    "svr" or "best", the one of the two that inner cross-validation prefers.  fine_tuning: None leaves encoders frozen.
    read_outs: names of the ``READ_OUTS`` that each split chooses from, one for a fixed read-out.
    """

    protocol: str = "random"
    splits: int = REGIMES[0].splits
    label_shares: tuple[float, ...] | None = None
    regressor: str = "ridge"
    fine_tuning: FineTuning | None = None
    read_outs: tuple[str, ...] = tuple(str(read_out) for read_out in READ_OUTS)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"evaluate: protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.regressor not in REGRESSORS:
            raise InputError(f"evaluate: regressor must be one of {', '.join(REGRESSORS)}, got {self.regressor!r}")
        names = [str(read_out) for read_out in READ_OUTS]
        if not self.read_outs or not set(self.read_outs) <= set(names):
            got = "; ".join(self.read_outs) or "none"
            raise InputError(f"evaluate: read_outs must be among {'; '.join(names)}, got {got}")
        object.__setattr__(self, "read_outs", tuple(name for name in names if name in self.read_outs))
        object.__setattr__(self, "splits", check_int("evaluate", "splits", self.splits, 1))
        given = () if self.label_shares is None else self.label_shares
        shares = tuple(check_number("evaluate", "label_shares", share) for share in given)
        object.__setattr__(self, "label_shares", None if self.label_shares is None else shares)
        if not all(0 < share < 1 for share in shares) or len(set(shares)) < len(shares):
            raise InputError(f"evaluate: label_shares must be different and above 0 and below 1, got {list(shares)}")


def make_regimes(
    config: EvaluationConfig, tables: Sequence[ScoreTable], seed: int
) -> tuple[ScoreTable, dict[str, list[Split]]]:
    """Return the table to evaluate on, and the splits of each regime by name.

    random: "all" and "few" (see REGIMES).  official: "official".  cross: train on the first table; a regime "to NAME"
    for each other one.  leave-one-out: train on all tables but one; a regime "to NAME" for each. With label shares:
    "few" is left out and each share adds a regime "NAME, 5% of labels" over the same test parts. Several tables become
    one, each table's MOS scaled to mean 0 and standard deviation 1. Raises InputError for tables or a protocol that do
    not fit each other.
    """
    pooled = config.protocol in ("cross", "leave-one-out")
    if pooled != (len(tables) > 1):
        need = "at least one other table" if pooled else "cross or leave-one-out for several tables"
        raise InputError(f"evaluate: protocol {config.protocol!r} needs {need}, got {len(tables)} table(s)")
    if pooled:
        names = [table.name for table in tables]
        if len(set(names)) < len(names):
            raise InputError(f"evaluate: tables must have different names, got {', '.join(names)}")
        table = pool_tables(tables)
        owner = np.repeat(np.arange(len(tables)), [len(part) for part in tables])
        regimes = {}
        for number in range(1 if config.protocol == "cross" else 0, len(tables)):
            train = owner == 0 if config.protocol == "cross" else owner != number
            test = np.flatnonzero(owner == number)
            regimes[f"to {names[number]}"] = [
                Split(np.flatnonzero(train), test, name=names[number], seed=(seed, number))
            ]
    elif config.protocol == "official":
        table = tables[0]
        regimes = {"official": official_splits(table, seed)}
    else:
        table = tables[0]
        drawn = (replace(REGIMES[0], splits=config.splits), *(REGIMES[1:] if config.label_shares is None else ()))
        regimes = {regime.name: make_splits(table.mos, table.groups, regime, seed) for regime in drawn}
    full = dict(regimes)
    for name, splits in full.items():
        for share in sorted(config.label_shares or ()):
            regimes[f"{name}, {share:.6g} of labels"] = label_share(splits, table.mos, table.groups, share)
    return table, regimes


def pool_tables(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Join tables to one: image names get their table's in front, groups stay apart, MOS is standardised per table."""
    first_group = np.cumsum([0] + [int(table.groups.max()) + 1 for table in tables[:-1]])
    kinds = [table.kinds for table in tables]
    levels = [table.levels for table in tables]
    return ScoreTable(
        name=" + ".join(table.name for table in tables),
        images=tuple(f"{table.name}/{image}" for table in tables for image in table.images),
        paths=tuple(path for table in tables for path in table.paths),
        mos=np.concatenate([(table.mos - table.mos.mean()) / table.mos.std() for table in tables]),
        groups=np.concatenate([table.groups + first for table, first in zip(tables, first_group, strict=True)]),
        grouped=any(table.grouped for table in tables),
        fingerprint="+".join(table.fingerprint for table in tables),
        repeated=tuple(pair for table in tables for pair in table.repeated),
        kinds=tuple(kind for part in kinds for kind in part or ()) if all(part is not None for part in kinds) else None,
        levels=np.concatenate(levels) if all(part is not None for part in levels) else None,  # type: ignore[arg-type]
    )
