"""One evaluation from end to end: runs and a score table in, a result (a JSON-ready dict) out.

Called by ``qpt evaluate`` alone; it reads checkpoints and images, and writes feature caches. The result holds all that
is needed to repeat it, or to compare it with another, and no path: runs and sets are named, files are hashed.
"""

from __future__ import annotations

import copy
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

from qpt.errors import BackendError, InputError, check_int
from qpt.evaluate.bootstrap import KRCC_IMAGES, KRCC_RESAMPLES, LEVEL, RESAMPLES
from qpt.evaluate.classical import classical_features
from qpt.evaluate.features import FeatureProtocol, feature_cache, images_key, read_out_features, weights_hash
from qpt.evaluate.finetune import FineTuning, ImageCache, fine_tune, hold_out
from qpt.evaluate.leaks import equal_files
from qpt.evaluate.protocol import evaluate_splits, split_record
from qpt.evaluate.regimes import EvaluationConfig, make_regimes
from qpt.evaluate.regressors import REGRESSORS
from qpt.evaluate.result import FORMAT
from qpt.evaluate.summary import paired_difference, summarise_on
from qpt.evaluate.table import ScoreTable, Split
from qpt.models import Encoder, load_encoder
from qpt.models.checkpoint_file import run_record
from qpt.models.encoder import untrained_encoder
from qpt.runs.files import run_name
from qpt.version import __version__

#: The encoder with supervised weights that stands beside every run; its weights come with an extra.
SUPERVISED = "efficientnet_lite0-imagenet"
#: Arithmetic of frozen encoders. float16 ends at 65,504, which maps of some encoders exceed.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Method:
    """One method of the result.

    kind: "pretrained", "supervised", "untrained" or "classical".  about: hashes and settings that identify it.
    features: read-out name -> (n, d) float64 of all images of the table; empty where ``encoder`` is fine-tuned.
    """

    name: str
    kind: str
    about: Mapping[str, Any]
    features: Mapping[str, NDArray[np.float64]]
    encoder: Encoder | None = None


