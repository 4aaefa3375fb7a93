"""The wheel contains all files, and its command runs outside the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import ROOT, environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(path), str(ROOT)], check=True, capture_output=True)
    (built,) = path.glob("funmatch-*.whl")
    return built


def test_wheel_contains_package_and_configurations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "funmatch/conf/paper.csv" in names
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"funmatch/conf/{path.relative_to(ROOT / 'conf')}" in names
    assert {"funmatch/slurm/submit", "funmatch/slurm/job.sbatch"} <= names
    for path in (ROOT / "src" / "funmatch").rglob("*.py"):
        assert str(path.relative_to(ROOT / "src")) in names
    assert "train.py" not in names  # the entries stay out


def test_installed_command_runs_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    def funmatch(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from funmatch.cli.main import main; sys.argv[0] = 'funmatch'; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, PYTHONPATH=str(site)),
            capture_output=True,
            text=True,
        )

    assert "name: function_matching" in funmatch("train", "--cfg", "job").stdout
    wrong = funmatch("train", "recipe=best")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: recipe=best: no such recipe")
    helped = funmatch("--help")
    assert helped.returncode == 0
    assert "finetune" in helped.stderr
    assert funmatch("fly").returncode == 2
