"""Tar shards: images that the WebDataset library writes are read at random, byte for byte as they were written."""

import glob
import io
import os
import pickle
import tarfile
from pathlib import Path

import braceexpand
import numpy as np
import pytest
import webdataset
from PIL import Image

from qpt import InputError, pretrain
from qpt.data.listing import expand_braces
from qpt.data.shards import MAX_OPEN_SHARDS, ShardSource
from qpt.data.sources import FolderSource, open_source
from qpt.models.checkpoint_file import read_checkpoint
from tests.test_pretrain import assert_same_bytes, tiny

COUNT = 11


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven smooth images in three folders, whose paths sort in the order of their numbers."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        path = folder / f"{index // 4}" / f"{index:04d}.{('jpg', 'png', 'webp')[index % 3]}"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((80, 64), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def shards(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of four, with labels between them."""
    folder = tmp_path_factory.mktemp("shards")
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number, path in enumerate(FolderSource(files).files):
            sample = {"__key__": f"{path.parent.name}/{path.stem}", path.suffix[1:]: path.read_bytes()}
            writer.write({**sample, "cls": number, "json": {"number": number}})
    assert len(list(folder.iterdir())) == 3
    return folder


def contents(source: ShardSource) -> list[bytes]:
    return [source.open(index).read() for index in range(len(source))]


def test_members_are_those_the_library_reads(files: Path, shards: Path) -> None:
    source = open_source(str(shards))
    assert isinstance(source, ShardSource) and len(source) == COUNT
    urls = sorted(glob.glob(str(shards / "*.tar")))
    theirs = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    expected = [sample[kind] for sample in theirs for kind in ("jpg", "png", "webp") if kind in sample]
    assert contents(source) == expected == [path.read_bytes() for path in FolderSource(files).files]
    assert source.name(0) == "train-000000.tar/0/0000.jpg" and source.name(10) == "train-000002.tar/2/0010.png"


def test_a_run_on_shards_is_a_run_on_the_files(files: Path, shards: Path, tmp_path: Path) -> None:
    """Same images in the same order, so the same bytes; by two processes too, and resumed."""
    for name, data, workers in (("files", files, 0), ("shards", shards, 0), ("processes", shards, 2)):
        pretrain(tiny(Path(data), tmp_path / name, workers=workers, steps=6))
    assert_same_bytes(tmp_path / "files", tmp_path / "shards")
    assert_same_bytes(tmp_path / "files", tmp_path / "processes")
    prints = {name: read_checkpoint(tmp_path / name)["data_fingerprint"] for name in ("files", "shards", "processes")}
    assert prints["shards"] == prints["processes"] != prints["files"]


def test_a_run_resumes_only_on_the_same_shards(shards: Path, tmp_path: Path) -> None:
    config = tiny(shards, tmp_path / "run", steps=2)
    pretrain(config)
    pretrain(tiny(Path(f"{shards}/train-{{000000..000002}}.tar"), tmp_path / "run", steps=2), resume=True)
    with pytest.raises(InputError, match="file list"):
        pretrain(tiny(Path(f"{shards}/train-{{000000..000001}}.tar"), tmp_path / "run", steps=2), resume=True)


def test_names_of_shards(shards: Path, files: Path) -> None:
    whole = open_source(str(shards)).fingerprint()
    for pattern in ("train-{000000..000002}.tar", "train-{000000,000001,000002}.tar", "*.tar", "train-00000[012].tar"):
        assert open_source(f"{shards}/{pattern}").fingerprint() == whole
    assert open_source(f"{shards}/train-{{000002..000000}}.tar").fingerprint() != whole  # another order
    assert len(open_source(str(shards / "train-000002.tar"))) == 3
    assert isinstance(open_source(str(files)), FolderSource)


def test_shards_below_images_are_left_alone(files: Path, tmp_path: Path) -> None:
    """A folder is of files as soon as it has an image file."""
    (tmp_path / "x.png").write_bytes((files / "0" / "0001.png").read_bytes())
    (tmp_path / "x.tar").write_bytes(b"")
    assert len(open_source(str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{shards}/train-{{000000..000009}}.tar", "there is no .*train-000003.tar"),
        ("{shards}/*.tgz", "nothing matches"),
        ("{shards}/absent", "an existing folder, shard or pattern"),
        ("pipe:cat train.tar", "files or URLs"),
        ("{files}/0/0001.png", r"got the file .*0001\.png"),
    ],
)
def test_bad_sources_are_refused(shards: Path, files: Path, data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(data.format(shards=shards, files=files))


def test_broken_shards(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("this is not a tar file, but it is long enough to hold a header" * 20)
    with tarfile.open(tmp_path / "compressed.tar", "w:gz") as tar:
        tar.add(shards / "train-000000.tar", "x.jpg")
    for name in ("text", "compressed"):
        with pytest.raises(InputError, match=f"uncompressed tar shards, got .*{name}"):
            open_source(str(tmp_path / f"{name}.tar"))
    with tarfile.open(tmp_path / "labels.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.cls"))
    with pytest.raises(InputError, match="at least one image"):
        open_source(str(tmp_path / "labels.tar"))


def test_a_cut_shard_gives_what_is_before_the_cut(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "train-000000.tar").read_bytes()
    with tarfile.open(shards / "train-000000.tar") as tar:
        last = [member for member in tar if member.name.endswith((".jpg", ".png", ".webp"))][2]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: last.offset_data + last.size // 2])
    with pytest.warns(UserWarning, match="cut.tar is damaged: what follows its first 3 images"):
        source = open_source(str(cut))
    assert isinstance(source, ShardSource)
    assert [source.open(index).read() for index in range(2)] == contents(ShardSource([shards / "train-000000.tar"]))[:2]
    with pytest.raises(OSError, match="the shard ends after"):
        source.open(2)
    cut.write_bytes(whole[: last.offset] + b"x" * 2048)  # a header that is none
    with pytest.warns(UserWarning, match="first 2 images"):
        assert len(open_source(str(cut))) == 2
    cut.write_bytes(whole[: last.offset])  # a writer that died between two members leaves no end
    assert len(open_source(str(cut))) == 2


def test_names_that_are_long_or_strange(tmp_path: Path) -> None:
    """Members that are no plain files are passed over: nothing outside the tar is ever opened."""
    names = ["a" * 180 + ".jpg", "Grüße/你好.PNG", "0001.left.png", "./b.Jpeg", "../../etc/c.png", "/abs/d.png"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            tar.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = ShardSource([tmp_path / "x.tar"])
    assert [content.decode() for content in contents(source)] == names
    assert [source.name(index) for index in range(len(source))] == [f"x.tar/{name}" for name in names]


def test_a_source_travels_to_another_process(shards: Path) -> None:
    source = open_source(str(shards))
    assert isinstance(source, ShardSource)
    expected = contents(source)  # opens the shards
    assert contents(pickle.loads(pickle.dumps(source))) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        *("x.tar", "a-{0..3}.tar", "a-{000..012}.tar", "a-{08..11}", "{a,b}-{1..2}.tar", "{3..1}", "a{b}c", "a{,x}b"),
        *("{01..10}{,-half}.tar", "{a,b,c}/{00..01}", "{7..7}"),
    ],
)
def test_braces_are_a_shells(pattern: str) -> None:
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


def test_a_line_break_in_a_name_shifts_no_other(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "c.jpg", "\n.jpg", "z.jpg"]
    for path, order in (("x", names), ("y", names[::-1])):
        with tarfile.open(tmp_path / f"{path}.tar", "w") as tar:
            for name in order:
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        source = open_source(str(tmp_path / f"{path}.tar"))
        assert [source.name(index) for index in range(4)] == [f"{path}.tar/{name}" for name in order]
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "a.jpg 0\nb.jpg").parent.mkdir()
    two.mkdir()
    (one / "a.jpg 0\nb.jpg").touch()
    (two / "a.jpg").touch()
    (two / "b.jpg").touch()
    assert FolderSource(one).fingerprint() != FolderSource(two).fingerprint()


def test_a_bounded_number_of_shards_is_open(tmp_path: Path) -> None:
    content = b"an image"
    shards = [tmp_path / f"{number:03d}.tar" for number in range(3 * MAX_OPEN_SHARDS)]
    for shard in shards:
        with tarfile.open(shard, "w") as tar:
            member = tarfile.TarInfo("x.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = ShardSource(shards)
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(len(source)), *range(len(source))]:
        assert source.open(index).read() == content
    assert len(os.listdir("/proc/self/fd")) - before <= MAX_OPEN_SHARDS
