"""Every reader of files, fed with damaged ones: ``python -m tests.fuzz_readers READER ... --cases N --first SEED``.

``tests/test_fuzz_readers.py`` starts it as a process of its own, which may use 2 GiB more than it has once every reader
has read a sound file, and 20 s of processor time a case; which may start no process and open no connection. A case is
one seed, so a failure is repeated with ``--first SEED --cases 1``. Prints JSON: reader -> [results, refusals], and
exits with 1, naming the seed and the file, at the first case that ends otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import qpt
from qpt.data.faults import ReadError, UnreadableError
from qpt.data.images import load_rgb
from qpt.data.listing import find_images
from qpt.data.sources import open_source
from qpt.data.tabular import read_matlab, read_sheet
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import BackendError, InputError
from qpt.evaluate import compare, features, scorer, splits, table
from qpt.evaluate.result import FORMAT
from qpt.models import build_encoder, load_encoder, load_weights
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT, run_record
from qpt.pretraining.config import PretrainConfig
from qpt.runs.first_batch import read_first_batch
from qpt.runs.history import read_history
from qpt.runs.log import FIELDS, last_logged_step, read_log, read_summary
from qpt.runs.observations import BINS, KINDS, read_observations
from tests import fuzz_mutations as damage

CPU_SECONDS, MEMORY_BYTES = 20, 2 << 30
#: What a process must not do while it reads a file.
_FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.",
    "socket.",
    "urllib.",
    "http.",
    "ftplib.",
    "webbrowser.",
    "ctypes.dlopen",
)


@dataclass
class Reader:
    """files: sound ones, by name.  mutate: damages one of them.  read: raises InputError, or returns.  others: files
    that lie beside it, untouched."""

    files: dict[str, bytes]
    mutate: damage.Mutation
    read: Callable[[Path], object]
    others: dict[str, bytes] = dataclasses.field(default_factory=dict)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _picture(side: int = 24, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side - 4), Image.Resampling.BICUBIC)


def _torch(change: Callable[[random.Random, Any], Any]) -> damage.Mutation:
    """Return a mutation of what torch.save wrote: of the values, or of the archive."""
    archive = damage.mutate_zip(damage.mutate_bytes)

    def mutate(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return archive(rng, content)
        out = io.BytesIO()
        torch.save(change(rng, torch.load(io.BytesIO(content), weights_only=True)), out)
        return out.getvalue()

    return mutate


def _saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _text_or_tree(load: Callable[[bytes], Any], dump: Callable[[Any], str]) -> damage.Mutation:
    def mutate(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return damage.mutate_text(rng, content)
        return dump(damage.mutate_tree(rng, load(content))).encode(errors="surrogatepass")

    return mutate


def _yaml(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree)
    except RecursionError:
        return "a: " + "[" * 900 + "]" * 900
    except yaml.YAMLError:
        return "{}"


_YAML = _text_or_tree(yaml.safe_load, _yaml)
_JSON = _text_or_tree(json.loads, json.dumps)


def _tables() -> Reader:
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
    return Reader(files, damage.mutate_text, read, {n: _encoded(_picture(seed=k), "PNG") for k, n in enumerate(names)})


def _sheets() -> Reader:
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


def _mats() -> Reader:
    from scipy.io import savemat

    files = {}
    for name, packed in (("plain.mat", False), ("packed.mat", True)):
        out, cells = io.BytesIO(), np.array([f"{k}.bmp" for k in range(9)], object)
        savemat(out, {"names": cells, "dmos": np.arange(9.0)}, do_compression=packed)
        files[name] = out.getvalue()
    return Reader(files, damage.mutate_bytes, lambda path: read_matlab(path, "names", "dmos"))


def _splits() -> Reader:
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
        files, _by_suffix(ways), lambda path: splits.import_splits(scores, path), {"test.npy": arrays["test.npy"]}
    )


def _by_suffix(ways: dict[str, damage.Mutation]) -> damage.Mutation:
    """Return a mutation that a file's beginning chooses, for a reader of several formats."""
    magic = {b"\x93NUM": ".npy", b"\x80": ".pkl", b"PK": ".pth", b"\x89PNG": ".png"}

    def mutate(rng: random.Random, content: bytes) -> bytes:
        found = next((suffix for start, suffix in magic.items() if content.startswith(start) and suffix in ways), None)
        return ways[found or list(ways)[-1]](rng, content)

    return mutate


