"""Program: the ops, levels and parameters of every output image, as plain data that is saved and replayed exactly.

Made by ``qpt.degradations.space`` or by ``Program.from_chains``; run by ``qpt.ops.degrade.api``, whose kernels check
nothing and rely on ``Program.check``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from qpt.data.arrays import read_npz
from qpt.degradations import op_table, random_bits
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, MAX_PARAMS, Degradation
from qpt.degradations.sampling import draw_params
from qpt.errors import InputError, as_integer, describe
from qpt.io import write_whole

_DTYPES = {
    "ops": torch.int16,
    "levels": torch.int8,
    "params": torch.float32,
    "seeds": torch.int64,
    "source": torch.int32,
}
_SHAPES = {"ops": "(r, S)", "levels": "(r, S)", "params": f"(r, S, {MAX_PARAMS})", "seeds": "(r,)", "source": "(r,)"}


@dataclass(frozen=True)
class Step:
    """One op of a chain: its name, its level (1..5, or 0 if its parameters were given) and its parameters by name."""

    name: str
    level: int
    params: dict[str, float]

    def __str__(self) -> str:
        if self.level:
            return f"{self.name}[{self.level}]"
        return f"{self.name}[{', '.join(f'{name}={value:g}' for name, value in self.params.items())}]"


@dataclass(frozen=True)
class Chain:
    """The steps of one row, in order; prints as ``gaussian_blur[3] → jpeg[1]``, or ``pristine`` without steps."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return " → ".join(map(str, self.steps)) or "pristine"

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, eq=False)
class Program:
    """The chains of a batch: r rows, one per output image, of S slots, one per op; all tensors are on the CPU.

    ops: int16 (r, S), op ids, -1 for an unused slot.  levels: int8 (r, S), labels 1..5, 0 for none.
    params: float32 (r, S, 4), the parameters that the kernels read.  seeds: int64 (r,), the source of all randomness.
    source: int32 (r,), index of the image that a row degrades.  table: fingerprint of the op table used.
    A random number is keyed by (seed, slot, image coordinates), so an output image depends on its own row alone.
    """

    ops: Tensor
    levels: Tensor
    params: Tensor
    seeds: Tensor
    source: Tensor
    table: str

    def __len__(self) -> int:
        return len(self.ops)

    @overload
    def __getitem__(self, row: int) -> Chain: ...
    @overload
    def __getitem__(self, row: slice) -> Program: ...
    def __getitem__(self, row: int | slice) -> Chain | Program:
        if isinstance(row, slice):
            return self.select(range(len(self))[row])
        if not -len(self) <= row < len(self):
            raise IndexError(f"Program: row must be in [{-len(self)}, {len(self)}), got {row}")
        steps = []
        for op, level, values in zip(
            self.ops[row].tolist(), self.levels[row].tolist(), self.params[row].tolist(), strict=True
        ):
            if op >= 0:
                entry = DEGRADATIONS[op]
                named = {p.name: value for p, value in zip(entry.parameters, values, strict=False)}
                steps.append(Step(entry.name, level, named))
        return Chain(tuple(steps))

    def __iter__(self) -> Iterator[Chain]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Program({len(self)} rows, {self.ops.shape[-1]} slots, table {self.table})"

    def compositions(self) -> list[tuple[tuple[int, int], ...]]:
        """Return each row's (op id, level) pairs in order, without unused slots; equal for equal compositions."""
        rows = zip(self.ops.tolist(), self.levels.tolist(), strict=True)
        return [tuple((o, v) for o, v in zip(ops, levels, strict=True) if o >= 0) for ops, levels in rows]

    def resizes(self) -> bool:
        """Return True if a row holds ``resize_to`` and so may work at another size than its image's."""
        return bool(self.resized_rows().any())

    def resized_rows(self) -> np.ndarray:
        """Return (r,) bool, True for rows that hold ``resize_to``."""
        return (self.ops.numpy() == op_table.op_id("resize_to")).any(axis=1)

    def select(self, rows: Sequence[int] | Tensor) -> Program:
        """Return the given rows, in the given order, as a new program over the same images."""
        index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64, device="cpu")
        fields = (self.ops[index], self.levels[index], self.params[index], self.seeds[index], self.source[index])
        return Program(*fields, self.table)

    def equal(self, other: Program) -> bool:
        """Return True if every field has the same values."""
        return self.table == other.table and all(torch.equal(getattr(self, f), getattr(other, f)) for f in _DTYPES)

    @staticmethod
    def concat(programs: Sequence[Program], *, source_offsets: Sequence[int] | None = None) -> Program:
        """Concatenate the rows of several programs.

        source_offsets: one number per program, added to its ``source``, for images that are concatenated too; None if
        all programs degrade the same images. Programs of fewer slots are padded with unused ones.
        Raises InputError for no programs, different op tables, or another number of offsets than of programs.
        """
        if not programs:
            raise InputError("Program.concat: programs must hold at least one program, got none")
        tables = sorted({p.table for p in programs})
        if len(tables) > 1:
            raise InputError(f"Program.concat: programs must come from one op table, got {', '.join(tables)}")
        offsets = [0] * len(programs) if source_offsets is None else list(source_offsets)
        if len(offsets) != len(programs):
            raise InputError(f"Program.concat: source_offsets must be {len(programs)} integers, got {len(offsets)}")
        slots = max(p.ops.shape[1] for p in programs)

        def padded(tensor: Tensor, value: int) -> Tensor:
            out = tensor.new_full((len(tensor), slots, *tensor.shape[2:]), value)
            out[:, : tensor.shape[1]] = tensor
            return out

        return Program(
            torch.cat([padded(p.ops, -1) for p in programs]),
            torch.cat([padded(p.levels, 0) for p in programs]),
            torch.cat([padded(p.params, 0) for p in programs]),
            torch.cat([p.seeds for p in programs]),
            torch.cat([p.source + offset for p, offset in zip(programs, offsets, strict=True)]),
            tables[0],
        )

    @staticmethod
    def from_chains(
        chains: Sequence[Sequence[tuple[str, int | Sequence[float]]]],
        *,
        seeds: Sequence[int],
        source: Sequence[int] | None = None,
    ) -> Program:
        """Make a program of given chains.

        chains: for each row, (op name, level 1..5) or (op name, parameters) pairs; a parameter that a level leaves
        random (a sign, an angle) is drawn from the row's seed.  seeds: one int64 per row.  source: index of each row's
        image, None for 0.
        Raises InputError for an unknown op, a level or parameter out of range, or lengths that differ.
        """
        r, slots = len(chains), max((len(chain) for chain in chains), default=0)
        ops, levels = np.full((r, slots), -1, np.int16), np.zeros((r, slots), np.int8)
        given = np.zeros((r, slots, MAX_PARAMS), np.float32)
        for i, chain in enumerate(chains):
            for j, step in enumerate(chain):
                if not isinstance(step, (tuple, list)) or len(step) != 2:
                    raise InputError(
                        f"Program.from_chains: a step must be (op name, level or parameters), got {step!r}"
                    )
                ops[i, j] = op_table.op_id(step[0], "Program.from_chains")
                levels[i, j], given[i, j] = _setting(DEGRADATIONS[ops[i, j]], step[1])
        row_seeds = _integers("seeds", seeds, r, np.int64)
        sources = np.zeros(r, np.int32) if source is None else _integers("source", source, r, np.int32)
        u = random_bits.uniform(row_seeds, slots * MAX_PARAMS).reshape(given.shape)
        drawn = draw_params(ops, levels, u)
        program = Program(
            torch.from_numpy(ops),
            torch.from_numpy(levels),
            torch.from_numpy(np.where(levels[..., None] > 0, drawn, given)),
            torch.from_numpy(row_seeds),
            torch.from_numpy(sources),
            op_table.fingerprint(),
        )
        program.check("Program.from_chains")
        return program

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to ``path``, replacing it at once: an uncompressed .npz file without pickled objects."""

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:  # given a name instead, NumPy would append .npz to it
                np.savez(file, table=np.array(self.table), **{name: getattr(self, name).numpy() for name in _DTYPES})

        write_whole(Path(path), write)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Program:
        """Read a saved program. Raises InputError for another kind of file, a damaged one, or another op table."""
        try:
            stored = read_npz(path, [*_DTYPES, "table"])
            fields = {name: torch.from_numpy(stored[name]) for name in _DTYPES}
            program = Program(**fields, table=str(stored["table"]))
        except (ValueError, TypeError) as error:
            raise InputError(f"Program.load: path must be a saved program, got {os.fspath(path)}: {error}") from error
        program.check("Program.load")
        return program

    def check(self, caller: str) -> None:
        """Raise InputError, naming the field, unless the kernels can run this program."""
        if not op_table.accepts(self.table):
            raise InputError(
                f"{caller}: program must be made with op table {op_table.fingerprint()}, got {self.table}; "
                "sample it again with this version, or run it with the version that made it"
            )
        r, slots = self.ops.shape if isinstance(self.ops, Tensor) and self.ops.ndim == 2 else (0, 0)
        shapes = ((r, slots), (r, slots), (r, slots, MAX_PARAMS), (r,), (r,))
        for (name, dtype), shape in zip(_DTYPES.items(), shapes, strict=True):
            field = getattr(self, name)
            if not isinstance(field, Tensor):
                raise InputError(f"{caller}: program.{name} must be a torch tensor, got {type(field).__name__}")
            if field.dtype != dtype or field.shape != shape or field.device.type != "cpu":
                raise InputError(
                    f"{caller}: program.{name} must be {_SHAPES[name]} {str(dtype).removeprefix('torch.')} on the CPU, "
                    f"got {describe(field)} on {field.device}"
                )
            if field.requires_grad:
                raise InputError(f"{caller}: program.{name} must not require a gradient: a degradation has none")
        ops, levels, params = self.ops.numpy(), self.levels.numpy(), self.params.numpy()
        _refuse(caller, "ops", f"op ids in -1..{len(DEGRADATIONS) - 1}", ops, (ops < -1) | (ops >= len(DEGRADATIONS)))
        _refuse(caller, "levels", f"in 0..{LEVELS}", levels, (levels < 0) | (levels > LEVELS))
        source = self.source.numpy()
        _refuse(caller, "source", "image indices from 0", source, source < 0)
        self._check_params(caller, ops, params)

    def _check_params(self, caller: str, ops: np.ndarray, params: np.ndarray) -> None:
        bounds, used = op_table.parameter_bounds(), ops >= 0
        op = np.maximum(ops, 0)
        good = (params >= bounds.low[op]) & (params <= bounds.high[op])  # False for NaN, in unused slots too
        good &= ~bounds.integer[op] | (params == np.rint(params))
        bad = ~good & used[..., None]
        if bad.any():
            row, slot, index = (int(k) for k in np.argwhere(bad)[0])
            entry, value = DEGRADATIONS[ops[row, slot]], params[row, slot, index]
            if index >= len(entry.parameters):
                raise InputError(f"{caller}: program.params of {entry.name} must be numbers, got {value} in row {row}")
            p = entry.parameters[index]
            kind = "an integer in" if p.integer else "in"
            raise InputError(
                f"{caller}: program.params of {entry.name} must have {p.name} {kind} [{p.low:g}, {p.high:g}] {p.unit}, "
                f"got {value:g} in row {row}, slot {slot}"
            )


def _setting(entry: Degradation, setting: int | Sequence[float]) -> tuple[int, np.ndarray]:
    """Return (level, zeros) or (0, parameters) of a given step, the parameters padded to MAX_PARAMS."""
    given = np.zeros(MAX_PARAMS, np.float32)
    level = as_integer(setting)
    if level is not None:
        if not 1 <= level <= LEVELS:
            raise InputError(f"Program.from_chains: level must be in 1..{LEVELS}, got {entry.name}[{level}]")
        return level, given
    values = np.asarray(setting)
    names = ", ".join(p.name for p in entry.parameters)
    if values.shape != (len(entry.parameters),) or values.dtype.kind not in "iuf":
        must = f"a level in 1..{LEVELS} or parameters ({names})"
        raise InputError(f"Program.from_chains: {entry.name} must have {must}, got {setting!r}")
    given[: len(values)] = values
    return 0, given


def _integers(argument: str, values: Sequence[int], rows: int, dtype: type[np.signedinteger]) -> np.ndarray:
    """Return ``values`` as (rows,) integers of ``dtype``. Raises InputError for anything else, or out of its range."""
    given, limits = np.asarray(values), np.iinfo(dtype)
    good = given.shape == (rows,) and (rows == 0 or given.dtype.kind in "iu")
    if not good or ((given < limits.min) | (given > limits.max)).any():
        must = f"{rows} integers of {limits.bits} bits with a sign"
        raise InputError(f"Program.from_chains: {argument} must be {must}, got {values!r:.80}")
    return given.astype(dtype)


def _refuse(caller: str, name: str, must: str, values: np.ndarray, bad: np.ndarray) -> None:
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        raise InputError(f"{caller}: program.{name} must be {must}, got {values[where]} in row {where[0]}")
