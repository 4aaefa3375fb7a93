"""Two processes teach as one."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from commands import QUICK, command
from funmatch.runs import Run

SETTINGS = ("steps=40", "schedule.warmup_steps=5", "validate_every=15", *QUICK)
TWO = ("trainer.devices=2",)


@pytest.fixture(scope="module")
def both(workplace: Path) -> dict[str, Run]:
    runs = {}
    for name, more in (("one", ()), ("two", TWO)):
        done = command("train", *SETTINGS, f"name={name}-rank", *more, cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        (summary,) = (workplace / "logs" / f"{name}-rank").glob("*/summary.json")
        runs[name] = Run(summary.parent)
    return runs


def test_two_ranks_end_with_the_weights_of_one(both: dict[str, Run]) -> None:
    one, two = (safetensors.torch.load_file(run.student) for run in both.values())
    for name in one:  # but for the order in which gradients are summed
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_two_ranks_measure_what_one_measures(both: dict[str, Run]) -> None:
    one, two = (run.result for run in both.values())
    for column in ("student_test_top1", "teacher_test_top1", "agreement_top1", "kl_to_teacher"):
        assert two[column] == pytest.approx(one[column], abs=0.01)
    assert len(both["two"].metrics.read_text().splitlines()) == len(
        both["one"].metrics.read_text().splitlines()
    )


def test_the_jobs_of_a_sweep_start_their_own_ranks(workplace: Path, both: dict[str, Run]) -> None:
    done = command("train", "-m", "seed=0,1", *SETTINGS, "name=two-swept", *TWO, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    swept = [Run(path.parent) for path in sorted((workplace / "logs/two-swept").glob("*/summ*"))]
    assert [run.result["seed"] for run in swept] == [0, 1]
    assert swept[0].student.read_bytes() == both["two"].student.read_bytes()
    assert swept[0].metrics.read_text() == both["two"].metrics.read_text()
    assert swept[1].student.read_bytes() != both["two"].student.read_bytes()
