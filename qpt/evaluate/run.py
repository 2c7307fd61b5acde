"""One evaluation from end to end: runs and a table in, a result (a JSON-ready dict) and a printed table out.

Called by ``qpt evaluate`` and the demo. Relies on ``features`` for what an encoder sees and on ``protocol`` for what
is done with it. The result holds all that is needed to repeat it and no path: runs and sets are named, files are
hashed.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow_version

from qpt.errors import InputError
from qpt.evaluate.classical import classical_features
from qpt.evaluate.features import READ_OUTS, FeatureProtocol, extract, weights_hash
from qpt.evaluate.protocol import REGIMES, Split, evaluate_splits, make_splits, paired_difference, summarise
from qpt.evaluate.ridge import PENALTIES
from qpt.evaluate.table import ScoreTable
from qpt.models import ResNet, build_encoder, load_encoder
from qpt.models.encoder import read_checkpoint
from qpt.version import __version__

FORMAT = "qpt-evaluation-1"


@dataclass(frozen=True)
class Method:
    """A row of the result. kind: "pretrained", "untrained" or "classical".  about: what identifies it, for the record.
    views: read-out name -> (n, d) float64 features of all images of the table."""

    name: str
    kind: str
    about: Mapping[str, Any]
    views: Mapping[str, NDArray[np.float64]]


def untrained_encoder(arch: str, width: int, seed: int) -> ResNet:
    """An encoder with the initial weights of this seed, in eval mode; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(arch, width).eval()


