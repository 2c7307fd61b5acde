"""The registry of data sets: one entry for each, and the functions that use an entry.

Called by ``qpt datasets``, by the commands that take ``--dataset`` and by the test that keeps docs/datasets.md equal to
``markdown()``. It reads the folder of a data set. Counts are of scored images as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qpt.errors import InputError
from qpt.evaluate.datasets import layouts
from qpt.evaluate.datasets.folder import Folder
from qpt.evaluate.leaks import leak_warnings, near_duplicates
from qpt.evaluate.table import ScoreTable, TableError, assemble


@dataclass(frozen=True)
class Dataset:
    """A data set.

    name: on the command line.  title: in print.  owner, paper: to ask and to cite; owners change links.  terms: to know
    before using it.  needs: files and folders below the root.  scale: of the scores as written.  mirror: None where
    higher is better; else mos = mirror - score.  images: rows in the official file that are used.  references: number
    of originals; None where each image is its own, and splits are random.  official: whether the authors published a
    split.  read: the layout.  options: choices in reading; the first value is the default.
    """

    name: str
    title: str
    owner: str
    paper: str
    terms: str
    needs: tuple[str, ...]
    scale: str
    images: int
    read: Callable[[Folder, Mapping[str, str]], layouts.Reading]
    mirror: float | None = None
    references: int | None = None
    official: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def split_by(self) -> str:
        return "reference" if self.references else "image"


_LIVE_TERMS = "on request, by a form; read its terms"
_ASK = "read the terms that come with it"

DATASETS = {
    entry.name: entry
    for entry in (
        Dataset(
            name="live",
            title="LIVE release 2",
            owner="Laboratory for Image and Video Engineering, University of Texas at Austin",
            paper="Sheikh, Sabir, Bovik, IEEE TIP 2006",
            terms=_LIVE_TERMS,
            needs=(*(f"{name}/img1.bmp..." for name in layouts.LIVE_FOLDERS), "dmos_realigned.mat or dmos.mat",
                   "refnames_all.mat"),
            scale="DMOS, about 0 to 100 (realigned: some beyond), lower is better",
            images=779,
            read=layouts.live,
            mirror=100.0,
            references=29,
            options={"scores": ("realigned", "original")},
        ),
        Dataset(
            name="csiq",
            title="CSIQ",
            owner="Larson and Chandler, then at Oklahoma State University",
            paper="Larson, Chandler, Journal of Electronic Imaging 2010",
            terms=_ASK,
            needs=("dst_imgs/{awgn,blur,contrast,fnoise,jpeg,jpeg2000}/NAME.TYPE.L.png", "csiq.DMOS.xlsx"),
            scale="DMOS, 0 to 1, lower is better",
            images=866,
            read=layouts.csiq,
            mirror=1.0,
            references=30,
        ),
        Dataset(
            name="tid2013",
            title="TID2013",
            owner="Ponomarenko and others, Tampere",
            paper="Ponomarenko et al., Signal Processing: Image Communication 2015",
            terms=_ASK,
            needs=("distorted_images/iRR_TT_L.bmp", "mos_with_names.txt"),
            scale="MOS, 0 to 9, higher is better",
            images=3000,
            read=layouts.tid2013,
            references=25,
        ),
        Dataset(
            name="kadid10k",
            title="KADID-10k",
            owner="Multimedia Signal Processing group, University of Konstanz",
            paper="Lin, Hosu, Saupe, QoMEX 2019",
            terms=_ASK,
            needs=("images/IRR_TT_LL.png", "dmos.csv"),
            scale="called DMOS, 1 to 5, but higher is better",
            images=10125,
            read=layouts.kadid10k,
            references=81,
        ),
        Dataset(
            name="clive",
            title="LIVE in the Wild (CLIVE, LIVEC)",
            owner="Laboratory for Image and Video Engineering, University of Texas at Austin",
            paper="Ghadiyaram, Bovik, IEEE TIP 2016",
            terms=_LIVE_TERMS,
            needs=("Images/*", "Data/AllImages_release.mat", "Data/AllMOS_release.mat"),
            scale="MOS, 0 to 100, higher is better",
            images=1162,
            read=layouts.clive,
        ),
        Dataset(
            name="koniq10k",
            title="KonIQ-10k",
            owner="Multimedia Signal Processing group, University of Konstanz",
            paper="Hosu, Lin, Sziranyi, Saupe, IEEE TIP 2020",
            terms=f"{_ASK}; each photograph keeps its author's licence",
            needs=("1024x768/ID.jpg or 512x384/ID.jpg", "koniq10k_scores_and_distributions.csv",
                   "koniq10k_distributions_sets.csv for the official split"),
            scale="MOS_zscore, 0 to 100, or MOS, 1 to 5; higher is better",
            images=10073,
            read=layouts.koniq10k,
            official=True,
            options={"scores": ("MOS_zscore", "MOS"), "images": ("1024x768", "512x384")},
        ),
        Dataset(
            name="spaq",
            title="SPAQ",
            owner="Fang and others, Jiangxi University of Finance and Economics",
            paper="Fang, Zhu, Zeng, Ma, Wang, CVPR 2020",
            terms=_ASK,
            needs=("TestImage/00001.jpg...", "Annotations/MOS and Image attribute scores.xlsx"),
            scale="MOS, 0 to 100, higher is better",
            images=11125,
            read=layouts.spaq,
        ),
        Dataset(
            name="flive",
            title="FLIVE (LIVE-FB, PaQ-2-PiQ), whole pictures",
            owner="Laboratory for Image and Video Engineering, University of Texas at Austin",
            paper="Ying, Niu, Gupta, Mahajan, Ghadiyaram, Bovik, CVPR 2020",
            terms=f"{_ASK}; pictures come from other sets and some were withdrawn",
            needs=("database/{blur_dataset,EE371R,voc_emotic_ava}/*", "labels_image.csv", "labels<=640_padded.csv",
                   "labels>640.csv"),
            scale="MOS, 0 to 100, higher is better",
            images=39810,
            read=layouts.flive,
            official=True,
        ),
        Dataset(
            name="bid",
            title="BID (blurred image database)",
            owner="Ciancio and others, Federal University of Rio de Janeiro",
            paper="Ciancio et al., IEEE TIP 2011",
            terms=_ASK,
            needs=("DatabaseImage0001.JPG... in the root or in ImageDatabase", "DatabaseGrades.xlsx"),
            scale="MOS, 0 to 5, higher is better",
            images=586,
            read=layouts.bid,
        ),
        Dataset(
            name="pipal",
            title="PIPAL, training part",
            owner="Gu Jinjin and others",
            paper="Gu et al., ECCV 2020",
            terms=f"{_ASK}; only the labels of the training part are public",
            needs=("Distortion_1/A0001_TT_VV.bmp, or any other folders", "Train_Label/A0001.txt..."),
            scale="Elo, about 1,000 to 1,800, higher is better; comparable within a reference",
            images=23200,
            read=layouts.pipal,
            references=200,
        ),
    )
}  # fmt: skip


def dataset(name: str) -> tuple[Dataset, dict[str, str]]:
    """Return the entry and the options of a name: "koniq10k", "koniq10k:512x384", "live:original".

    Words after colons are values of the entry's options; the others have their default. Raises InputError listing the
    possible names or values.
    """
    first, *words = name.split(":")
    entry = DATASETS.get(first.lower())
    if entry is None:
        raise InputError(f"dataset: name must be one of {', '.join(DATASETS)}, got {first!r}")
    chosen: dict[str, str] = {}
    for word in words:
        option = next((o for o, values in entry.options.items() if word.lower() in map(str.lower, values)), None)
        if option is None or option in chosen:
            possible = ", ".join(value for values in entry.options.values() for value in values) or "none"
            raise InputError(f"dataset: choices of {entry.name} must be one of a kind of {possible}, got {word!r}")
        chosen[option] = next(value for value in entry.options[option] if value.lower() == word.lower())
    return entry, {**{option: values[0] for option, values in entry.options.items()}, **chosen}


def load_dataset(name: str, root: str | Path) -> ScoreTable:
    """Load a data set as a table: rows in official order, mos higher-is-better, groups by reference, official split.

    name: as in ``dataset``.  root: the folder that holds its files as the owners ship them; letter case is ignored.
    The table's name has the options that differ from the defaults; its notes list what was read and left out, and
    a number of rows that is not the published one. Raises TableError with one list of everything missing or wrong,
    InputError else.
    """
    entry, options = dataset(name)
    folder = Folder(root)
    options = _available_image_size(entry, options, folder, name)
    reading = entry.read(folder, options)
    changed = [options[option] for option, values in entry.options.items() if options[option] != values[0]]
    table = assemble(
        folder.root,
        reading.rows,
        name=":".join((entry.name, *changed)),
        split_names=reading.split_names,
        lower_better=entry.mirror is not None,
        mirror=entry.mirror or 0.0,
        notes=reading.notes,
    )
    if len(table) != entry.images:
        note = f"{len(table)} rows where {entry.images} are published: results do not compare with published ones"
        return replace(table, notes=(*table.notes, note))
    return table


def _available_image_size(entry: Dataset, options: dict[str, str], folder: Folder, name: str) -> dict[str, str]:
    """Choose, of two image sizes of which ``name`` asks for none, the one whose folder is there."""
    sizes = entry.options.get("images")
    if sizes is None or any(size.lower() in name.lower().split(":") for size in sizes):
        return options
    return {**options, "images": folder.first_folder(*sizes)}


def check_dataset(name: str, root: str | Path, *, leaks: bool = False) -> dict[str, Any]:
    """Check the folder of a data set.

    leaks: also look for near-duplicates, which decodes every image. Returns plain data: complete, images, expected,
    references, parts of splits, notes, problems and missing files (all of them), warnings of leaks. Raises InputError
    for an unknown name or no folder.
    """
    entry, options = dataset(name)
    Folder(root)
    found: dict[str, Any] = {
        "name": entry.name,
        "options": options,
        "complete": False,
        "images": 0,
        "expected": entry.images,
        "expected_references": entry.references,
        "problems": [],
        "missing": [],
    }
    try:
        table = load_dataset(name, root)
    except TableError as error:
        return {**found, "problems": list(error.problems), "missing": list(error.missing)}
    except InputError as error:
        return {**found, "problems": [str(error)]}
    references = len(set(table.groups.tolist())) if table.grouped else None
    return {
        **found,
        "complete": len(table) == entry.images and references == entry.references,
        "images": len(table),
        "references": references,
        "mos": [float(table.mos.min()), float(table.mos.max())],
        "splits": {s.name: [len(s.train), len(s.val), len(s.test)] for s in table.splits or ()},
        "warnings": leak_warnings(table, near_duplicates(table) if leaks else ()),
        "notes": list(table.notes),
    }


def as_dict(entry: Dataset) -> dict[str, Any]:
    """Return an entry as plain data, for ``qpt datasets --json``."""
    return {
        "name": entry.name,
        "title": entry.title,
        "images": entry.images,
        "references": entry.references,
        "split_by": entry.split_by,
        "official_split": entry.official,
        "scale": entry.scale,
        "lower_better": entry.mirror is not None,
        "needs": list(entry.needs),
        "options": {option: list(values) for option, values in entry.options.items()},
        "owner": entry.owner,
        "paper": entry.paper,
        "terms": entry.terms,
    }


def markdown() -> str:
    """Return the registry as a Markdown table, as in docs/datasets.md."""
    lines = [
        "| name | set | scored images | references | scores as written | official split | below the root | choices "
        "| ask, cite | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in DATASETS.values():
        needs = "<br>".join(f"`{need}`" for need in entry.needs)
        choices = "<br>".join(" or ".join(f"`{value}`" for value in values) for values in entry.options.values())
        lines.append(
            f"| `{entry.name}` | {entry.title} | {entry.images:,} | {entry.references or 'none'} | {entry.scale} "
            f"| {'yes' if entry.official else 'no'} | {needs} | {choices} | {entry.owner}; {entry.paper} "
            f"| {entry.terms} |"
        )
    return "\n".join(lines) + "\n"
