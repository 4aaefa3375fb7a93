"""The benchmark command: its files, its errors and its timing ratios."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from commands import ROOT, command

sys.path.insert(0, str(ROOT / "benchmarks"))

QUICK = ("pairs=[digits]", "rounds=2", "seconds=0.05", "threads=1")


@pytest.mark.slow
def test_benchmark_writes_json_table_and_plot(workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "benchmark"
    shutil.copytree(workplace / "logs" / "teachers", folder / "logs" / "teachers")
    done = command("benchmark", "figures=[overhead,targets]", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "benchmark.json").read_text())
    assert [(row["figure"], row["what"]) for row in results["rows"]] == [
        ("overhead", "funmatch / bare"),
        ("overhead", "peak memory, funmatch / bare"),
        ("targets", "fixed teacher / labels"),
        ("targets", "replayed / labels"),
    ]
    assert all(row["value"] > 0 for row in results["rows"])
    assert all(row["holds"] == (row["value"] >= row["target"]) for row in results["rows"][2:])
    table = (folder / "benchmark.md").read_text()
    assert all(row["detail"] in table for row in results["rows"])
    assert (folder / "benchmark.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("figures=[sped]", "figures=[sped]: no such figure; choose overhead, others"),
        ("pairs=[imagenet]", "pairs=[imagenet]: no such pair; choose digits, mobilenet, bit"),
        ("photographs=nowhere", "photographs=nowhere: no such folder"),
    ],
)
def test_benchmark_refuses_unknown_figures_and_pairs_in_one_line(
    tmp_path: Path, override: str, message: str
) -> None:
    done = command("benchmark", override, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_timing_ratio_is_computed_within_each_round() -> None:
    """A machine that slows down by half in the second round changes no ratio."""
    from interleaved_timing import Result

    timings = Result({"one": [1.0, 2.0, 1.0], "other": [1.5, 3.0, 1.5]}, {})
    assert timings.ratio("one", "other") == (1.5, 1.5, 1.5)
    assert timings.ratio("other", "one")[0] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_exited_contender_is_reported_with_its_log(tmp_path: Path) -> None:
    from interleaved_timing import Contender, ContenderError

    with (
        Contender("benchmarks/baseline_loop.py", ["recipe=none_such"], tmp_path) as contender,
        pytest.raises(
            ContenderError, match=r"baseline_loop\.py recipe=none_such has ended; see .*log"
        ),
    ):
        contender.ready()
