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
import random
import resource
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import qpt
from qpt.data.faults import ReadError, UnreadableError
from qpt.data.images import load_rgb
from qpt.data.sources import open_source
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import BackendError, InputError
from qpt.evaluate import features, scorer
from qpt.models import build_encoder, load_encoder, load_weights
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT, run_record
from qpt.pretraining.config import PretrainConfig
from tests import fuzz_mutations as damage
from tests.fuzz_files import YAML, Reader, by_suffix, encoded, picture, saved, torch_mutation
from tests.fuzz_tables import (
    make_evaluations,
    make_lists,
    make_mats,
    make_records,
    make_sheets,
    make_splits,
    make_tables,
)

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

    return Reader(files, YAML, read)


def _configs() -> Reader:
    config = yaml.safe_dump({**dataclasses.asdict(PretrainConfig("d", "o", width=8)), "data": "d", "out": "o"})
    return Reader({"c.yaml": config.encode()}, YAML, PretrainConfig.load)


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

    return Reader({"c.pt": saved(state)}, torch_mutation(damage.mutate_tree), read)


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
    pixels = np.asarray(picture(40))

    def read(path: Path) -> None:
        found = scorer.Scorer.load(path)
        if found.protocol.crop_px < 1000:
            float(found(pixels)), found.extrapolates(1.0), found.opinions

    return Reader({"s.pt": content}, torch_mutation(damage.mutate_tree), read)


def _weights() -> Reader:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in _encoder().state_dict().items()}
    ways = {".pth": torch_mutation(damage.mutate_tree), ".safetensors": damage.mutate_safetensors}
    files = {"w.safetensors": save(state), "w.pth": saved(state), "m.pth": saved({"state_dict": state})}
    return Reader(files, by_suffix(ways), lambda path: load_weights(_encoder(), path))


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
                content = encoded(picture(seed=k), "JPEG")
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
    photo, grey16 = picture(), Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    more = {"save_all": True, "append_images": [picture(seed=1)]}
    files = {
        "a.jpg": encoded(photo, "JPEG", exif=exif),
        "progressive.jpg": encoded(photo, "JPEG", progressive=True, comment=b"x"),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "a.png": encoded(photo, "PNG", exif=exif),
        "deep.png": encoded(grey16, "PNG"),
        "palette.png": encoded(photo.quantize(16), "PNG"),
        "a.gif": encoded(photo, "GIF", **more),
        "a.webp": encoded(photo, "WEBP", **more),
        "lossless.webp": encoded(photo, "WEBP", lossless=True, exif=exif),
        "a.tif": encoded(photo, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(photo, "TIFF", compression="jpeg"),
        "zip.tif": encoded(grey16, "TIFF", compression="tiff_deflate"),
        "a.bmp": encoded(photo, "BMP"),
        "a.ppm": encoded(photo, "PPM"),
        "a.jp2": encoded(photo, "JPEG2000"),
        "a.avif": encoded(photo, "AVIF"),
    }

    def read(path: Path) -> None:
        pixels = load_rgb(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size

    return Reader(files, by_suffix({".png": damage.mutate_png, "": damage.mutate_bytes}), read)


READERS = {
    "tables": make_tables,
    "sheets": make_sheets,
    "mats": make_mats,
    "splits": make_splits,
    "spaces": _spaces,
    "configs": _configs,
    "checkpoints": _checkpoints,
    "scorers": _scorers,
    "weights": _weights,
    "programs": _programs,
    "shards": _shards,
    "images": _images,
    "evaluations": make_evaluations,
    "records": make_records,
    "lists": make_lists,
}


#: Readers of files that may name images behind URLs, which are read: here of a scheme that nothing reads.
NAME_URLS = ("tables", "splits", "lists")


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
            content = reader.mutate(rng, reader.files[file])
            if name in NAME_URLS:
                content = content.replace(b"http://", b"gopher://")
            path.write_bytes(content)
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
