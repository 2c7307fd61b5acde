"""The examples: what they compute is what one process computes.

Ray is no dependency of the tests: QPT_RAY_PYTHON names a Python that has it, besides what qpt needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpt import Scorer
from qpt.evaluate.features import image_features
from qpt.evaluate.image_crops import load_image

ROOT = Path(__file__).resolve().parent.parent
#: Runs an example on four logical processors, whatever the machine has, and prints what it wrote.
RUN = """
import json, runpy, sys
import pyarrow.parquet
import ray
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
ray.shutdown()
print(json.dumps(pyarrow.parquet.read_table(sys.argv[sys.argv.index("--out") + 1]).to_pylist()))
"""


@pytest.mark.timeout(900)
def test_scores_by_ray_are_those_of_one_process(long: bool, tmp_path: Path) -> None:
    python = os.environ.get("QPT_RAY_PYTHON", sys.executable)
    if not long:
        pytest.skip("starts a cluster: QPT_LONG=1 asks for it")
    if subprocess.run([python, "-c", "import ray.data"], capture_output=True).returncode:
        pytest.skip("needs ray[data]: QPT_RAY_PYTHON names a Python that has it")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (40 + number, 64, 3), np.uint8)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = [photos, "--out", tmp_path / "out", "--workers", 2, "--batch-size", 2, "--features"]
    done = subprocess.run(
        [python, "-c", RUN, "examples/score_with_ray.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    rows = sorted(json.loads(done.stdout.splitlines()[-1]), key=lambda row: row["number"])
    assert [Path(row["image"]).name for row in rows] == [*(f"{number}.png" for number in range(7)), "broken.png"]
    assert rows[-1]["score"] is None and "broken.png" in rows[-1]["error"]
    scorer = Scorer.load()
    for row in rows[:-1]:
        assert row["error"] is None
        assert row["score"] == pytest.approx(scorer(row["image"]), rel=1e-6)
        features = image_features(scorer.encoder, load_image(row["image"]), scorer.protocol, scorer.read_out.scales)
        np.testing.assert_allclose(row["features"], features.reshape(-1), rtol=1e-4, atol=1e-5)
