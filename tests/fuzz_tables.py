"""Readers of tables and records for the fuzzing: score tables, sheets, splits, results, the records of a run.

Called by ``tests/fuzz_readers.py``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np

from qpt.data.listing import find_images
from qpt.data.tabular import read_matlab, read_sheet
from qpt.evaluate import compare, splits, table
from qpt.evaluate.result import FORMAT
from qpt.runs.first_batch import read_first_batch
from qpt.runs.history import read_history
from qpt.runs.log import FIELDS, last_logged_step, read_log, read_summary
from qpt.runs.observations import BINS, KINDS, read_observations
from tests import fuzz_mutations as damage
from tests.fuzz_files import JSON, Reader, by_suffix, encoded, picture


def make_tables() -> Reader:
    names = [f"{number:02d}.png" for number in range(12)]
    rows = [f"{name},{3 + number / 7:.4f},r{number // 2}" for number, name in enumerate(names)]
    plain = "\n".join(["image,mos,ref", *rows]) + "\n"
    splits_too = "\n".join(
        ["Name,MOS,Official_Split", *(f"{n},{k},{'test' if k > 8 else 'train'}" for k, n in enumerate(names))]
    )

    def read(path: Path) -> None:
        found = table.read_table(path)
        assert np.isfinite(found.mos).all() and len(found.paths) == len(found.mos) >= table.MIN_IMAGES

    files = {
        "plain.csv": plain.encode(),
        "marked.csv": b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode(),
        "split.csv": splits_too.encode(),
        "quoted.csv": plain.replace("00.png", '"00.png"').encode(),
    }
    return Reader(files, damage.mutate_text, read, {n: encoded(picture(seed=k), "PNG") for k, n in enumerate(names)})


def make_sheets() -> Reader:
    from openpyxl import Workbook

    out, book = io.BytesIO(), Workbook()
    for row in [["a title"], [], ["Score", "note", "Image Name"], *([k / 3, None, f"{k}.png"] for k in range(8))]:
        book.active.append(row)
    book.save(out)
    return Reader(
        {"s.xlsx": out.getvalue()}, damage.mutate_zip(_xml), lambda path: read_sheet(path, ("image name", "score"))
    )


def _xml(rng: random.Random, content: bytes) -> bytes:
    way, text = rng.randrange(4), content.decode("utf-8", errors="replace")
    if way == 0:
        text = text.replace(
            *rng.choice(
                [
                    ('r="4"', 'r="900000000"'),
                    ('r="A4"', 'r="ZZZ4"'),
                    ("<row", "<row><row"),
                    ('t="s"', 't="d"'),
                    ('t="n"', 't="e"'),
                    ("<v>1</v>", "<v>99</v>"),
                    ('t="s"', 't="b"'),
                    ('r="5"', 'r="-5"'),
                ]
            )
        )
    elif way == 1:
        entity = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(9)
        )
        text = re_declared(text, entity + "]>").replace("<v>", "<v>&j;", 1)
    elif way == 2:
        text = re_declared(text, '<!DOCTYPE x [<!ENTITY a SYSTEM "http://127.0.0.1:9/x">]>').replace("<t>", "<t>&a;", 1)
    else:
        return damage.mutate_text(rng, content)
    return text.encode(errors="replace")


def re_declared(text: str, declaration: str) -> str:
    """Return an XML text with a document type behind its declaration."""
    head, mark, rest = text.partition("?>")
    return f"{head}{mark}{declaration}{rest}" if mark else declaration + text


def make_mats() -> Reader:
    from scipy.io import savemat

    files = {}
    for name, packed in (("plain.mat", False), ("packed.mat", True)):
        out, cells = io.BytesIO(), np.array([f"{k}.bmp" for k in range(9)], object)
        savemat(out, {"names": cells, "dmos": np.arange(9.0)}, do_compression=packed)
        files[name] = out.getvalue()
    return Reader(files, damage.mutate_bytes, lambda path: read_matlab(path, "names", "dmos"))


def make_splits() -> Reader:
    images = tuple(f"{k}.png" for k in range(12))
    groups = np.arange(12)
    scores = table.ScoreTable("t", images, tuple(map(Path, images)), groups / 3, groups, False, "", ())
    arrays = {}
    for part, rows in (("train", range(8)), ("test", range(8, 12))):
        out = io.BytesIO()
        np.save(out, np.array([list(rows)] * 2, np.int64))
        arrays[f"{part}.npy"] = out.getvalue()
    plain = pickle.dumps({1: {"train": list(range(8)), "val": [8], "test": [9, 10, 11]}}, protocol=2)
    names = "image,split\n" + "".join(f"{name},{'test' if k > 8 else 'train'}\n" for k, name in enumerate(images))
    ways = {".npy": damage.mutate_npy, ".pkl": damage.mutate_bytes, ".csv": damage.mutate_text}
    files = {"train.npy": arrays["train.npy"], "s.pkl": plain, "s.csv": names.encode()}
    return Reader(
        files, by_suffix(ways), lambda path: splits.import_splits(scores, path), {"test.npy": arrays["test.npy"]}
    )


def make_evaluations() -> Reader:
    names = [f"{k}.png" for k in range(8)]
    record = [
        {
            "predictions": [1.0, 2.5, 2.0, 4.0],
            "fits": {"plcc_logistic": [4.0, 1.0, 2.0, 1.0]},
            "srcc": 0.5,
            "plcc_raw": None,
        }
    ] * 2
    split = [
        {"name": "", "test": [0, 1, 2, 3], "train": [4, 5, 6, 7]},
        {"name": "", "test": [4, 5, 6, 7], "train": [0, 1, 2, 3]},
    ]
    result = {
        "format": FORMAT,
        "data": {
            "name": "t",
            "images": 8,
            "groups": 8,
            "image_names": names,
            "group_of_image": list(range(8)),
            "mos": [1.0, 2.0, 3.0, 4.0, 1.5, 2.5, 3.5, 4.5],
            "sha256": "x",
            "split_by": "image",
        },
        "methods": [{"name": name, "regimes": {"all": {"splits": record}}} for name in ("a", "b")],
        "splits": {"all": split},
    }

    def read(path: Path) -> None:
        found = compare.read_result(path)
        compare.compare(found, found, method_a="a", method_b="b")

    return Reader({"r.json": json.dumps(result).encode()}, JSON, read)


def make_records() -> Reader:
    log = "\n".join([",".join(FIELDS), *(",".join(str(k) for _ in FIELDS) for k in (1, 2, 3))]) + "\n"
    numbers = {field.name: 0.5 for field in dataclasses.fields(_observation())} | {kind: [1] * BINS for kind in KINDS}
    observed = "".join(json.dumps({"step": k, **numbers}) + "\n" for k in (1, 2))
    history = json.dumps({"step": 0, "data": "x", "time": "2026-01-01T00:00:00+00:00"}) + "\n"
    out = io.BytesIO()
    np.savez_compressed(
        out, patches=np.zeros((2, 2, 8, 8, 3), np.uint8), photographs=np.arange(2), chains=np.array(["a", "b"])
    )
    files = {"log.csv": log, "observations.jsonl": observed, "history.jsonl": history, "summary.json": '{"steps": 3}'}

    def read(path: Path) -> None:
        faults: list[str] = []
        last_logged_step(path.parent)
        read_log(path.parent, faults), read_summary(path.parent, faults), read_history(path.parent)
        read_observations(path.parent, faults), read_first_batch(path.parent)

    ways = {".pth": damage.mutate_zip(damage.mutate_npy), "": damage.mutate_text}
    return Reader(
        {name: text.encode() for name, text in files.items()} | {"seen.npz": out.getvalue()}, by_suffix(ways), read
    )


def _observation() -> Any:
    from qpt.runs.observations import Observation

    return Observation


def make_lists() -> Reader:
    from qpt.commands.score import _lines

    content = b"a.png\nb c.png\nnested/*.jpg\n[a-z].png\n{a,b}.png\n**/*.png\n"
    return Reader({"l.txt": content}, damage.mutate_text, lambda path: find_images(_lines(path.read_bytes())))
