"""Ten IQA data sets in their official layouts: what each is, what it needs, and loading it as a ``ScoreTable``.

Called by ``qpt datasets`` and by every command that takes ``--dataset``. Nothing is downloaded: the sets are to be had
from their owners. The layouts are read by ``qpt.evaluate.datasets.layouts``; ``docs/datasets.md`` shows the registry.
"""

from __future__ import annotations

from qpt.evaluate.datasets.registry import DATASETS, Dataset, as_dict, check_dataset, dataset, load_dataset, markdown

__all__ = ["DATASETS", "Dataset", "as_dict", "check_dataset", "dataset", "load_dataset", "markdown"]
