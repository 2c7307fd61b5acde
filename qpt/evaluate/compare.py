"""Comparison of two methods on shared test sets, from the results that ``qpt evaluate`` wrote.

Called by ``qpt compare``; it computes from the stored predictions. There are two tests: a paired bootstrap over groups
of images, models held fixed, and the corrected resampled t-test over splits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qpt.errors import InputError
from qpt.evaluate.bootstrap import draw_weights, median_over_splits, percentile_interval, resampled_metrics
from qpt.evaluate.metrics import FIT_PARAMETERS, METRICS
from qpt.evaluate.result import FORMAT, read_evaluation

COMPARISON_FORMAT = "qpt-comparison-1"


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a JSON file of ``qpt evaluate --out`` that holds predictions.

    Raises InputError for a file that is missing, is not a result, is damaged, or is of a version without predictions.
    """
    result = read_evaluation("compare", "result", path)
    if result["format"] == "qpt-evaluation-1":
        raise InputError(f"compare: {path} has no predictions ({result['format']}); run `qpt evaluate --out` again")
    if result["format"] != FORMAT:
        raise InputError(f"compare: {path} must be a {FORMAT} file, got {result['format']!r}")
    try:
        data, images = result["data"], result["data"]["images"]
        for name in ("image_names", "group_of_image", "mos"):
            if len(data[name]) != images:
                raise InputError(f"compare: {path} is damaged: data.{name} must have {images} entries")
        _check_kinds(result)
        for method in result["methods"]:
            for name, splits in result["splits"].items():
                records = method["regimes"][name]["splits"]
                sizes = [len(split["test"]) for split in splits]
                if [len(record["predictions"]) for record in records] != sizes:
                    raise InputError(f"compare: {path} is damaged: {method['name']} must predict every test image")
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"compare: {path} is damaged ({type(error).__name__}: {error})") from None
    return result