def _spaces() -> Reader:
    own = {
        "ops": [
            "hue",
            {"name": "blur", "probability": 0.8, "ops": ["motion_blur", {"op": "gaussian_blur", "weight": 3}]},
            {"op": "jpeg", "levels": {"quality": {"by_level": [95, 30]}}},
        ],
        "max_ops": 3,
        "level_weights": [5, 4, 3, 2, 1],
        "pristine": 0.05,
        "then": [{"ops": [{"op": "gaussian_noise", "levels": {"std": {"uniform": [1, 9]}}}]}],
    }
    files = {
        "preset.yaml": DegradationSpace.preset("qpt").to_yaml().encode(),
        "b.yaml": DegradationSpace.preset("bsrgan").to_yaml().encode(),
        "own.yaml": yaml.safe_dump(own).encode(),
    }

    def read(path: Path) -> None:
        DegradationSpace.from_yaml(path).sample(2, views=2, generator=torch.Generator().manual_seed(0))

    return Reader(files, _YAML, read)


def _configs() -> Reader:
    config = yaml.safe_dump({**dataclasses.asdict(PretrainConfig("d", "o", width=8)), "data": "d", "out": "o"})
    return Reader({"c.yaml": config.encode()}, _YAML, PretrainConfig.load)


def _encoder(width: int = 2) -> Any:
    return build_encoder("resnet18", width).eval()


def _checkpoints() -> Reader:
    config = dataclasses.asdict(PretrainConfig("data", "out", arch="resnet18", width=2))
    state = {
        "format": CHECKPOINT_FORMAT,
        "config": config,
        "encoder": _encoder().state_dict(),
        "step": 3,
        "table": "t",
        "unreadable": [[1, "cut"]],
        "seconds": 1.5,
        "data_fingerprint": "f",
        "threads": 1,
        "learner": {},
    }

    def read(path: Path) -> None:
        load_encoder(path)
        json.dumps(run_record(path), default=str)

    return Reader({"c.pt": _saved(state)}, _torch(damage.mutate_tree), read)


def _scorers() -> Reader:
    encoder = _encoder()
    made = scorer.Scorer(
        encoder,
        features.READ_OUTS[0],
        features.FeatureProtocol(),
        np.zeros(0),
        1.0,
        0.0,
        5.0,
        {"name": "t", "images": 12},
        calibration=scorer.LogisticCalibration(0.0, 5.0, 2.0, 1.0),
        seen=(1.0, 4.0),
    )
    blank = np.zeros((1, made.read_out.scales, 2, sum(encoder.stage_dims)), np.float32)
    made.weights = np.full(made.read_out.select(blank, encoder.stage_dims).shape[1], 0.01)
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "s.pt")
        content = (Path(folder) / "s.pt").read_bytes()
    pixels = np.asarray(_picture(40))

    def read(path: Path) -> None:
        found = scorer.Scorer.load(path)
        if found.protocol.crop_px < 1000:
            float(found(pixels)), found.extrapolates(1.0), found.opinions

    return Reader({"s.pt": content}, _torch(damage.mutate_tree), read)


def _weights() -> Reader:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in _encoder().state_dict().items()}
    ways = {".pth": _torch(damage.mutate_tree), ".safetensors": damage.mutate_safetensors}
    files = {"w.safetensors": save(state), "w.pth": _saved(state), "m.pth": _saved({"state_dict": state})}
    return Reader(files, _by_suffix(ways), lambda path: load_weights(_encoder(), path))


def _programs() -> Reader:
    program = DegradationSpace.preset("qpt").sample(2, views=2, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "p.npz")
        content = (Path(folder) / "p.npz").read_bytes()
    images = torch.zeros((2, 16, 16, 3), dtype=torch.uint8)

    def read(path: Path) -> None:
        loaded = Program.load(path)
        if len(loaded) < 100:
            qpt.degrade(images, loaded, threads=1)

    return Reader({"p.npz": content}, damage.mutate_zip(damage.mutate_npy), read)