def evaluate(
    runs: Sequence[str | Path],
    table: ScoreTable,
    *,
    untrained: int = 1,
    seed: int = 0,
    protocol: FeatureProtocol | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate pre-trained encoders beside untrained ones and two classical features, all on the same splits.

    runs: run directories or checkpoint files, at least one.  untrained: random initialisations for each architecture
    and width among the runs, >= 0, with seeds 0, 1, ...  seed: of the splits.  protocol: what of a photograph is
    looked at. cache: folder for features; by default ``features`` in the first run directory.  quiet: no progress
    bars. Returns the result as plain data: data, protocol, versions, methods (with every split) and paired
    differences. Raises InputError for what ``load_encoder`` or the photographs refuse, or a set too small to split.
    """
    if not runs:
        raise InputError("evaluate: runs must name at least one run, got none")
    if untrained < 0 or seed < 0:
        raise InputError(f"evaluate: untrained and seed must be >= 0, got {untrained} and {seed}")
    protocol = protocol or FeatureProtocol()
    folder = Path(cache) if cache is not None else feature_cache(runs[0])
    splits = {regime.name: make_splits(table.mos, table.groups, regime, seed) for regime in REGIMES}
    encoders = _encoders(runs, untrained)
    # The classical features decode every photograph: a damaged one is found here, before the longer passes.
    classical = classical_features(table.paths, quiet=quiet)
    methods = []
    for name, kind, about, encoder in encoders:
        views = encoder_views(encoder, table, protocol, label=name, cache=folder, quiet=quiet)
        methods.append(Method(name, kind, about, views))
    methods += [Method(name, "classical", {}, {name: feature}) for name, feature in classical.items()]
    records = [_evaluate_method(method, table, splits) for method in methods]
    return {
        "format": FORMAT,
        "data": {
            "name": table.name,
            "images": len(table),
            "groups": len(np.unique(table.groups)),
            "split_by": "ref" if table.grouped else "image",
            "sha256": table.fingerprint,
            "repeated_across_groups": [list(pair) for pair in table.repeated],
        },
        "protocol": {
            "seed": seed,
            "features": protocol.describe(),
            "read_outs": [str(read_out) for read_out in READ_OUTS],
            "regressor": "ridge on standardised features",
            "penalties_per_feature": list(PENALTIES),
            "chosen_by": "SRCC of pooled held-out predictions of inner cross-validation",
            "regimes": [{"name": r.name, "splits": r.splits, "train_share": r.train_share} for r in REGIMES],
        },
        "versions": _versions(),
        "methods": records,
        "paired": _paired(records),
    }


def encoder_views(
    encoder: ResNet, table: ScoreTable, protocol: FeatureProtocol, *, label: str, cache: Path | None, quiet: bool
) -> dict[str, NDArray[np.float64]]:
    """Every read-out of an encoder for a table: name -> (n, d) float64."""
    # The fingerprint is of a set; features also depend on the order of its rows.
    key = hashlib.sha256("\n".join((table.fingerprint, *table.images)).encode()).hexdigest()
    features = extract(
        encoder, table.paths, protocol=protocol, label=label, cache=cache, photographs_key=key, quiet=quiet
    )
    return {str(read_out): read_out.select(features, encoder.stage_dims) for read_out in READ_OUTS}


def feature_cache(run: str | Path) -> Path:
    """Where features of a run are kept: ``features`` inside its directory."""
    path = Path(run)
    return (path if path.is_dir() else path.parent) / "features"


def run_name(run: str | Path) -> str:
    """What results call a run: the name of its directory."""
    path = Path(run).resolve()
    return path.name if path.is_dir() else path.parent.name


def _encoders(runs: Sequence[str | Path], untrained: int) -> list[tuple[str, str, dict[str, Any], ResNet]]:
    """(name, kind, about, encoder) for every run, then the untrained ones of each architecture among them."""
    names = [run_name(run) for run in runs]
    found: list[tuple[str, str, dict[str, Any], ResNet]] = []
    shapes: dict[tuple[str, int], None] = {}
    for position, run in enumerate(runs):
        encoder = load_encoder(run)
        file = Path(run) / "checkpoint.pt" if Path(run).is_dir() else Path(run)
        name = names[position] if names.count(names[position]) == 1 else f"{names[position]} #{position + 1}"
        about = {
            "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "config": _plain(read_checkpoint(run)["config"]),
            **_shape(encoder),
        }
        found.append((name, "pretrained", about, encoder))
        shapes[encoder.arch, encoder.width] = None
    for arch, width in shapes:
        for init in range(untrained):
            encoder = untrained_encoder(arch, width, init)
            name = f"untrained {init}" if len(shapes) == 1 else f"untrained {arch}/{width} {init}"
            found.append((name, "untrained", {"init_seed": init, **_shape(encoder)}, encoder))
    return found


def _shape(encoder: ResNet) -> dict[str, Any]:
    return {"arch": encoder.arch, "width": encoder.width, "weights_sha256": weights_hash(encoder)}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the paths in it: of a path only the last part is kept."""
    return {k: Path(v).name if isinstance(v, str) and ("/" in v or "\\" in v) else v for k, v in config.items()}


def _evaluate_method(method: Method, table: ScoreTable, splits: Mapping[str, Sequence[Split]]) -> dict[str, Any]:
    regimes = {}
    for name, chosen in splits.items():
        records = evaluate_splits(method.views, table.mos, table.groups, chosen)
        regimes[name] = {"summary": summarise(records), "splits": records}
    return {"name": method.name, "kind": method.kind, **method.about, "regimes": regimes}


def _paired(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each architecture and regime: every run against every untrained encoder of the same shape."""
    results = []
    shapes = dict.fromkeys((r["arch"], r["width"]) for r in records if r["kind"] == "untrained")
    for arch, width in shapes:
        same = [r for r in records if (r.get("arch"), r.get("width")) == (arch, width)]
        ours = [r for r in same if r["kind"] == "pretrained"]
        random = [r for r in same if r["kind"] == "untrained"]
        for regime in REGIMES:
            difference = paired_difference(
                [r["regimes"][regime.name]["splits"] for r in ours],
                [r["regimes"][regime.name]["splits"] for r in random],
            )
            results.append(
                {
                    "regime": regime.name,
                    "arch": arch,
                    "width": width,
                    "pretrained": [r["name"] for r in ours],
                    "untrained": [r["name"] for r in random],
                    **difference,
                }
            )
    return results


def _versions() -> dict[str, Any]:
    return {
        "qpt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "pillow": pillow_version,
        "threads": torch.get_num_threads(),
    }