def _check_kinds(result: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError unless the parts of a result are of the right kinds."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    def are_numbers(values: Any) -> bool:
        return isinstance(values, list) and all(
            type(value) in (int, float) and abs(value) < (_LARGEST if type(value) is float else 1 << 62)
            for value in values
        )

    def are_rows(values: Any) -> bool:
        inside = are_numbers(values) and all(type(row) is int and 0 <= row < data["images"] for row in values)
        return inside and 0 < len(values) == len(set(values))

    data = result["data"]
    require(isinstance(data["name"], str) and isinstance(data["sha256"], str), "data must have a name and a sha256")
    require(all(isinstance(name, str) for name in data["image_names"]), "names of images must be text")
    require(are_numbers(data["mos"]) and are_numbers(data["group_of_image"]), "mos and groups must be numbers")
    require(all(type(group) is int for group in data["group_of_image"]), "groups must be integers")
    require(bool(result["methods"]) and bool(result["splits"]), "there must be methods and splits")
    for splits in result["splits"].values():
        require(isinstance(splits, list) and bool(splits), "a regime must have splits")
        for split in splits:
            require(are_rows(split["test"]) and are_rows(split["train"]), "parts of a split must be rows")
            require(isinstance(split["name"], str), "a split must have a name")
    for method in result["methods"]:
        require(isinstance(method["name"], str), "a method must have a name")
        for name in result["splits"]:
            for record in method["regimes"][name]["splits"]:
                require(are_numbers(record["predictions"]), "predictions must be finite numbers")
                fits = record["fits"]
                numbers = {metric: count for metric, count in FIT_PARAMETERS.items() if metric in fits}
                whole = all(
                    are_numbers(fits[metric]) and len(fits[metric]) == count for metric, count in numbers.items()
                )
                require(isinstance(fits, dict) and set(fits) == set(numbers) and whole, "fits must be those of curves")
                kept = [record[metric] for metric in METRICS if record.get(metric) is not None]
                require(are_numbers(kept), "coefficients must be numbers")


_LARGEST = 1e100  # the square of any number above may overflow


def find_method(result: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return the method of this name, by default the first. Raises InputError listing the names there are."""
    methods = result["methods"]
    for method in methods:
        if name is None or method["name"] == name:
            return dict(method)
    raise InputError(f"compare: method must be one of {', '.join(m['name'] for m in methods)}, got {name!r}")


def compare(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    method_a: str | None = None,
    method_b: str | None = None,
    metric: str = "srcc",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare method a of the first result with method b of the second, in each regime whose splits both share.

    first, second: as ``read_result`` returns them; may be the same.  metric: one of METRICS; for rmse, less is better.
    seed: of the resamples. Differences are a minus b. Raises InputError if the results are of other images or MOS,
    share no regime with equal splits, or if both methods are one.
    """
    if metric not in METRICS:
        raise InputError(f"compare: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    a, b = find_method(first, method_a), find_method(second, method_b)
    if first is second and a["name"] == b["name"]:
        raise InputError(f"compare: methods must be two different ones, got {a['name']!r} twice")
    for key, words in (("sha256", "photographs"), ("image_names", "photographs"), ("mos", "MOS")):
        if first["data"][key] != second["data"][key]:
            raise InputError(
                f"compare: results must be of the same {words}, got {first['data']['name']} and "
                f"{second['data']['name']} with different {key}"
            )
    shared = [name for name, splits in first["splits"].items() if _tests(second["splits"].get(name)) == _tests(splits)]
    if not shared:
        raise InputError("compare: results must share a regime with the same splits; evaluate with the same seed")
    mos = np.array(first["data"]["mos"])
    groups = np.array(first["data"]["group_of_image"])
    weights = draw_weights(groups, seed)
    regimes = {}
    for name in shared:
        splits = first["splits"][name]
        tests = [np.array(split["test"], np.int64) for split in splits]
        records = [method["regimes"][name]["splits"] for method in (a, b)]
        if any(metric not in record for part in records for record in part):
            raise InputError(f"compare: metric must be one that both results have, got {metric!r}")
        values = [np.array([_number(record[metric]) for record in part]) for part in records]
        difference = values[0] - values[1]
        resampled = [resampled_metrics(part, tests, mos, weights)[metric] for part in records]
        regimes[name] = {
            "splits": len(splits),
            "a": float(np.median(values[0])),
            "b": float(np.median(values[1])),
            "median_difference": float(np.median(difference)),
            "mean_difference": float(difference.mean()),
            "bootstrap": _bootstrap(median_over_splits(resampled[0] - resampled[1])),
            "corrected_t": corrected_t_test(
                difference,
                train=float(np.mean([len(split["train"]) for split in splits])),
                test=float(np.mean([len(test) for test in tests])),
            )
            if _are_random(splits)
            else None,
        }
    return {
        "format": COMPARISON_FORMAT,
        "data": {"name": first["data"]["name"], "sha256": first["data"]["sha256"]},
        "a": a["name"],
        "b": b["name"],
        "metric": metric,
        "seed": seed,
        "resamples": len(weights),
        "regimes": regimes,
    }


def corrected_t_test(difference: NDArray[np.float64], *, train: float, test: float) -> dict[str, float] | None:
    """Return t, degrees and the two-sided p of the corrected resampled t-test over J splits; None for one split.

    t = mean / sqrt((1 / J + test / train) var), J - 1 degrees of freedom, var the sample variance (J - 1).
    difference: (J,) per split.  train, test: images in each part.
    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52(3), 2003, section 3.2.
    """
    count = len(difference)
    if count < 2:
        return None
    # test / train stands for the correlation of splits that share images. A plain t-test leaves it out and finds
    # differences where there are none; it is not offered.
    variance = (1 / count + test / train) * float(difference.var(ddof=1))
    mean = float(difference.mean())
    t = mean / math.sqrt(variance) if variance else math.copysign(math.inf, mean) if mean else 0.0
    return {"t": t, "degrees": count - 1, "p": float(2 * stats.t.sf(abs(t), count - 1))}


def _bootstrap(values: NDArray[np.float64]) -> dict[str, float]:
    """Return interval and two-sided p of the resampled differences: twice the smaller share on one side of 0."""
    values = values[np.isfinite(values)]
    low, high = percentile_interval(values)
    smaller = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    # The sample itself counts as a resample, so p is never 0.
    return {"ci_low": low, "ci_high": high, "p": min(1.0, 2 * (smaller + 1) / (len(values) + 1))}


def _are_random(splits: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the splits are random ones of one table; imported ones have names."""
    return len(splits) > 1 and not any(split["name"] for split in splits)


def _tests(splits: Sequence[Mapping[str, Any]] | None) -> list[tuple[Any, Any]] | None:
    return None if splits is None else [(split["test"], split["name"]) for split in splits]


def _number(value: float | None) -> float:
    """Return a stored coefficient; null, which orders nothing, is 0."""
    return 0.0 if value is None else float(value)


def comparison_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the comparison as text, a few lines for each regime."""
    lines = [f"{result['metric']} on {result['data']['name']}: {result['a']} minus {result['b']}"]
    for name, found in result["regimes"].items():
        boot, t = found["bootstrap"], found["corrected_t"]
        lines.append(
            f"{name}: {found['a']:.3f} and {found['b']:.3f} (medians over {found['splits']} split(s)), "
            f"median difference {found['median_difference']:+.3f}"
        )
        lines.append(
            f"  paired bootstrap over groups: 95 % from {boot['ci_low']:+.3f} to {boot['ci_high']:+.3f}, "
            f"p = {boot['p']:.3g}"
        )
        if t is not None:
            lines.append(
                f"  corrected resampled t-test: mean {found['mean_difference']:+.3f}, t({t['degrees']}) = {t['t']:.2f}"
                f", p = {t['p']:.3g}"
            )
    return lines
