"""Ten IQA data sets in their official layouts: a registry, and loading as a ``ScoreTable``.

Called by ``qpt datasets`` and by every command that takes ``--dataset``. Nothing is downloaded: the owners give the
sets out. ``layouts`` reads the official layouts; ``docs/datasets.md`` shows the registry.
"""

from __future__ import annotations

from qpt.evaluate.datasets.registry import DATASETS, Dataset, as_dict, check_dataset, dataset, load_dataset, markdown

__all__ = ["DATASETS", "Dataset", "as_dict", "check_dataset", "dataset", "load_dataset", "markdown"]
