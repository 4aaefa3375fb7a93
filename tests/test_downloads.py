"""Downloads of data sets from a local server, and ImageNet archives."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tarfile import open as tar
from urllib.error import HTTPError

import pytest
from torchvision import datasets as official
from torchvision.datasets import imagenet as official_imagenet

import trees
from funmatch.data.datasets import builders
from funmatch.data.file_list import DataNotFoundError
from funmatch.data.sources import Splits
from trees import plant, refused

NAMES = ("flowers102", "pets", "food101", "sun397")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that it is served at."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def offered(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Puts a data set on the server, as its archives, and tells torchvision of it."""
    folder, address = served

    def packed(archive: str, base: Path, *names: str) -> str:
        with tar(folder / archive, "w:gz") as file:
            for name in names:
                file.add(base / name, name)
        return trees.md5(folder / archive)

    def offer(name: str) -> Path:
        made = plant(tmp_path, name)
        if name == "flowers102":
            base = made / "flowers-102"
            table = {"image": ("102flowers.tgz", packed("102flowers.tgz", base, "jpg"))}
            for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
                (folder / file).write_bytes((base / file).read_bytes())
                table[key] = (file, trees.md5(base / file))
            monkeypatch.setattr(official.Flowers102, "_download_url_prefix", address)
            monkeypatch.setattr(official.Flowers102, "_file_dict", table)
        elif name == "pets":
            base = made / "oxford-iiit-pet"
            resources = [
                (f"{address}{part}.tar.gz", packed(f"{part}.tar.gz", base, part))
                for part in ("images", "annotations")
            ]
            monkeypatch.setattr(official.OxfordIIITPet, "_RESOURCES", resources)
        elif name == "food101":
            monkeypatch.setattr(official.Food101, "_URL", f"{address}food-101.tar.gz")
            monkeypatch.setattr(
                official.Food101, "_MD5", packed("food-101.tar.gz", made, "food-101")
            )
        else:
            monkeypatch.setattr(official.SUN397, "_DATASET_URL", f"{address}SUN397.tar.gz")
            digest = packed("SUN397.tar.gz", made, "SUN397")
            monkeypatch.setattr(official.SUN397, "_DATASET_MD5", digest)
        return made

    return offer


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_set_is_downloaded(name: str, offered, tmp_path: Path) -> None:
    made = offered(name)
    splits: Splits = getattr(builders, name)(str(tmp_path / "new"), download=True)
    expected: Splits = getattr(builders, name)(str(made))
    for part in ("train", "val", "test"):
        assert splits.part(part).fingerprint() == expected.part(part).fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_failed_download_is_one_line(name: str, offered, served, tmp_path: Path) -> None:
    offered(name)
    for path in served[0].iterdir():
        path.write_bytes(b"not what it was")
    line = refused(lambda: getattr(builders, name)(str(tmp_path / "a"), download=True))
    assert line.startswith(f"root={tmp_path}/a: download=true failed (RuntimeError: File not found")
    for path in served[0].iterdir():
        path.unlink()
    with pytest.raises(DataNotFoundError, match=r"failed [(]HTTPError: HTTP Error 404") as caught:
        getattr(builders, name)(str(tmp_path / "b"), download=True)
    assert str(caught.value).startswith(f"root={tmp_path}/b: ")
    cause = caught.value.__cause__
    assert isinstance(cause, HTTPError)
    cause.close()  # it holds the connection


def test_imagenet_archives_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, root = plant(tmp_path, "imagenet"), tmp_path / "new"
    table = trees.imagenet_archives(root, made)
    monkeypatch.setattr(official_imagenet, "ARCHIVE_META", table)
    line = refused(lambda: builders.imagenet(str(root)))
    assert line.startswith(
        f"root={root}: folder train does not exist; unpack ILSVRC2012_img_train.tar"
    )
    (root / "train.unfinished").mkdir()  # as after a kill
    (root / "train.unfinished" / "rest").write_text("")

    splits = builders.imagenet(str(root), download=True)
    expected = builders.imagenet(str(made))
    for part in ("train", "val", "test"):
        assert splits.part(part).fingerprint() == expected.part(part).fingerprint()
    assert not list(root.glob("*.unfinished"))
    archive = root / "ILSVRC2012_img_train.tar"
    archive.unlink()
    builders.imagenet(str(root), download=True)  # nothing is left to do


def test_damaged_imagenet_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "new"
    table = trees.imagenet_archives(root, plant(tmp_path, "imagenet"))
    monkeypatch.setattr(official_imagenet, "ARCHIVE_META", table)
    with (root / "ILSVRC2012_img_val.tar").open("ab") as file:
        file.write(b"x")
    line = refused(lambda: builders.imagenet(str(root), download=True))
    assert "ILSVRC2012_img_val.tar is not present in the root directory or is corrupted" in line
    assert not (root / "val").exists()
