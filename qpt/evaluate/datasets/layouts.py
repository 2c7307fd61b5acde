"""The official layouts of ten IQA data sets: one function for each set, from a root folder to rows.

Called through the registry in ``qpt.evaluate.datasets``. A function reads the score files and names the images, but
opens none of them: ``qpt.evaluate.table.assemble`` checks files and scores. Rows come in the order of the official
score file, which published lists of row numbers refer to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qpt.data.tabular import number, read_matlab, read_records, read_sheet, read_text
from qpt.errors import InputError
from qpt.evaluate.datasets.folder import Folder
from qpt.evaluate.table import Row

LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
CLIVE_TRAINING = 7  # entries that are training images of its study

# dst_type in CSIQ's sheet -> (folder in dst_imgs, word in the file name)
CSIQ_TYPES = {
    "noise": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}

# The names that the authors' papers give to types 1, 2, ...
TID2013_TYPES = (
    "additive Gaussian noise", "additive noise in colour components", "spatially correlated noise", "masked noise",
    "high frequency noise", "impulse noise", "quantisation noise", "Gaussian blur", "image denoising",
    "JPEG compression", "JPEG2000 compression", "JPEG transmission errors", "JPEG2000 transmission errors",
    "non eccentricity pattern noise", "local block-wise distortions", "mean shift", "contrast change",
    "change of colour saturation", "multiplicative Gaussian noise", "comfort noise",
    "lossy compression of noisy images", "colour quantisation with dither", "chromatic aberrations",
    "sparse sampling and reconstruction",
)  # fmt: skip
KADID10K_TYPES = (
    "Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantisation",
    "colour saturation 1", "colour saturation 2", "JPEG2000", "JPEG", "white noise", "white noise in colour component",
    "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
    "non-eccentricity patch", "pixelate", "quantisation", "colour block", "high sharpen", "contrast change",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """The content of a data set. rows: in official order; a string is a problem.  notes: choices made, in words."""

    rows: Sequence[Row | str]
    split_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Options = Mapping[str, str]


def live(folder: Folder, options: Options) -> Reading:
    """Read LIVE release 2: the scores of 982 images by position in five folders.

    The 203 pristine among them have orgs == 1 and are left out. Option scores: "realigned" is dmos_realigned.mat,
    "original" is dmos.mat.
    """
    file, variable = {
        "realigned": ("dmos_realigned.mat", "dmos_new"),
        "original": ("dmos.mat", "dmos"),
    }[options["scores"]]
    scores_file, refs_file = folder.need(file, "refnames_all.mat")
    scores, pristine = read_matlab(scores_file, variable, "orgs")
    (refs,) = read_matlab(refs_file, "refnames_all")
    images = [f"{kind}/img{i}.bmp" for kind, count in LIVE_FOLDERS.items() for i in range(1, count + 1)]
    for path, values in ((scores_file, scores), (scores_file, pristine), (refs_file, refs)):
        if len(values) != len(images):
            raise InputError(
                f"dataset: {path} must hold {len(images)} values, one for each image of {', '.join(LIVE_FOLDERS)}, "
                f"got {len(values)}"
            )
    rows = [
        Row(f"entry {i + 1}", image, folder.find(image), str(scores[i]), str(refs[i]).lower(), image.split("/")[0])
        for i, image in enumerate(images)
        if not pristine[i]
    ]
    dropped = len(images) - len(rows)
    return Reading(rows, notes=(f"scores: {variable} in {file}", f"left out: {dropped} pristine images (orgs == 1)"))


def csiq(folder: Folder, options: Options) -> Reading:
    """Read CSIQ: sheet all_by_image of csiq.DMOS.xlsx, whose header is in row 4; one image is called 1600."""
    (file,) = folder.need("csiq.DMOS.xlsx")
    rows: list[Row | str] = []
    columns = ("image", "dst_type", "dst_lev", "dmos")
    for row, fields in read_sheet(file, columns, sheet="all_by_image"):
        where = f"row {row}"
        image, kind, level, dmos = (fields[column] for column in columns)
        if kind.lower() not in CSIQ_TYPES or not level.isdecimal():
            rows.append(f"{where}: dst_type and dst_lev must be a type and a level of CSIQ, got {kind!r}, {level!r}")
            continue
        inside, word = CSIQ_TYPES[kind.lower()]
        name = f"dst_imgs/{inside}/{image}.{word}.{level}.png"
        rows.append(Row(where, name, folder.find(name), dmos, image.lower(), kind.lower(), int(level)))
    return Reading(rows, notes=("scores: dmos in csiq.DMOS.xlsx",))


def tid2013(folder: Folder, options: Options) -> Reading:
    """Read TID2013: "score name" on each line of mos_with_names.txt, distorted_images/iRR_TT_L.bmp in mixed case."""
    (file,) = folder.need("mos_with_names.txt")
    rows: list[Row | str] = []
    for where, words in _lines(file):
        if len(words) != 2:
            rows.append(f"{where}: must be a score and a name, got {' '.join(words)!r}")
            continue
        name = f"distorted_images/{words[1]}"
        rows.append(_coded_row(folder, where, name, words[0], TID2013_TYPES))
    return Reading(rows, notes=("scores: mos_with_names.txt",))


def kadid10k(folder: Folder, options: Options) -> Reading:
    """Read KADID-10k: dmos.csv. Its "dmos" is a mean of ratings in which 5 is "imperceptible": higher is better."""
    (file,) = folder.need("dmos.csv")
    rows: list[Row | str] = []
    for line, fields in read_records(file, ("dist_img", "ref_img", "dmos")):
        row = _coded_row(folder, f"line {line}", f"images/{fields['dist_img']}", fields["dmos"], KADID10K_TYPES)
        if isinstance(row, Row) and row.ref != PurePosixPath(fields["ref_img"]).stem.lower():
            row = f"{row.where}: ref_img must be the original of {fields['dist_img']}, got {fields['ref_img']!r}"
        rows.append(row)
    return Reading(rows, notes=("scores: dmos in dmos.csv, where higher is better",))


def clive(folder: Folder, options: Options) -> Reading:
    """Read LIVE in the Wild: MATLAB files; the first seven entries, training images of its study, are left out."""
    files = [(f"Data/{stem}.mat", f"{stem}.mat") for stem in ("AllImages_release", "AllMOS_release")]
    images_file, scores_file = folder.need(*files)
    (images,) = read_matlab(images_file, "AllImages_release")
    (scores,) = read_matlab(scores_file, "AllMOS_release")
    if len(images) != len(scores) or len(images) <= CLIVE_TRAINING:
        raise InputError(f"dataset: {scores_file} must score each of {len(images)} images, got {len(scores)} scores")
    rows = [
        Row(f"entry {i + 1}", f"Images/{images[i]}", folder.find(f"Images/{images[i]}"), str(scores[i]))
        for i in range(CLIVE_TRAINING, len(images))
    ]
    return Reading(
        rows,
        notes=("scores: AllMOS_release.mat", f"left out: the first {CLIVE_TRAINING}, training images"),
    )


def koniq10k(folder: Folder, options: Options) -> Reading:
    """Read KonIQ-10k at either size, with the official split where its file is there.

    Option scores: MOS is 1 to 5, MOS_zscore 0 to 100.
    """
    (file,) = folder.need("koniq10k_scores_and_distributions.csv")
    inside = options["images"]
    sets: dict[str, str] = {}
    sets_file = folder.find("koniq10k_distributions_sets.csv")
    if sets_file.is_file():
        sets = {fields["image_name"]: fields["set"] for _, fields in read_records(sets_file, ("image_name", "set"))}
    parts = {"training": 0, "validation": 1, "test": 2}
    rows: list[Row | str] = []
    for line, fields in read_records(file, ("image_name", options["scores"])):
        image = fields["image_name"]
        part = parts.get(sets.get(image, ""))
        if sets and part is None:
            rows.append(
                f"line {line}: {image} must be in a set of {sets_file.name}, got {sets.get(image, 'no line')!r}"
            )
        name = f"{inside}/{image}"
        rows.append(Row(f"line {line}", name, folder.find(name), fields[options["scores"]], parts=(part,)))
    notes = (f"scores: {options['scores']} in {file.name}", f"images: {inside}")
    if sets:
        return Reading(rows, ("official",), notes)
    return Reading(rows, notes=(*notes, f"no {sets_file.name}: the table has no official split"))


def spaq(folder: Folder, options: Options) -> Reading:
    """Read SPAQ: the sheet of scores and attributes; images of phones, up to tens of megapixels."""
    (file,) = folder.need(
        ("Annotations/MOS and Image attribute scores.xlsx", "MOS and Image attribute scores.xlsx"),
    )
    rows = [
        Row(f"row {row}", name := f"TestImage/{fields['Image name']}", folder.find(name), fields["MOS"])
        for row, fields in read_sheet(file, ("Image name", "MOS"))
    ]
    return Reading(rows, notes=(f"scores: MOS in {file.name}",))


def flive(folder: Folder, options: Options) -> Reading:
    """Read the whole images of FLIVE (PaQ-2-PiQ).

    The official test part are those over 640 px, listed in labels>640.csv; validation are those with is_valid in
    labels<=640_padded.csv.
    """
    # Some systems drop < and > from file names.
    scores_file, padded_file, test_file = folder.need(
        ("labels_image.csv", "database/labels_image.csv"),
        _with_folder("labels<=640_padded.csv", "labels=640_padded.csv", "labels640_padded.csv"),
        _with_folder("labels>640.csv", "labels640.csv"),
    )
    part: dict[str, int] = {}
    for _, fields in read_records(padded_file, ("name_image", "is_valid")):
        part[fields["name_image"]] = int(fields["is_valid"].lower() in ("true", "1"))
    part.update((fields["name_image"], 2) for _, fields in read_records(test_file, ("name_image",)))
    inside = folder.first_folder("database", "")
    rows = []
    for line, fields in read_records(scores_file, ("name", "mos")):
        name = f"{inside}/{fields['name']}".lstrip("/")
        rows.append(Row(f"line {line}", name, folder.find(name), fields["mos"], parts=(part.get(fields["name"]),)))
    outside = sum(row.parts == (None,) for row in rows)
    notes = (f"scores: mos in {scores_file.name}", f"official split: {outside} of {len(rows)} images are in no part")
    return Reading(rows, ("official",), notes)


def bid(folder: Folder, options: Options) -> Reading:
    """Read BID: DatabaseGrades.xlsx numbers its images; number 7 is DatabaseImage0007.JPG."""
    (file,) = folder.need("DatabaseGrades.xlsx")
    rows: list[Row | str] = []
    inside = folder.first_folder("ImageDatabase", "")
    for row, fields in read_sheet(file, ("Image Number", "Average Subjective Grade")):
        image = number(fields["Image Number"])
        if not image.is_integer():
            rows.append(f"row {row}: Image Number must be a whole number, got {fields['Image Number']!r}")
            continue
        name = f"{inside}/DatabaseImage{int(image):04d}.JPG".lstrip("/")
        rows.append(Row(f"row {row}", name, folder.find(name), fields["Average Subjective Grade"]))
    return Reading(rows, notes=("scores: Average Subjective Grade in DatabaseGrades.xlsx",))


def pipal(folder: Folder, options: Options) -> Reading:
    """Read the training part of PIPAL, whose labels are public: Train_Label/*.txt with "name,Elo" on each line.

    Images lie in any folder below the root: the parts are unpacked into several, or merged into one.
    """
    labels = folder.find("Train_Label")
    files = sorted(labels.glob("*.txt")) if labels.is_dir() else []
    if not files:
        folder.need("Train_Label/A0001.txt")
    places = [path.name for path in folder.subfolders() if path.name.lower() not in ("train_label", "train_ref")]
    rows: list[Row | str] = []
    for file in files:
        for where, words in _lines(file, ","):
            where = f"{file.name} {where}"
            match = re.fullmatch(r"(A\d+)_(\d+)_\d+\.\w+", words[0], re.IGNORECASE)
            if len(words) != 2 or match is None:
                rows.append(f"{where}: must be A0001_TT_VV.bmp and an Elo score, got {','.join(words)!r}")
                continue
            inside = next((place for place in places if folder.has(f"{place}/{words[0]}")), "Distortion_1")
            name = f"{inside}/{words[0]}"
            rows.append(Row(where, name, folder.find(name), words[1], match[1].lower(), f"type {match[2]}"))
    return Reading(rows, notes=(f"scores: Elo in {len(files)} files of Train_Label; comparable within a reference",))


def _coded_row(folder: Folder, where: str, name: str, score: str, kinds: Sequence[str]) -> Row | str:
    """Return the row of an image whose name holds reference, type and level: I01_02_3.bmp."""
    match = re.fullmatch(r"(i\d+)_(\d+)_(\d+)\.\w+", PurePosixPath(name).name, re.IGNORECASE)
    if match is None or not 1 <= int(match[2]) <= len(kinds):
        return f"{where}: the name must be I, reference, _type_level, got {PurePosixPath(name).name!r}"
    return Row(where, name, folder.find(name), score, match[1].lower(), kinds[int(match[2]) - 1], int(match[3]))


def _lines(file: Path, delimiter: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, fields) of every line that is not empty."""
    for line_number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield f"line {line_number}", [field.strip() for field in line.strip().split(delimiter)]


def _with_folder(*names: str) -> tuple[str, ...]:
    return (*names, *(f"database/{name}" for name in names))