def evaluate(
    runs: Sequence[str | Path],
    table: ScoreTable,
    *,
    others: Sequence[ScoreTable] = (),
    config: EvaluationConfig | None = None,
    untrained: int = 1,
    supervised: bool = True,
    seed: int = 0,
    protocol: FeatureProtocol | None = None,
    dtype: str = "float32",
    cache: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate pre-trained encoders beside a supervised one, untrained ones and classical features, on the same splits.

    runs: run directories, checkpoint files or named encoders (``load_encoder``), at least one.  others: further tables,
    for protocols across data sets.  config: splits, regressor and fine-tuning, by default random splits and ridge.
    untrained: random initialisations for each architecture and width among the runs, >= 0, with seeds 0, 1, ...
    supervised: also measure ``SUPERVISED``, frozen; where its extra is not installed, ``notes`` of the result says so.
    seed: of the splits.  protocol: the part of an image that the encoder gets.  dtype: "float32" or "bfloat16", of the
    frozen encoders; statistics over positions and all that follows are float32 or better.  cache: folder for features;
    by default that of the first run (``feature_cache``).  quiet: no progress bars. Returns the result as plain data:
    data, protocol, versions, notes, splits, methods (with every split and its predictions) and paired differences.
    Raises InputError for what ``load_encoder`` or the reading of images refuses, tables that do not fit the config, or
    a set too small to split.
    """
    if not runs:
        raise InputError("evaluate: runs must name at least one run, got none")
    untrained, seed = check_int("evaluate", "untrained", untrained, 0), check_int("evaluate", "seed", seed, 0)
    if dtype not in DTYPES:
        raise InputError(f"evaluate: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    protocol, config = protocol or FeatureProtocol(), config or EvaluationConfig()
    folder = Path(cache) if cache is not None else feature_cache(runs[0])
    tables = (table, *others)
    whole, regimes = make_regimes(config, tables, seed)
    encoders = _encoders(runs, untrained)
    reference, notes = _supervised(runs) if supervised else ([], [])
    # Table by table: then the cache of one serves every evaluation that includes it. The classical features decode
    # every image that has none yet: a damaged one is found here, before the longer passes.
    parts = [classical_features(t.paths, cache=folder, images_key=images_key(t), quiet=quiet) for t in tables]
    classical = _joined(parts)
    methods = []
    for name, kind, about, encoder in [*encoders, *reference]:
        used = encoder if dtype == "float32" else copy.deepcopy(encoder).to(DTYPES[dtype])
        parts = [read_out_features(used, t, protocol, label=name, cache=folder, quiet=quiet) for t in tables]
        joined = _joined(parts)
        methods.append(Method(name, kind, about, {key: joined[key] for key in config.read_outs}))
    if config.fine_tuning is not None:
        methods += [
            Method(f"{name}, fine-tuned", f"{kind} fine-tuned", about, {}, e) for name, kind, about, e in encoders
        ]
    methods += [Method(name, "classical", {}, {name: feature}) for name, feature in classical.items()]
    images = ImageCache(whole.paths)
    records = [_evaluate_method(method, whole, regimes, config, images, seed) for method in methods]
    regressor = REGRESSORS[config.regressor]()
    return {
        "format": FORMAT,
        "data": {
            "name": whole.name,
            "images": len(whole),
            "groups": len(np.unique(whole.groups)),
            "split_by": "ref" if whole.grouped else "image",
            "sha256": whole.fingerprint,
            "repeated_across_groups": [list(pair) for pair in whole.repeated],
            "shared_between_tables": [list(pair) for pair in _shared(tables)],
            "tables": [_table_record(t) for t in tables],
            "image_names": list(whole.images),
            "group_of_image": whole.groups.tolist(),
            "mos": whole.mos.tolist(),
        },
        "protocol": {
            "name": config.protocol,
            "seed": seed,
            "mos_scale": "standardised in each table" if others else "as in the table",
            "features": {**protocol.describe(), "dtype": dtype},
            "read_outs": list(config.read_outs),
            "regressor": regressor.description,
            "settings": [dict(setting) for setting in regressor.settings],
            "chosen_by": "the first read-out within one standard error of the highest SRCC of pooled held-out "
            "predictions of inner cross-validation, or of the validation part",
            "fine_tuning": config.fine_tuning.describe() if config.fine_tuning is not None else None,
            "label_shares": config.label_shares,
            "regimes": [
                {"name": name, "splits": len(splits), "train_share": len(splits[0].train) / len(whole)}
                for name, splits in regimes.items()
            ],
            "intervals": {
                "of": "the median over splits, models held fixed",
                "level": LEVEL,
                "resamples": RESAMPLES,
                "units": "groups",
                "krcc": f"{KRCC_RESAMPLES} resamples above {KRCC_IMAGES} test images",
            },
        },
        "versions": _versions(),
        "notes": notes,
        "splits": {name: [_split_rows(split) for split in splits] for name, splits in regimes.items()},
        "methods": records,
        "paired": _paired(records),
    }


def _shared(tables: Sequence[ScoreTable]) -> list[tuple[str, str]]:
    """Return the pairs of images of two tables that are equal files, by their names in the result."""
    return [
        (f"{first.name}/{a}", f"{second.name}/{b}")
        for number, second in enumerate(tables)
        for first in tables[:number]
        for a, b in equal_files(first, second)
    ]


def _table_record(table: ScoreTable) -> dict[str, Any]:
    return {
        "name": table.name,
        "images": len(table),
        "sha256": table.fingerprint,
        "mos_mean": float(table.mos.mean()),
        "mos_std": float(table.mos.std()),
        "lower_better": table.lower_better,
        "notes": list(table.notes),
    }


def _split_rows(split: Split) -> dict[str, Any]:
    """Return the row numbers of the parts, into ``data.image_names``."""
    parts = {"train": split.train, "val": split.val, "test": split.test}
    return {"name": split.name, "seed": list(split.seed), **{name: rows.tolist() for name, rows in parts.items()}}


def _encoders(runs: Sequence[str | Path], untrained: int) -> list[tuple[str, str, dict[str, Any], Encoder]]:
    """Return (name, kind, about, encoder) of every run, then of the untrained ones of each architecture among them."""
    names = [run_name(run) for run in runs]
    found: list[tuple[str, str, dict[str, Any], Encoder]] = []
    shapes: dict[tuple[str, int], None] = {}
    for position, run in enumerate(runs):
        encoder = load_encoder(run)
        name = names[position] if names.count(names[position]) == 1 else f"{names[position]} #{position + 1}"
        record = run_record(run)
        about: dict[str, Any] = {
            key: record[key] for key in ("encoder", "checkpoint_sha256", "config") if key in record
        }
        about |= _shape(encoder)
        found.append((name, "pretrained", about, encoder))
        shapes[encoder.arch, encoder.width] = None
    for arch, width in shapes:
        for init in range(untrained):
            encoder = untrained_encoder(arch, width, init)
            name = f"untrained {init}" if len(shapes) == 1 else f"untrained {arch}/{width} {init}"
            found.append((name, "untrained", {"init_seed": init, **_shape(encoder)}, encoder))
    return found


def _supervised(runs: Sequence[str | Path]) -> tuple[list[tuple[str, str, dict[str, Any], Encoder]], list[str]]:
    """Return the supervised encoder as ``_encoders`` does, or none and a note that says why."""
    if SUPERVISED in map(str, runs):
        return [], []
    try:
        encoder = load_encoder(SUPERVISED)
    except (InputError, BackendError) as error:
        return [], [f"{SUPERVISED} is not measured: {error}"]
    return [(SUPERVISED, "supervised", _shape(encoder), encoder)], []


def _joined(tables: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Return the features of all tables, one below the other, under each name."""
    return {name: np.concatenate([features[name] for features in tables]) for name in tables[0]}


def _shape(encoder: Encoder) -> dict[str, Any]:
    return {"arch": encoder.arch, "width": encoder.width, "weights_sha256": weights_hash(encoder)}


def _evaluate_method(
    method: Method,
    table: ScoreTable,
    regimes: Mapping[str, Sequence[Split]],
    config: EvaluationConfig,
    images: ImageCache,
    seed: int,
) -> dict[str, Any]:
    found = {}
    for name, splits in regimes.items():
        if method.encoder is None:
            regressor = REGRESSORS[config.regressor]()
            records = evaluate_splits(method.features, table.mos, table.groups, splits, regressor)
        else:
            assert config.fine_tuning is not None
            records = [_fine_tuned(method.encoder, table, split, config.fine_tuning, images) for split in splits]
        summary = summarise_on(records, [split.test for split in splits], table, seed)
        found[name] = {"summary": summary, "splits": records}
    return {"name": method.name, "kind": method.kind, **method.about, "regimes": found}


def _fine_tuned(
    encoder: Encoder, table: ScoreTable, split: Split, config: FineTuning, images: ImageCache
) -> dict[str, Any]:
    """Fine-tune on one split, validated on its own validation part, else on a fifth of its training part."""
    train, val = split.train, split.val
    if not len(val):
        train, val = hold_out(train, table.mos, table.groups, split.seed)
    predicted, more = fine_tune(
        encoder, images, table.mos, train=train, val=val, test=split.test, config=config, seed=split.seed
    )
    return split_record(split, predicted, table.mos, {**more, "chosen_folds": f"{len(val)} validation images"})


def _paired(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare every run with every untrained encoder of the same shape, for each architecture and regime."""
    results = []
    shapes = dict.fromkeys((r["arch"], r["width"]) for r in records if r["kind"] == "untrained")
    for arch, width in shapes:
        same = [r for r in records if (r.get("arch"), r.get("width")) == (arch, width)]
        pretrained = [r for r in same if r["kind"] == "pretrained"]
        untrained = [r for r in same if r["kind"] == "untrained"]
        for regime in untrained[0]["regimes"]:
            difference = paired_difference(
                [r["regimes"][regime]["splits"] for r in pretrained],
                [r["regimes"][regime]["splits"] for r in untrained],
            )
            results.append(
                {
                    "regime": regime,
                    "arch": arch,
                    "width": width,
                    "pretrained": [r["name"] for r in pretrained],
                    "untrained": [r["name"] for r in untrained],
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
