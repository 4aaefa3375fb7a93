"""Help texts, shell completion, suggestions and the printed configuration."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import QUICK, ROOT, command, command_here, environment, is_error, start
from faults import inject
from funmatch.analysis import summaries
from funmatch.cli.main import COMMANDS

SHORT = ("fast", "medium", "long")
HELPED = [name for name in COMMANDS if name not in ("benchmark", "submit")]


@pytest.mark.parametrize("name", HELPED)
def test_help_names_the_command_with_examples(name: str, tmp_path: Path, compose) -> None:
    code, out, err = command_here(name, "--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    examples = re.findall(rf"^  python src/{name}\.py (.*)", out, re.MULTILINE)
    assert len(examples) >= 2
    assert len(out.splitlines()) < 80
    for line in examples:
        given = [each for each in line.split() if "=" in each]
        first = [each if "[" in each else each.partition(",")[0] for each in given]  # of a sweep
        assert compose(*first, name=name)


def test_help_lists_groups_and_options(tmp_path: Path) -> None:
    _, out, _ = command_here("train", "--help", cwd=tmp_path)
    recipes = "recipe: consistent, fixed_teacher, function_matching, independent_noise"
    assert recipes in out.splitlines()
    for group in ("data", "teacher", "student", "objective", "experiment", "logger", "targets"):
        assert re.search(rf"^{group}: \w+", out, re.MULTILINE)
    assert "flowers102_10k, flowers102_1k, flowers102_1m, flowers102_fast" in out
    assert "photographs" not in out
    assert 'eval "$(python src/train.py -sc install=bash)"' in out


def test_bash_completion_completes_groups_and_options(tmp_path: Path) -> None:
    script, installed = ROOT / "src/train.py", Path(sys.executable).with_name("funmatch")
    for program, line, expected in (
        ([sys.executable, str(script)], "python src/train.py recipe=c", {"recipe=consistent"}),
        ([sys.executable, str(script)], "python src/train.py teacher=sav", {"teacher=saved"}),
        (
            [sys.executable, str(script)],
            "python src/train.py student=bit",
            {"student=bit_r50", "student=bit_r152x2", "student=bit_tiny"},
        ),
        (
            [sys.executable, str(script)],
            "python src/train.py experiment=sun397_",
            {f"experiment=sun397_{row}" for row in ("100", "1k", "3k", *SHORT, "from_imagenet")},
        ),
        ([str(installed)], "funmatch train optimizer.l", {"optimizer.lr="}),
        ([str(installed)], "funmatch export forma", {"format="}),
        ([str(installed)], "funmatch submit recipe=c", {"recipe=consistent"}),
        ([str(installed)], "funmatch re", {"report"}),
    ):
        done = subprocess.run(
            [*program, "-sc", "query=bash"],
            cwd=tmp_path,
            env=environment(tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2"),
            capture_output=True,
            text=True,
        )
        assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", 'eval "$(funmatch train -sc install=bash)"'),
        pytest.param(
            *("finetune", 'eval "$(funmatch finetune -sc install=bash)"'), marks=pytest.mark.slow
        ),
        pytest.param("export", "funmatch export run=DIR format=onnx", marks=pytest.mark.slow),
        ("submit", "[RECIPES=a,b] slurm/submit [key=value ...]"),
    ],
)
def test_help_of_the_installed_command_names_funmatch(
    tmp_path: Path, name: str, expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "funmatch", name, "--help"],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=str(ROOT / "src")),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout
    assert "python src/" not in done.stdout


def test_closed_stdout_pipe_is_one_error_line(workplace: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("train", *QUICK, "dry_run=true", cwd=workplace, stdout=write)
    os.close(write)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1
    assert errors.startswith("error: stdout: ")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_configuration_is_printed_once_per_command(workplace: Path) -> None:
    given = ("-m", *QUICK, "steps=2", "schedule.warmup_steps=1", "seed=0,1", "name=shown")
    done = command("train", *given, "optimizer.lr=0.003", cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert re.fullmatch(r"\[1/2\] logs/shown/function_matching-s0-\w+", first)
    branches = {line.split()[1]: line for line in lines if line.startswith(("├", "└"))}
    for group in ("recipe=function_matching", "data=digits", "student=digits", "targets=live"):
        assert group in branches
    assert "optimizer=adam" in branches
    assert branches["optimizer=adam"].endswith("lr=0.003 wd=0.0001")
    assert "dry_run=false" in done.stdout
    assert "_target_" not in done.stdout
    assert done.stdout.count("optimizer=adam") == 1
    again = command("train", *given, "optimizer.lr=0.003", cwd=workplace)
    assert "optimizer=adam" not in again.stdout  # nothing is trained


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    ("given", "proposed"),
    [
        ("recipie=consistent", "recipe"),
        ("studnt=digits", "student"),
        ("optimiser.lr=3", "optimizer.lr"),
        ("data=flowers", "flowers102"),
        ("recipe=zzz", "consistent, fixed_teacher, function_matching"),
        ("experiment=flowers102", "flowers102_"),
        ("experiment=zzz", "--help"),
    ],
)
def test_error_proposes_the_nearest_name(given: str, proposed: str, tmp_path: Path) -> None:
    code, _, err = command_here("train", given, cwd=tmp_path)
    assert code == 1
    assert is_error(err, given)
    assert proposed in err.removeprefix(f"error: {given}")


def test_recorded_command_repeats_the_overrides(tmp_path: Path) -> None:
    folder = tmp_path / ".hydra"
    folder.mkdir()
    row = {"directory": tmp_path, "recipe": "labels"}
    (folder / "overrides.yaml").write_text("- save_as=t_${seed}\n- optimizer.lr=0.1\n")
    assert summaries.command(row) is None
    source = "runtime: {config_sources: [{path: own, provider: command-line}]}"
    (folder / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: finetune}}, {source}}}")
    typed = ["finetune", "--config-dir=own", "save_as=t_${seed}", "optimizer.lr=0.1"]
    assert summaries.command(row) == typed


def test_sweep_command_retries_failed_runs(workplace: Path) -> None:
    cause = workplace / "cause"
    cause.touch()
    fault = inject("FailWhile", path=str(cause))
    given = ("-m", *QUICK, "steps=4", "schedule.warmup_steps=1", "seed=0,1", "name=mended", *fault)
    assert command("train", *given, cwd=workplace).returncode == 1
    done = command("train", *given, cwd=workplace)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 2
    cause.unlink()
    done = command("train", *given, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    statuses = [
        json.loads(path.read_text())["status"]
        for path in (workplace / "logs" / "mended").glob("*/summary.json")
    ]
    assert statuses == ["completed", "completed"]
