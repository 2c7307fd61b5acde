"""Score photographs, or compute their features, on the workers of a Ray cluster.

    python examples/score_with_ray.py photos --out scores --workers 8
    python examples/score_with_ray.py s3://bucket/photos --out scores --workers 64 --scorer scorer.pt --features

Each worker loads one scorer and takes batches of names; the results are Parquet files in the folder of --out, with a
row for each photograph: its number in the list, its name, its score or the reason why it has none. The numbers are
those of one process: the score of a photograph does not depend on what else is scored. Needs qpt and ray[data] on
every machine, the same version of both.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pyarrow
import ray
import torch

from qpt import InputError, Scorer
from qpt.data.listing import find_images
from qpt.evaluate.features import image_features
from qpt.evaluate.image_crops import load_image

TYPES = {
    "number": pyarrow.int64(),
    "image": pyarrow.string(),
    "score": pyarrow.float64(),
    "error": pyarrow.string(),
    "features": pyarrow.list_(pyarrow.float32()),
}


class ScoreBatch:
    """A worker's scorer. Called with a batch of rows {number, image}, it returns the same rows with their results."""

    def __init__(self, scorer: str | None, features: bool) -> None:
        torch.set_num_threads(1)  # the workers share out the cores; a worker with num_cpus=4 would take 4
        self.scorer = Scorer.load(scorer)
        self.features = features

    def __call__(self, batch: dict[str, np.ndarray]) -> pyarrow.Table:
        results = [self.result(str(name)) for name in batch["image"]]
        columns = {
            **batch,
            **{column: [result.get(column) for result in results] for column in TYPES if column not in batch},
        }
        if not self.features:
            del columns["features"]
        # With the types said: a batch without any error would give that column no type, and the files would not fit.
        return pyarrow.table({name: pyarrow.array(values, TYPES[name]) for name, values in columns.items()})

    def result(self, name: str) -> dict[str, Any]:
        scorer = self.scorer
        try:
            found = image_features(scorer.encoder, load_image(name), scorer.protocol, scorer.read_out.scales)
        except InputError as error:  # of this photograph alone; a fault of the machine ends the task, which is retried
            return {"error": str(error)}
        return {"score": scorer.head(found), "features": found.reshape(-1) if self.features else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="photographs, folders, patterns, or URLs of these")
    parser.add_argument("--out", required=True, help="folder or URL of the Parquet files")
    parser.add_argument(
        "--scorer", default=None, help="a file made by `qpt fit` (default: the one that comes with qpt)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default 2)")
    parser.add_argument("--batch-size", type=int, default=64, help="names that a worker takes at a time (default 64)")
    parser.add_argument("--features", action="store_true", help="also write the features that the score is made of")
    args = parser.parse_args()

    names, faults = find_images(args.images)
    for name, fault in faults.items():
        print(f"{name}: {fault}")
    if not names:
        parser.error("there is no photograph to score")
    ray.init(ignore_reinit_error=True)
    processors = ray.cluster_resources().get("CPU", 0)
    if args.workers >= processors:  # the tasks that write the files would wait for ever
        parser.error(f"--workers must leave one of the cluster's {processors:g} processors free, got {args.workers}")
    rows = ray.data.from_items(
        [{"number": number, "image": name} for number, name in enumerate(names)],
        override_num_blocks=-(-len(names) // args.batch_size),
    )
    scored = rows.map_batches(
        ScoreBatch,
        fn_constructor_args=(args.scorer, args.features),
        batch_size=args.batch_size,
        concurrency=args.workers,
        num_cpus=1,
    )
    scored.write_parquet(args.out)


if __name__ == "__main__":
    main()
