"""A set of distorted images with known levels, made by Pillow and NumPy and not by this project's degradations.

``python -m experiments synthetic PHOTOS --out DIR`` distorts photographs that no run was trained on and writes
``DIR/scores.csv`` (image, mos, ref, kind, level) for ``qpt evaluate``. There are no human scores in it: mos is
5 - level, so the order is certain within a kind of distortion and a photograph, and a convention across kinds. It tells
whether an encoder has learnt quality or the engine that it was trained with.
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from qpt.data.images import load_rgb

HELP = "a set of distorted photographs with known levels, made by Pillow"
LEVELS = 5


def _gaussian_blur(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur((0.6, 1.2, 2.0, 3.5, 6.0)[level - 1]))


def _box_blur(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.BoxBlur((1, 2, 3, 5, 8)[level - 1]))


def _jpeg(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return _encoded(image, "JPEG", quality=(45, 28, 17, 10, 5)[level - 1])


def _webp(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return _encoded(image, "WEBP", quality=(40, 22, 11, 5, 0)[level - 1], method=2)


def _encoded(image: Image.Image, form: str, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(file).convert("RGB")


def _white_noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    noisy = pixels + rng.normal(0, (5, 10, 18, 30, 50)[level - 1], pixels.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _salt_and_pepper(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(image)
    struck = rng.random(pixels.shape[:2])
    share = (0.005, 0.01, 0.025, 0.05, 0.1)[level - 1]
    pixels[struck < share / 2] = 0
    pixels[struck > 1 - share / 2] = 255
    return Image.fromarray(pixels)


def _small(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    factor = (1.5, 2, 3, 4.5, 7)[level - 1]
    size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(size, Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BILINEAR)


def _contrast(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance((0.8, 0.62, 0.46, 0.32, 0.2)[level - 1])


def _colour(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Color(image).enhance((0.75, 0.5, 0.3, 0.12, 0.0)[level - 1])


def _dark(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance((0.75, 0.55, 0.38, 0.24, 0.13)[level - 1])


#: name -> (image, level 1 to 5, generator) -> distorted image. 5 is the worst; level 0 is the photograph itself.
DISTORTIONS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "gaussian-blur": _gaussian_blur,
    "box-blur": _box_blur,
    "jpeg": _jpeg,
    "webp": _webp,
    "white-noise": _white_noise,
    "salt-and-pepper": _salt_and_pepper,
    "small": _small,
    "contrast": _contrast,
    "colour": _colour,
    "dark": _dark,
}


def make_set(photos: Sequence[Path], out: Path, *, seed: int = 0) -> int:
    """Write every photograph, and each distortion of it at each level, as PNG, and ``scores.csv``.

    A photograph and its distortions are one group (``ref``). The noise depends on the seed and on the order of the
    photographs. Returns the number of images. Raises FileExistsError if ``out`` holds anything.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"synthetic: out must be an empty folder, got {out}")
    rows = []
    for number, photo in enumerate(photos):
        clean = Image.fromarray(load_rgb(photo))
        versions = {("none", 0): clean}
        for place, (kind, distort) in enumerate(DISTORTIONS.items()):
            for level in range(1, LEVELS + 1):
                rng = np.random.default_rng([seed, number, place, level])
                versions[kind, level] = distort(clean, level, rng)
        for (kind, level), image in versions.items():
            name = f"{number:03d}-{kind}-{level}.png"
            image.save(out / name)
            rows.append((name, LEVELS - level, f"{number:03d}", kind, level))
    with open(out / "scores.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "mos", "ref", "kind", "level"))
        writer.writerows(rows)
    return len(rows)


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0, or 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m experiments synthetic", description=HELP)
    parser.add_argument("photos", type=Path, help="folder of photographs that no run was trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--most", type=int, default=20, help="photographs to take, evenly spaced; at least 3, to split by (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    options = parser.parse_args(arguments)
    known = Image.registered_extensions()
    files = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in known) if options.photos.is_dir() else []
    if len(files) < 3 or options.most < 3:
        what = (
            f"a folder of at least 3 photographs, got {options.photos} with {len(files)}"
            if len(files) < 3
            else f"at least 3, got {options.most}"
        )
        print(f"experiments synthetic: error: {'photos' if len(files) < 3 else 'most'} must be {what}", file=sys.stderr)
        return 2
    chosen = (
        [files[i * len(files) // options.most] for i in range(options.most)] if len(files) > options.most else files
    )
    try:
        count = make_set(chosen, options.out, seed=options.seed)
    except (OSError, ValueError) as error:
        print(f"experiments synthetic: error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out / 'scores.csv'}, {count} images of {len(chosen)} photographs")
    return 0