def _shards() -> Reader:
    files = {}
    for name, form in (("gnu.tar", tarfile.GNU_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for k in range(4):
                content = _encoded(_picture(seed=k), "JPEG")
                info = tarfile.TarInfo(("long/" * 30 if k == 1 else "") + f"{k}é.jpg")
                info.size = len(content)
                if form == tarfile.PAX_FORMAT and k == 2:
                    info.pax_headers = {"comment": "x", "mtime": "1.5"}
                tar.addfile(info, io.BytesIO(content))
        files[name] = out.getvalue()

    def read(path: Path) -> None:
        source = open_source(path)
        source.fingerprint(), list(source.lines())
        for index in range(min(len(source), 6)):
            source.name(index)
            try:
                load_rgb(source.open(index))
            except ReadError:  # of the machine, not of the file
                raise
            except (UnreadableError, OSError):  # what a run counts as unreadable; see qpt.data.regions
                continue

    return Reader(files, damage.mutate_tar, read)


def _images() -> Reader:
    exif = Image.Exif()
    exif[274] = 6
    picture, grey16 = _picture(), Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    more = {"save_all": True, "append_images": [_picture(seed=1)]}
    files = {
        "a.jpg": _encoded(picture, "JPEG", exif=exif),
        "progressive.jpg": _encoded(picture, "JPEG", progressive=True, comment=b"x"),
        "cmyk.jpg": _encoded(picture.convert("CMYK"), "JPEG"),
        "a.png": _encoded(picture, "PNG", exif=exif),
        "deep.png": _encoded(grey16, "PNG"),
        "palette.png": _encoded(picture.quantize(16), "PNG"),
        "a.gif": _encoded(picture, "GIF", **more),
        "a.webp": _encoded(picture, "WEBP", **more),
        "lossless.webp": _encoded(picture, "WEBP", lossless=True, exif=exif),
        "a.tif": _encoded(picture, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _encoded(picture, "TIFF", compression="jpeg"),
        "zip.tif": _encoded(grey16, "TIFF", compression="tiff_deflate"),
        "a.bmp": _encoded(picture, "BMP"),
        "a.ppm": _encoded(picture, "PPM"),
        "a.jp2": _encoded(picture, "JPEG2000"),
        "a.avif": _encoded(picture, "AVIF"),
    }

    def read(path: Path) -> None:
        pixels = load_rgb(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size

    return Reader(files, _by_suffix({".png": damage.mutate_png, "": damage.mutate_bytes}), read)


def _evaluations() -> Reader:
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

    return Reader({"r.json": json.dumps(result).encode()}, _JSON, read)


def _records() -> Reader:
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
        {name: text.encode() for name, text in files.items()} | {"seen.npz": out.getvalue()}, _by_suffix(ways), read
    )


def _observation() -> Any:
    from qpt.runs.observations import Observation

    return Observation


def _lists() -> Reader:
    from qpt.commands.score import _lines

    content = b"a.png\nb c.png\nnested/*.jpg\n[a-z].png\n{a,b}.png\n**/*.png\n"
    return Reader({"l.txt": content}, damage.mutate_text, lambda path: find_images(_lines(path.read_bytes())))


READERS = {
    "tables": _tables,
    "sheets": _sheets,
    "mats": _mats,
    "splits": _splits,
    "spaces": _spaces,
    "configs": _configs,
    "checkpoints": _checkpoints,
    "scorers": _scorers,
    "weights": _weights,
    "programs": _programs,
    "shards": _shards,
    "images": _images,
    "evaluations": _evaluations,
    "records": _records,
    "lists": _lists,
}


def _refused(reader: Reader, path: Path) -> bool:
    """Return whether the reader refuses a file, with words that fit on a screen."""
    try:
        reader.read(path)
    except (InputError, BackendError) as error:
        said = str(error)
        if not 0 < len(said.strip()) < 20_000:
            raise AssertionError(f"{len(said)} characters: {said[:500]}") from None
        return True
    return False


class Forbidden(BaseException):
    """Raised when a reader starts a process or opens a connection."""


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN) and event not in ("socket.gethostname", "ctypes.dlopen"):
        raise Forbidden(f"{event} {arguments!r:.200}")


def run(names: list[str], cases: int, first: int) -> dict[str, list[int]]:
    """Run the cases of each reader; returns reader -> [results, refusals]. Ends the process if any ends otherwise."""
    readers = {name: READERS[name]() for name in names}
    places = {name: Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=os.environ.get("FUZZ_FOLDER"))) for name in names}
    warnings.simplefilter("ignore")
    for name, reader in readers.items():  # imports, and what is allocated once
        os.chdir(places[name])
        for file, content in [*reader.others.items(), *reader.files.items()]:
            Path(file).write_bytes(content)
        for file in reader.files:
            reader.read(places[name] / file)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    faulthandler.enable()
    faulthandler.register(signal.SIGXCPU, all_threads=True, chain=True)
    sys.addaudithook(_forbid)
    counts, kinds = {}, set()
    for name, reader in readers.items():
        os.chdir(places[name])
        counts[name] = [0, 0]
        for seed in range(first, first + cases):
            rng = random.Random(f"{name} {seed}")
            file = rng.choice(list(reader.files))
            path = places[name] / file
            path.write_bytes(reader.mutate(rng, reader.files[file]))
            (places[name].parent / "case").write_text(f"{name} --first {seed}: {path}\n")
            spent = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            faulthandler.dump_traceback_later(600, exit=True)  # one that waits forever
            try:
                counts[name][_refused(reader, path)] += 1
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                if (kind := (type(error), place.filename, place.lineno)) not in kinds:
                    kinds.add(kind)
                    print(f"fuzz: {name} --first {seed} --cases 1: {path}", file=sys.stderr)
                    traceback.print_exception(type(error), error, error.__traceback__)
            path.write_bytes(reader.files[file])
    faulthandler.cancel_dump_traceback_later()
    if kinds:
        sys.stderr.flush()
        os._exit(1)  # what was forbidden once may be tried again when the interpreter ends
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", default=list(READERS))
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(args.readers, args.cases, args.first)))


if __name__ == "__main__":
    main()
