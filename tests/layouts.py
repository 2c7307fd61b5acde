"""Miniature copies of ten official data set layouts: the same file names, columns, header rows and letter cases.

Every image is a hard link to one small file of its format, since loaders look at headers only. Scores rise with a
counter, so that a test can tell which row became which. Sizes are arguments where a full-size table is not needed.
"""

import csv
import os
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image
from scipy.io import savemat

LIVE = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
CSIQ = {
    "noise": ("awgn", "AWGN"), "blur": ("blur", "BLUR"), "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"), "jpeg": ("jpeg", "JPEG"), "jpeg 2000": ("jpeg2000", "jpeg2000"),
}  # fmt: skip


class Root:
    """A root folder that images are linked into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        self._tiny: dict[str, Path] = {}

    def image(self, relative: str) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        if suffix not in self._tiny:
            Image.new("RGB", (32, 32), (90, 120, 150)).save(path)
            self._tiny[suffix] = path
        else:
            os.link(self._tiny[suffix], path)

    def text(self, relative: str, text: str) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def csv(self, relative: str, rows) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    def sheets(self, relative: str, **sheets) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        book = Workbook()
        book.remove(book.active)
        for title, rows in sheets.items():
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
        book.save(path)

    def matlab(self, relative: str, **variables) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, variables)


def cells(words) -> np.ndarray:
    """Return an (n,) object array: a MATLAB cell array of text."""
    array = np.empty(len(words), object)
    array[:] = list(words)
    return array


def live(root: Path) -> Root:
    """Write 982 images; the first 203 multiples of 4 are pristine; "realigned" scores are 0.05 above the original."""
    made = Root(root)
    for kind, count in LIVE.items():
        for i in range(1, count + 1):
            made.image(f"{kind}/img{i}.bmp")
    pristine = np.zeros((1, 982), np.uint8)
    pristine[0, np.arange(203) * 4] = 1
    refs = cells([f"ref{i % 29}.bmp" for i in range(982)])[None]
    made.matlab("dmos.mat", dmos=np.arange(982.0)[None] / 10, orgs=pristine)
    made.matlab(
        "dmos_realigned.mat",
        dmos_new=np.arange(982.0)[None] / 10 + 0.05, dmos_std=np.ones((1, 982)), orgs=pristine,
    )  # fmt: skip
    made.matlab("refnames_all.mat", refnames_all=refs)
    return made


def csiq(root: Path) -> Root:
    """Write three references, one of them the number 1600; the header in row 4, three empty columns before it."""
    made = Root(root)
    rows: list[list] = [["CSIQ subjective data"], [], [],
                        [None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]]  # fmt: skip
    for image in (1600, "aerial_city", "boston"):
        for index, (kind, (folder, word)) in enumerate(CSIQ.items(), start=1):
            for level in (1, 2, 3):
                made.image(f"dst_imgs/{folder}/{image}.{word}.{level}.png")
                rows.append([None, None, None, image, index, kind, level, 0.1, round(0.01 * len(rows), 3)])
    made.sheets("csiq.DMOS.xlsx", all_by_type=[["not this one"]], all_by_image=rows)
    return made


def tid2013(root: Path) -> Root:
    """Write all 25 x 24 x 5 in mixed case: i01 or I02 in the score file, I01_01_1.bmp or i25_24_5.bmp on disk."""
    made = Root(root)
    lines = []
    for ref in range(1, 26):
        for kind in range(1, 25):
            for level in range(1, 6):
                made.image(f"distorted_images/{'i' if ref > 20 else 'I'}{ref:02d}_{kind:02d}_{level}.bmp")
                lines.append(f"{len(lines) * 0.003:.5f} {'I' if ref % 2 else 'i'}{ref:02d}_{kind:02d}_{level}.bmp\n")
    made.text("mos_with_names.txt", "".join(lines))
    return made


def kadid10k(root: Path) -> Root:
    """Write all 81 x 25 x 5."""
    made = Root(root)
    rows: list[list] = [["dist_img", "ref_img", "dmos", "var"]]
    for ref in range(1, 82):
        made.image(f"images/I{ref:02d}.png")
        for kind in range(1, 26):
            for level in range(1, 6):
                name = f"I{ref:02d}_{kind:02d}_{level:02d}.png"
                made.image(f"images/{name}")
                rows.append([name, f"I{ref:02d}.png", f"{1 + 4 * len(rows) / 10126:.4f}", 0.5])
    made.csv("dmos.csv", rows)
    return made


def clive(root: Path) -> Root:
    """Write 1,169 entries; the first seven are in trainingImages."""
    made = Root(root)
    names = [f"t{i}.bmp" for i in range(1, 8)] + [f"{i}.{'JPG' if i % 3 else 'bmp'}" for i in range(1, 1163)]
    for i, name in enumerate(names):
        made.image(f"Images/trainingImages/{name}" if i < 7 else f"Images/{name}")
    made.matlab("Data/AllImages_release.mat", AllImages_release=cells(names)[:, None])
    made.matlab("Data/AllMOS_release.mat", AllMOS_release=np.arange(1169.0)[None] / 12)
    made.matlab("Data/AllStdDev_release.mat", AllStdDev_release=np.ones((1, 1169)))
    return made


def koniq10k(root: Path, size: str = "1024x768", images: int = 10073) -> Root:
    """The official set file is in another order and has its own MOS column; 7,058 / 1,000 / 2,015 of 10,073."""
    made = Root(root)
    names = [f"{10004473376 + 7 * i}.jpg" for i in range(images)]
    train, val = round(images * 7058 / 10073), round(images * 1000 / 10073)
    sets = ["training"] * train + ["validation"] * val + ["test"] * (images - train - val)
    scores: list[list] = [["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]]
    official: list[list] = [["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"]]
    for i, name in enumerate(names):
        made.image(f"{size}/{name}")
        counts = [1, 2, 3, 4, 5, 15]
        scores.append([name, *counts, f"{1 + 4 * i / images:.6f}", 0.5, f"{100 * i / images:.6f}"])
        official.append([name, *counts, f"{100 * i / images:.6f}", 12.5, sets[i]])
    made.csv("koniq10k_scores_and_distributions.csv", scores)
    made.csv("koniq10k_distributions_sets.csv", [official[0], *reversed(official[1:])])
    return made


def spaq(root: Path, images: int = 30) -> Root:
    made = Root(root)
    rows: list[list] = [["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]]
    for i in range(1, images + 1):
        made.image(f"TestImage/{i:05d}.jpg")
        rows.append([f"{i:05d}.jpg", i if i % 2 else i + 0.25, 50, 50, 50, 50, 50])
    made.sheets("Annotations/MOS and Image attribute scores.xlsx", Sheet1=rows)
    made.sheets("Annotations/Scene category labels.xlsx", Sheet1=[["Image name", "Animal"]])
    return made


def flive(root: Path, stripped: bool = False, parts: tuple[int, int, int, int] = (40, 12, 6, 2)) -> Root:
    """Write images into three folders, parts for train, val, test and in no file; stripped: no < and > in names."""
    made = Root(root)
    train, padding, test_end, images = np.cumsum(parts).tolist()
    names = [f"{('blur_dataset', 'EE371R', 'voc_emotic_ava')[i % 3]}/picture{i}.jpg" for i in range(images)]
    for name in names:
        made.image(f"database/{name}")
    made.csv("labels_image.csv", [["name", "mos", "mos_std"], *([n, 20 + i, 3] for i, n in enumerate(names))])
    of_padded = enumerate(names[:padding])
    padded = [["name_image", "mos_image", "is_valid"], *([n, 1, str(i >= train)] for i, n in of_padded)]
    test = [["name_image", "mos_image"], *([n, 1] for n in names[padding:test_end])]
    made.csv("labels=640_padded.csv" if stripped else "labels<=640_padded.csv", padded)
    made.csv("labels640.csv" if stripped else "labels>640.csv", test)
    made.csv("labels_patch.csv", [["name", "mos"], [f"{names[0]}_patch_1.jpg", 10]])
    return made


def bid(root: Path) -> Root:
    """Write numbers with gaps, .JPG in the loaders' rule and .jpg on disk for some."""
    made = Root(root)
    rows: list[list] = [["Image Number", "Average Subjective Grade", "std"]]
    for i in (*range(1, 13), 586, 1000):
        made.image(f"DatabaseImage{i:04d}.{'JPG' if i % 2 else 'jpg'}")
        rows.append([i, i / 250, 0.3])
    made.sheets("DatabaseGrades.xlsx", Plan1=rows)
    return made


def pipal(root: Path) -> Root:
    """Write four references with a label file each; the parts of the images lie in different folders."""
    made = Root(root)
    for ref in (1, 2, 3, 200):
        made.image(f"Train_Ref/A{ref:04d}.bmp")
        names = [f"A{ref:04d}_{kind:02d}_{variant:02d}.bmp" for kind in range(7) for variant in range(2)]
        for i, name in enumerate(names):
            made.image(f"{('Distortion_1', 'Distortion_2')[i % 2]}/{name}")
        text = "".join(f"{name},{1000.5 + ref + 10 * i}\n" for i, name in enumerate(names))
        made.text(f"Train_Label/A{ref:04d}.txt", text)
    return made
