"""Images, shards and tables behind URLs: the same order, bytes and numbers as from disk, whatever the server does.

The server is one of HTTP on this machine (``tests.flaky_server``); nothing leaves it.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from qpt import BackendError, InputError, pretrain
from qpt.cli import main
from qpt.data import remote
from qpt.data.faults import RemoteError
from qpt.data.listing import find_images, images_root, list_images
from qpt.data.remote_copies import cache_folder
from qpt.data.remote_sources import RemoteFolderSource, RemoteShardSource
from qpt.data.sources import FolderSource, Source, data_fingerprint, open_source
from qpt.errors import StalledError
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.table import read_table
from tests.flaky_server import FlakyServer, serve
from tests.test_pretrain import assert_same_bytes, tiny

pytest.importorskip("aiohttp", reason="needs the extra remote")

NAMES = ("a b.png", "a%20b.png", "ß/你好.PNG", "c#1.jpg", "d?e=f.png", "deep/er/x+y.webp", "deep/z&amp;.bmp", "[1].png")
HIDDEN = (".thumb/1.png", "@eaDir/2.png", ".hidden.png")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Attempts that follow each other soon, and a cache folder of each test's own."""
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    monkeypatch.setenv("QPT_REMOTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote._shared_filesystem.cache_clear()
    yield
    remote._shared_filesystem.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``files`` with strange names, ``shards`` of the same images, and ``table/scores.csv``."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in (*NAMES, *HIDDEN):
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((80, 64), Image.Resampling.BICUBIC).save(path)
    (folder / "files" / "labels.txt").write_text("no image")
    (folder / "shards").mkdir()
    for number in range(2):
        with tarfile.open(folder / "shards" / f"train-{number}.tar", "w") as tar:
            for name in NAMES[number::2]:
                tar.add(folder / "files" / name, name)
            tar.add(folder / "files" / "labels.txt", f"{number}.txt")
            member = tarfile.TarInfo("large.bin")  # passed over by seeking
            member.size = 3 << 20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    (folder / "table" / "images").mkdir(parents=True)
    rows = ["image,mos"]
    for index in range(12):
        pixels = rng.integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "table" / "images" / f"{index} é.png")
        rows.append(f"images/{index} é.png,{index / 2}")
    (folder / "table" / "scores.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def server(data: Path) -> Iterator[FlakyServer]:
    with serve(data) as running:
        yield running


def quietly(url: str) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_source(url)


def contents(source: Source) -> list[bytes]:
    found = []
    for index in range(len(source)):
        file = source.open(index)
        found.append(file.read_bytes() if isinstance(file, Path) else file.read())
    return found


def same_as(url: str, path: Path, *, prefetch: bool = False) -> Source:
    """Check that a URL gives the names, the bytes and the fingerprint of the same data on disk."""
    source, local = quietly(url), quietly(str(path))
    assert [source.name(index) for index in range(len(source))] == [local.name(index) for index in range(len(local))]
    assert source.fingerprint() == local.fingerprint()
    if prefetch:
        source.prefetch(range(len(source)))
    assert contents(source) == contents(local)
    return source


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_folder_is_that_on_disk(server: FlakyServer, data: Path, prefetch: bool) -> None:
    source = same_as(f"{server.url}/files", data / "files", prefetch=prefetch)
    assert isinstance(source, RemoteFolderSource) and len(source) == len(NAMES)
    shutil.rmtree(cache_folder())
    with pytest.warns(UserWarning, match=r"passed over: 1 \.txt, 3 hidden"):
        open_source(f"{server.url}/files/")


def test_a_file_url_is_a_path(data: Path) -> None:
    source = quietly(f"file://{data}/files")
    assert isinstance(source, FolderSource) and source.fingerprint() == quietly(str(data / "files")).fingerprint()
    assert list_images(f"file://{data}/files") == list_images(data / "files")
    assert (load_image(f"file://{data}/files/a%2520b.png") == load_image(data / "files" / "a%20b.png")).all()
    assert len(read_table(f"file://{data}/table/scores.csv")) == 12


@pytest.mark.parametrize("url", ["shards", "shards/train-{0..1}.tar", "shards/*.tar"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_shards_are_those_on_disk(server: FlakyServer, data: Path, url: str, prefetch: bool) -> None:
    source = same_as(f"{server.url}/{url}", data / url, prefetch=prefetch)
    assert isinstance(source, RemoteShardSource) and len(source) == len(NAMES)
    assert len(quietly(f"{server.url}/shards/train-1.tar")) == len(NAMES) // 2


@pytest.mark.parametrize("scheme", ["memory"])
def test_another_file_system(data: Path, scheme: str) -> None:
    """Object stores name files as they are, and know their sizes."""
    system = fsspec.filesystem(scheme)
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        system.pipe_file(f"/bucket/{path.relative_to(data)}", path.read_bytes())
    same_as(f"{scheme}://bucket/files", data / "files", prefetch=True)
    same_as(f"{scheme}://bucket/shards", data / "shards", prefetch=True)
    assert (
        read_table(f"{scheme}://bucket/table/scores.csv").fingerprint
        == read_table(data / "table" / "scores.csv").fingerprint
    )


def test_an_index_is_kept(server: FlakyServer, data: Path) -> None:
    quietly(f"{server.url}/files")
    server.reset()
    with pytest.warns(UserWarning, match=r"files is taken as it was on .* delete .*cache/index/\w+\.json"):
        source = open_source(f"{server.url}/files")
    assert not server.requests
    source.open(0)
    assert server.methods == {"GET": 1}


def test_an_index_of_a_shard_is_kept_until_the_shard_changes(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "shards", tmp_path / "shards")
    with serve(tmp_path) as server:
        url = f"{server.url}/shards/train-{{0..1}}.tar"
        first = quietly(url)
        server.reset()
        assert quietly(url).fingerprint() == first.fingerprint()
        assert server.methods == {"HEAD": 2}
        shutil.copy(tmp_path / "shards" / "train-0.tar", tmp_path / "shards" / "train-1.tar")
        same_as(url, tmp_path / "shards" / "train-{0..1}.tar")


def test_members_are_read_in_ranges(server: FlakyServer, data: Path) -> None:
    """Neither the index nor an image takes the whole shard, of which most is passed over."""
    source = quietly(f"{server.url}/shards")
    assert server.sent_bytes < sum(path.stat().st_size for path in (data / "shards").iterdir()) * 0.8
    server.reset()
    content = source.open(3).read()
    assert server.sent_bytes == len(content) and server.methods == {"GET": 1}


@pytest.mark.parametrize("fault", ["503", "429", "cut", "stall"])
@pytest.mark.parametrize("folder", ["files", "shards"])
def test_passing_faults_change_nothing(server: FlakyServer, data: Path, fault: str, folder: str) -> None:
    """The first two requests of each path fail, and every fourth one later on."""
    server.fault = lambda path, before: fault if before in (0, 1) or before % 4 == 3 else ""
    same_as(f"{server.url}/{folder}", data / folder, prefetch=True)
    assert sum(server.requests.values()) > 10


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("503", "the server answered 503"), ("cut", "the connection was cut"), ("stall", "nothing came for 0.5 s")],
)
def test_a_lasting_fault_is_one_error(server: FlakyServer, fault: str, reason: str) -> None:
    sources = [quietly(f"{server.url}/{folder}") for folder in ("files", "shards")]
    server.fault = lambda path, before: fault
    for source in sources:
        server.reset()
        with pytest.raises(RemoteError, match=rf"^{server.url}/\S+ could not be read in 4 attempts: {reason}"):
            source.open(0)
        assert sum(server.requests.values()) == 4
    with pytest.raises(RemoteError, match=f"{server.url}/table/ could not be read in 4 attempts: {reason}"):
        list_images(f"{server.url}/table")


def test_a_denied_url_is_asked_for_once(server: FlakyServer) -> None:
    server.fault = lambda path, before: "403"
    with pytest.raises(RemoteError, match=r"files/ could not be read: the server answered 403"):
        open_source(f"{server.url}/files")
    assert sum(server.requests.values()) == 1


def test_a_missing_file_concerns_itself_alone(server: FlakyServer, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "files", tmp_path / "files")
    with serve(tmp_path) as own:
        source = quietly(f"{own.url}/files")
        (tmp_path / "files" / NAMES[0]).unlink()
        gone = next(index for index in range(len(source)) if source.name(index) == NAMES[0])
        source.prefetch([gone, gone - 1])
        with pytest.raises(FileNotFoundError):
            source.open(gone)
        assert source.open(gone - 1).read()
    with pytest.raises(InputError, match=r"existing shards, got .*/no\.tar: no such file"):
        open_source(f"{server.url}/no.tar")
    with pytest.raises(InputError, match=r"folder must be the URL of a folder, got .*/no: no such file"):
        open_source(f"{server.url}/no")
    with pytest.raises(InputError, match=r"no\.jpg: no such file"):
        load_image(f"{server.url}/no.jpg")


def test_a_changed_file_is_an_error(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "files", tmp_path / "files")
    with serve(tmp_path) as server:
        source = quietly(f"{server.url}/files")
        shutil.copy(data / "files" / NAMES[1], tmp_path / "files" / NAMES[0])
        changed = next(index for index in range(len(source)) if source.name(index) == NAMES[0])
        with pytest.raises(RemoteError, match=r"a%20b\.png has changed: it has [\d,]+ bytes, [\d,]+ when"):
            source.open(changed)


def test_a_server_without_ranges(server: FlakyServer, data: Path) -> None:
    server.ranges = False
    with pytest.warns(UserWarning, match=r"train-0\.tar is copied to .*: its server gives no parts of a file"):
        open_source(f"{server.url}/shards")
    same_as(f"{server.url}/shards", data / "shards", prefetch=True)
    server.reset()
    contents(quietly(f"{server.url}/shards"))
    assert server.methods["GET"] <= 1  # the listing of the folder, which is kept too


def test_ranges_that_are_lost_are_no_wrong_bytes(server: FlakyServer) -> None:
    source = quietly(f"{server.url}/shards")
    server.ranges = False
    with pytest.raises(RemoteError, match="the server gives no parts of a file"):
        source.open(0)


def test_broken_shards(tmp_path: Path, data: Path) -> None:
    (tmp_path / "text.tar").write_text("this is not a tar file, but it is long enough to hold a header" * 20)
    whole = (data / "shards" / "train-0.tar").read_bytes()
    with tarfile.open(data / "shards" / "train-0.tar") as tar:
        third = tar.getmembers()[2]
    (tmp_path / "cut.tar").write_bytes(whole[: third.offset_data + third.size // 2])
    with serve(tmp_path) as server:
        with pytest.raises(InputError, match=r"uncompressed tar shards, got .*text\.tar"):
            open_source(f"{server.url}/text.tar")
        for _ in range(2):  # the second time from the index
            with pytest.warns(UserWarning, match=r"cut\.tar is damaged: what follows its first 3 images"):
                source = open_source(f"{server.url}/cut.tar")
        assert len(source) == 3 and source.open(1).read()
        with pytest.raises(OSError, match="the shard ends after"):
            source.open(2)


def test_pages_that_link_elsewhere(server: FlakyServer, data: Path) -> None:
    """Links to the folder itself, above it, to other places and to sorted forms of the page are no entries."""
    names = (
        "./",
        ".",
        "..",
        "../",
        "?C=N;O=D",
        "..%2Fshards%2Fx.png",
        "http://127.0.0.1:1/x.png",
        "/table/",
        "//x/y.png",
    )
    links = (*names, "a%20b.png", "/files/c%231.jpg", f"{server.url}/files/deep/")
    server.pages["/files"] = server.pages["/files/"] = "".join(f'<a href="{link}">x</a>' for link in links).encode()
    source = quietly(f"{server.url}/files")
    found = [source.name(index) for index in range(len(source))]
    assert found == ["a b.png", "c#1.jpg", "deep/er/x+y.webp", "deep/z&amp;.bmp"]


@pytest.mark.parametrize("folder", ["files", "shards"])
def test_a_run_is_that_on_disk(server: FlakyServer, data: Path, tmp_path: Path, folder: str) -> None:
    """To the byte, by loader processes too, and with faults that pass."""
    server.fault = lambda path, before: "503" if before % 3 == 1 else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, source, workers in (
            ("disk", data / folder, 0),
            ("url", f"{server.url}/{folder}", 0),
            ("processes", f"{server.url}/{folder}", 2),
        ):
            config = replace(tiny(Path("."), tmp_path / name, workers=workers, steps=3), data=str(source))
            pretrain(config)
    assert_same_bytes(tmp_path / "disk", tmp_path / "url")
    assert_same_bytes(tmp_path / "disk", tmp_path / "processes")


def test_a_run_ends_saved_when_the_server_goes(server: FlakyServer, tmp_path: Path) -> None:
    quietly(f"{server.url}/files")
    server.fault = lambda path, before: "503" if before >= 2 else ""
    config = replace(tiny(Path("."), tmp_path / "run", workers=2, steps=40, cache_mib=0), data=f"{server.url}/files")
    with pytest.raises(StalledError, match=rf"{server.url}.* in 4 attempts: .* 503"):
        pretrain(config)
    server.fault = lambda path, before: ""
    assert pretrain(config, resume=True).step == 40


def test_a_table_is_that_on_disk(server: FlakyServer, data: Path, tmp_path: Path) -> None:
    server.fault = lambda path, before: "cut" if before == 0 else ""
    local, url = read_table(data / "table" / "scores.csv"), f"{server.url}/table/scores.csv"
    (tmp_path / "own.csv").write_text((data / "table" / "scores.csv").read_text())
    (tmp_path / "urls.csv").write_text(
        (data / "table" / "scores.csv").read_text().replace("images/", f"{server.url}/table/images/")
    )
    tables = read_table(url), read_table(tmp_path / "own.csv", root=f"{server.url}/table")
    for table in tables:
        assert (
            table.images == local.images
            and table.fingerprint == local.fingerprint
            and table.name in ("table", tmp_path.name)
        )
        assert (table.mos == local.mos).all()
    assert read_table(tmp_path / "urls.csv").contents == local.contents
    server.fault = lambda path, before: ""
    server.reset()
    read_table(url)
    assert server.requests == {"/table/scores.csv": 1}  # the copies of images are kept


def test_a_table_reaches_no_local_file(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    lines = [f"{name},{number}" for number, name in enumerate([str(secret), "../" * 30 + str(secret)[1:], "x.png"] * 4)]
    (tmp_path / "www" / "scores.csv").write_text("\n".join(["image,mos", *lines]))
    with serve(tmp_path / "www") as server, pytest.raises(InputError, match="no such file") as caught:
        read_table(f"{server.url}/scores.csv")
    assert len(caught.value.missing) == 12  # type: ignore[attr-defined]
    with serve(tmp_path / "www") as server, pytest.raises(InputError, match=r"csv must be a file, got .*/no\.csv"):
        read_table(f"{server.url}/no.csv")


def test_names_on_a_command_line(server: FlakyServer, data: Path) -> None:
    url = f"{server.url}/files"
    found, faults = find_images(
        [url, f"{url}/a%20b.png", f"{server.url}/no", f"{url}/*.jpg", f"{url}/*.gif", str(data / "no.png")]
    )
    assert [name.removeprefix(f"{url}/") for name in found[:2]] == ["%5B1%5D.png", "a%20b.png"]
    assert len(found) == len(NAMES) + 1 and found[-1] == str(data / "no.png")
    assert faults == {f"{server.url}/no": "no image in this folder", f"{url}/*.gif": "no file matches this pattern"}


def test_scores_are_those_of_files(server: FlakyServer, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.fault = lambda path, before: "503" if before == 0 else ""

    def scores(*arguments: str) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(["score", *arguments, "--json"]) == 0
        return {entry["image"]: entry["score"] for entry in json.loads(capsys.readouterr().out)["scores"]}

    local = scores(str(data / "table" / "images"))
    assert list(scores(f"{server.url}/table/images").values()) == list(local.values())
    parts = [scores(str(data / "table" / "images"), "--shard", f"{part}/2") for part in range(2)]
    assert [list(part) for part in parts] and [item for part in parts for item in part.items()] == list(local.items())
    for wrong in ("2/2", "x", "-1/3", "0/0"):
        assert main(["score", str(data), f"--shard={wrong}"]) == 2
        assert "I from 0 to N - 1" in capsys.readouterr().err


def test_listed_images_are_copies(server: FlakyServer, data: Path) -> None:
    local = list_images(data / "files")
    copies = list_images(f"{server.url}/files")
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in local]
    root = images_root(f"{server.url}/files")
    assert data_fingerprint(root, copies) == data_fingerprint(data / "files", local)
    assert list_images(f"{server.url}/files", most=3) == [copies[index * len(copies) // 3] for index in range(3)]
    assert list_images(data / "files", most=3) == [local[index * len(local) // 3] for index in range(3)]


def test_a_missing_package_is_named(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(BackendError, match=r"aiohttp.*pip install 'qpt\[remote\]'"):
        open_source(f"{server.url}/files")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BackendError, match=r"pip install 'qpt\[s3\]'"):
        open_source("s3://bucket/files")
    with pytest.raises(InputError, match="a scheme that fsspec knows, got nothing://"):
        open_source("nothing://bucket/files")


def test_files_on_disk_need_no_other_package(data: Path) -> None:
    code = (
        "import sys\n"
        "from qpt.data.sources import open_source\n"
        f"source = open_source({str(data / 'shards')!r})\n"
        "source.prefetch([0]); source.open(0)\n"
        "print({'fsspec', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
