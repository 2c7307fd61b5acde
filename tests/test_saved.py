"""Files written by version 0.1.0, before its modules moved, still load and give the numbers they gave then.

``tests/saved/`` holds a run interrupted after step 2 of 4, a scorer and a program. ``expected.json`` holds what
that version computed from them. The images are those of ``tests/labelled.py``.
"""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qpt import Program, Scorer, degrade
from qpt.cli import main
from tests.labelled import image_regions, one_thread, write_set

__all__ = ["one_thread"]  # a fixture

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


def test_a_run_resumes_and_evaluates_to_the_same_numbers(tmp_path: Path) -> None:
    scores = write_set(tmp_path / "set")
    run = shutil.copytree(SAVED / "run", tmp_path / "run")
    assert main(["pretrain", str(tmp_path / "set" / "images"), "--out", str(run), "--resume"]) == 0
    with open(run / "log.csv", newline="") as stream:
        losses = {row["step"]: float(row["loss"]) for row in csv.DictReader(stream)}
    # Another processor rounds convolutions otherwise: the sums agree to about 1e-5.
    assert {step: losses[step] for step in EXPECTED["losses"]} == pytest.approx(EXPECTED["losses"], rel=1e-3)

    table = ["--csv", str(scores), "--crops", "2", "--crop-px", "96", "--cache", str(tmp_path / "features")]
    # The list of read-outs and the rule that chooses among them have changed since; what a read-out gives has not.
    fixed = ["--read-outs", *{expected["chosen_read_out"] for expected in EXPECTED["evaluation"].values()}]
    assert main(["evaluate", str(run), *table, "--untrained", "0", *fixed, "--out", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    for regime, expected in EXPECTED["evaluation"].items():
        first = result["methods"][0]["regimes"][regime]["splits"][0]
        assert first["chosen_read_out"] == expected["chosen_read_out"]
        # Another torch or a folded encoder rounds so too, which a prediction near 0, a sum of large terms, shows more.
        near = 1e-4 * max(expected["predictions"])
        assert first["predictions"] == pytest.approx(expected["predictions"], rel=1e-3, abs=near)
        assert first["srcc"] == pytest.approx(expected["srcc"], abs=0.05)


def test_a_scorer_gives_the_same_scores() -> None:
    scorer = Scorer.load(SAVED / "scorer.pt")
    scores = {name: float(scorer(image)) for name, image in image_regions().items()}
    assert scores == pytest.approx(EXPECTED["scores"], rel=1e-4)


def test_a_program_gives_the_same_bytes() -> None:
    images = torch.from_numpy(np.stack([image[:, :96] for image in image_regions().values()]))
    degraded = degrade(images, Program.load(SAVED / "program.npz"))
    assert hashlib.sha256(degraded.numpy().tobytes()).hexdigest() == EXPECTED["degraded_sha256"]
