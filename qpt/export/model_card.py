"""The model card: a Markdown page made from the records of a run, a scorer file and an evaluation.

Called by ``qpt export``, with ``model_card.md`` beside this file as its template. Nothing in it is typed by hand, and
no path appears in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.evaluate.features import weights_hash
from qpt.evaluate.scorer import Scorer
from qpt.models import Encoder
from qpt.models.names import OURS
from qpt.version import __version__

_TEMPLATES = Path(__file__).parent


def model_card(
    encoder: Encoder,
    *,
    scorer: Scorer | None = None,
    pretraining: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    files: Sequence[tuple[Path, str]] = (),
    onnx_difference: float | None = None,
) -> str:
    """Return the page as text.

    pretraining: of ``run_record``.  evaluation: a result of ``qpt evaluate``, shown with all its methods.  files:
    exported files and their descriptions.  onnx_difference: of ``export_onnx``.
    """
    about = {
        "arch": encoder.arch,
        "width": encoder.width,
        "name": encoder.description,
        "ours": encoder.arch in OURS,
        "feature_dim": encoder.feature_dim,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "weights_sha256": weights_hash(encoder),
    }
    by_qpt = bool(pretraining) and "encoder" not in (pretraining or {})
    kind = "A photograph in, a quality score out" if scorer else "An encoder for blind image quality assessment"
    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=False, keep_trailing_newline=True, undefined=StrictUndefined
    )
    return pages.get_template("model_card.md").render(
        title=f"QPT {'scorer' if scorer else 'encoder'}: {encoder.description}",
        lead=f"{kind}; the encoder was {'pre-trained without labels by QPT' if by_qpt else 'made elsewhere'}.",
        files=[
            {"name": path.name, "what": what, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path, what in files
        ],
        encoder=about,
        normalise={
            "mean": ", ".join(map(str, IMAGENET_MEAN)),
            "std": ", ".join(map(str, IMAGENET_STD)),
        },
        pretraining=pretraining,
        scorer=scorer,
        evaluation=evaluation,
        onnx_difference=onnx_difference,
        version=__version__,
    )
