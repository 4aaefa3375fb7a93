"""make setup installs exactly the locked versions."""

import hashlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from commands import ROOT, environment


def write_wheel(folder: Path, metadata: str, **modules: str) -> str:
    """Name of the wheel it leaves in the folder, of these metadata and modules."""
    name, version = re.findall(r"^(?:Name|Version): (.+)$", metadata, re.MULTILINE)
    info = f"{name}-{version}.dist-info"
    files = {f"{module}.py": text for module, text in modules.items()} | {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in files))
    return wheel


# A setuptools that can no more than the recipe needs, and signs what it builds.
BACKEND = """
import re, sys, zipfile
from pathlib import Path

{write_wheel}
def build_wheel(folder, settings=None, metadata=None):
    signed = Path("PKG-INFO").read_text() + "Summary: built by setuptools {version}\\n"
    return write_wheel(Path(folder), signed)

build_editable = build_wheel
__legacy__ = sys.modules[__name__]
"""


def metadata(name: str, version: int, *lines: str) -> str:
    return "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Of each package the version in the lock and a newer one; built has no wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version in (101, 102):  # Python comes with lower ones of setuptools
        backend = BACKEND.format(write_wheel=inspect.getsource(write_wheel), version=version)
        package = {"setuptools/__init__": "", "setuptools/build_meta": backend}
        write_wheel(folder, metadata("setuptools", version), **package)
        write_wheel(folder, metadata("wheel", version))  # what older versions of pip build with
        # As pytest-cov asks for coverage[toml]: the pin of coverage does not name the extra.
        write_wheel(folder, metadata("asks", version, "Requires-Dist: has-extra[more]>=101"))
        extra = ("Provides-Extra: more", "Requires-Dist: extra>=101; extra == 'more'")
        write_wheel(folder, metadata("has_extra", version, *extra))
        write_wheel(folder, metadata("extra", version))
        with tarfile.open(folder / f"built-{version}.tar.gz", "w:gz") as archive:
            for file, text in {"PKG-INFO": metadata("built", version), "setup.py": ""}.items():
                entry = tarfile.TarInfo(f"built-{version}/{file}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
    return folder


def lock(index: Path, *names: str) -> str:
    """The older version of each, as make lock writes it."""
    entries = ""
    for name in names:
        (file,) = index.glob(f"{name}-101*")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entries += f"{name}==101 \\\n    --hash=sha256:{digest}\n    # via project\n"
    return entries


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    needs = [f"Requires-Dist: {name}" for name in ("asks", "built")]
    (folder / "PKG-INFO").write_text(metadata("project", 1, *needs))
    backend = 'requires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"'
    (folder / "pyproject.toml").write_text(f"[build-system]\n{backend}\n")
    return folder


def run(project: Path, index: Path, *command: str) -> subprocess.CompletedProcess[str]:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        command,
        cwd=project,
        env=environment(project, PIP_NO_CACHE_DIR="1", **offline),
        capture_output=True,
        text=True,
    )


def test_make_setup_installs_only_locked_versions(project: Path, index: Path) -> None:
    setup = ("make", "setup", f"PYTHON={sys.executable}")
    names = ("asks", "built", "extra", "has_extra", "setuptools")
    (project / "requirements.lock").write_text(lock(index, *names))
    done = run(project, index, *setup)
    assert done.returncode == 0, done.stderr

    inspected = run(project, index, ".venv/bin/python", "-m", "pip", "inspect", "--local")
    packages = [entry["metadata"] for entry in json.loads(inspected.stdout)["installed"]]
    versions = {package["name"]: package["version"] for package in packages}
    assert versions.items() >= {"project": "1", **dict.fromkeys(names, "101")}.items()
    signed = {package["name"]: package.get("summary") for package in packages}
    assert signed["built"] == signed["project"] == "built by setuptools 101"

    assert run(project, index, *setup).stdout == ""  # what is there is used


@pytest.mark.slow
def test_make_setup_fails_for_an_incomplete_lock(project: Path, index: Path) -> None:
    (project / "requirements.lock").write_text(lock(index, "asks", "extra", "setuptools"))
    failed = run(project, index, "make", "setup", f"PYTHON={sys.executable}")
    assert failed.returncode != 0
    assert "asks 101 requires has-extra, which is not installed." in failed.stdout
    assert not (project / ".venv" / "requirements.lock").exists()  # the next setup begins anew


def test_lock_pins_the_build_requirements() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"setuptools", *project["build-system"]["requires"]} <= set(pinned)
