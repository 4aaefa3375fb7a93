"""Dry runs, saved networks and sweeps."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from torch import nn

import small
from commands import command
from funmatch.cli import app
from funmatch.config import schema, validation
from funmatch.config.compose import compose_context
from funmatch.experiment import dry_run, networks
from funmatch.experiment.build import build
from funmatch.models import timm_models
from funmatch.models.network import Network
from funmatch.runs.directory import Run
from funmatch.runtime.hydra_versions import HAS_WHITELIST
from small import SMALL, STUDENT, TEACHER

DRY = "dry_run=true"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dry_run")
    small.split_folder(home / "images")
    return home


@pytest.fixture(scope="module")
def made(home: Path) -> Run:
    """The run that `small` is of."""
    return small.finetuned(home, home / "images")


def on(home: Path) -> tuple[str, ...]:
    """The data of these tests, by absolute paths."""
    return ("data=folder", f"data.root={home}/images", f"paths.logs={home}/logs")


def left(folder: Path) -> dict[str, int]:
    """Every file and folder below a folder, with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


# --- dry runs ------------------------------------------------------------------------------------


def dry_run_lines(home: Path, cwd: Path, script: str, *overrides: str) -> dict[str, list[str]]:
    """What a dry run prints, by the first word of a line; it leaves everything as it was."""
    before = left(home), left(cwd)
    user = home.with_name("user")  # where matplotlib, whoever imports it, keeps its fonts
    done = command(script, *overrides, DRY, *SMALL, cwd=cwd, HOME=str(user))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (left(home), left(cwd)) == before
    return lines(done.stdout)


def lines(printed: str) -> dict[str, list[str]]:
    head, *rest = printed.splitlines()
    assert head.endswith("(dry run: nothing is written)")
    values: dict[str, list[str]] = {}
    for line in rest:
        key, _, value = line.strip().partition(" ")
        values.setdefault(key, []).append(value.strip())
    return values


SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def number(text: str, unit: str) -> float:
    """The number before a unit: 1.2e6 from "1.2 MFLOP"; three digits are printed."""
    value, name = text.split()[:2]
    assert name.endswith(unit)
    return float(value) * SCALES[name.removesuffix(unit)]


def parameters(line: str) -> float:
    value, scale = line.split(" parameters")[0].split()
    return float(value) * SCALES[scale]


def flop(line: str) -> float:
    return number(line.split(", ")[1], "FLOP")


def layers(network: Network) -> list[float]:
    """The floating-point operations of each layer for one image, from its shapes."""
    operations: list[float] = []

    def hook(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        operations.append(2 * layer.weight[0].numel() * out.numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        network(torch.zeros(1, 3, network.side, network.side))
    return operations


def about(value: float) -> object:
    return pytest.approx(value, rel=6e-3)


def test_dry_run_reports_steps_sizes_and_cost(
    home: Path, made: Run, compose, tmp_path: Path
) -> None:
    overrides = (*on(home), *STUDENT, *TEACHER, "epochs=50")
    report = dry_run_lines(home, tmp_path, "train", *overrides)
    cfg = compose(*overrides, *SMALL)
    steps = schema.total_steps(cfg)
    assert steps == 300
    assert report["steps"] == ["300 of 6 images (50 epochs of 36)"]
    experiment = build(cfg)
    assert experiment.teacher is not None
    student = networks.build_network(experiment.student)
    teacher = networks.build_network(experiment.teacher.members["teacher"])
    for key, network in (("student", student), ("teacher", teacher)):
        (line,) = report[key]
        assert parameters(line) == about(sum(p.numel() for p in network.parameters()))
        assert "an image of 16 px" in line
    (forward,) = map(flop, report["teacher"])
    (both,) = map(flop, report["student"])
    assert forward == about(sum(layers(teacher)))
    # Backward is twice forward, without the gradient of the image.
    assert both == about(3 * sum(layers(student)) - layers(student)[0])
    assert number(report["compute"][0], "FLOP") == about(steps * 6 * (forward + both))
    assert report["time"][0].endswith("on 1 x cpu with 1 threads, data and validation aside")
    assert f"in {home}/logs; " in report["disk"][0]
    assert report["ready"] == [""]
    assert "missing" not in report


def test_dry_run_names_missing_data_and_weights(home: Path, tmp_path: Path) -> None:
    net = ("teacher.net.depth=[1]", "teacher.net.width=0.5")
    report = dry_run_lines(
        home, tmp_path, "train", "data=pets", "teacher=bit_r152x2", *net, *STUDENT, "epochs=100"
    )
    assert report["steps"] == ["55,200 of 6 images (100 epochs of 3,312)"]
    data, weights = report["missing"]
    assert data.startswith("data.root=data: folder oxford-iiit-pet does not exist; ")
    assert weights.startswith("teacher.weights=R152x2_T_pet128: not on this machine yet")
    assert report["not"] == ["ready: see what is missing"]
    assert "ready" not in report


def test_dry_run_of_finetune_reports_the_model(home: Path, compose, tmp_path: Path) -> None:
    model = ("model=bit_tiny", "model.net.depth=[1]", "model.weights=BiT-M-R50x1")
    overrides = (*on(home), *model, "rule=bit_hyperrule", "save_as=later")
    report = dry_run_lines(home, tmp_path, "finetune", *overrides)
    assert report["recipe"] == ["labels, data folder, seed 0"]
    assert report["steps"] == ["500 of 6 images (83 epochs of 36)"]  # by the rule
    cfg = compose(*overrides, *SMALL, name="finetune")
    assert parameters(report["model"][0]) == about(
        sum(p.numel() for p in networks.build_network(build(cfg).student).parameters())
    )
    (missing,) = report["missing"]
    assert missing.startswith("model.weights=BiT-M-R50x1: not on this machine yet")
    assert "teacher" not in report


def test_dry_run_reports_each_teacher_of_an_ensemble(
    home: Path, made: Run, compose, tmp_path: Path
) -> None:
    members = ("+teacher@teacher.members.a=saved", "+teacher@teacher.members.b=saved")
    names = ("teacher.members.a.name=small", f"teacher.members.b.name={made.directory}")
    overrides = (*on(home), *STUDENT, "teacher=ensemble", *members, *names, "steps=7")
    report = dry_run_lines(home, tmp_path, "train", *overrides)
    cfg = compose(*overrides, *SMALL)
    teacher = build(cfg).teacher
    assert teacher is not None
    size = sum(p.numel() for p in networks.build_network(teacher.members["a"]).parameters())
    keys = [f"teacher.members.{name}" for name in "ab"]
    costs = 0.0
    for key in keys:
        assert parameters(report[key][0]) == about(size)
        costs += flop(report[key][0])
    assert number(report["compute"][0], "FLOP") == about(
        7 * 6 * (costs + flop(report["student"][0]))
    )
    assert report["ready"] == [""]


def test_dry_runs_of_a_sweep_write_nothing(home: Path, made: Run, tmp_path: Path) -> None:
    arguments = (*on(home), *STUDENT, *TEACHER, "steps=7", "seed=0,1", DRY, *SMALL)
    before = left(home), left(tmp_path)
    done = command("train", "-m", *arguments, cwd=tmp_path, HOME=str(home.with_name("user")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run: nothing is written") == 2
    assert (left(home), left(tmp_path)) == before


@pytest.fixture
def dry_run_here(compose, capsys) -> Callable[..., dict[str, list[str]]]:
    """The output of a dry run in this process, by the first word of a line."""

    def call(*overrides: str) -> dict[str, list[str]]:
        cfg = compose(*overrides, *SMALL)
        validation.check(cfg)
        with compose_context():
            dry_run.dry_run(build(cfg))
        return lines(f"(dry run: nothing is written)\n{capsys.readouterr().out}")

    return call


def test_dry_run_counts_grouped_convolutions_correctly(home: Path, made: Run, dry_run_here) -> None:
    """Depthwise kernels have a gradient as cheap as they are."""
    student = ("student=timm", "student.name=mobilenetv3_small_050", "student.side=32")
    report = dry_run_here(*on(home), *student, "student.resize=40", *TEACHER, "steps=7")
    network = timm_models.build("mobilenetv3_small_050", num_classes=3)
    views = {"mean": [0.5] * 3, "std": [0.5] * 3, "side": 32, "resize": 40}
    one = sum(layers(Network(network, **views).eval()))
    assert 2.8 * one < flop(report["student"][0]) < 3 * one


def test_dry_run_counts_a_fixed_teacher_once_per_image(home: Path, made: Run, dry_run_here) -> None:
    given = (*on(home), *STUDENT, *TEACHER, "steps=500", "recipe=fixed_teacher")
    for views, crop in ((1, "resize"), (1, "centre"), (90, "inception_ensemble")):
        report = dry_run_here(*given, f"recipe.teacher_crop={crop}", "recipe.ensemble=90")
        student, teacher = (flop(report[key][0]) for key in ("student", "teacher"))
        expected = 500 * 6 * student + 36 * views * teacher
        assert number(report["compute"][0], "FLOP") == about(expected)


def test_dry_run_disk_estimate_is_sufficient(home: Path, made: Run, dry_run_here) -> None:
    report = dry_run_here(*on(home), *STUDENT, *TEACHER, "steps=7")
    estimate = number(report["disk"][0].removeprefix("about "), "B")
    used = sum(path.stat().st_size for path in (*made.checkpoints.all(), made.student))
    assert estimate / 4 < used < estimate  # `made` is of the same size as the student


def test_dry_run_downloads_nothing(home: Path, made: Run, dry_run_here, tmp_path: Path) -> None:
    data = ("data=imagenet", "data.classes=3", f"data.root={tmp_path}", "data.download=true")
    report = dry_run_here(*data, f"paths.logs={home}/logs", *STUDENT, *TEACHER, "steps=7")
    assert report["missing"][0].startswith(f"data.root={tmp_path}: folder train does not exist; ")
    assert not list(tmp_path.iterdir())


TIMM = ("teacher=timm", "teacher.name=resnet10t", "teacher.classes=3")


def test_dry_run_uses_the_default_side_of_timm(home: Path, dry_run_here) -> None:
    report = dry_run_here(*on(home), *STUDENT, *TIMM, "steps=7")
    assert "an image of 176 px" in report["teacher"][0]


def test_dry_run_names_missing_hub_weights(
    home: Path, dry_run_here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    report = dry_run_here(*on(home), *STUDENT, *TIMM, "steps=7")
    assert "teacher.weights=hub" in report["missing"][0]


def test_dry_run_names_a_teacher_that_must_be_trained_first(dry_run_here, tmp_path: Path) -> None:
    report = dry_run_here("data=digits", "student=digits", f"paths.logs={tmp_path}", "steps=7")
    assert report["missing"] == ["teacher: not made yet; the run fine-tunes it first, 4,000 steps"]


# --- saved networks ------------------------------------------------------------------------------


def test_saved_network_equals_that_of_its_run(home: Path, made: Run) -> None:
    saved = home / "logs" / "teachers" / "small"
    assert (saved / "student.safetensors").read_bytes() == made.student.read_bytes()
    assert (saved / "model.json").read_bytes() == made.model.read_bytes()
    assert made.result["student_test_top1"] > 1 / 3  # it has learned


@pytest.fixture(scope="module")
def distilled(home: Path, made: Run) -> list[Run]:
    """Two students of the saved network, named in two ways, which makes no other run."""
    names = (TEACHER[0], f"teacher.name=small,logs/made/{made.directory.name}")
    data = ("data=folder", f"data.root={home}/images", "name=students", "objective.temperature=1,2")
    done = command("train", "-m", *data, *STUDENT, *names, "steps=9", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "best on val (" in done.stdout
    assert done.stdout.count("finished before") == 2
    return [Run(path.parent) for path in (home / "logs" / "students").glob("*/config.yaml")]


def test_saved_network_serves_as_teacher(distilled: list[Run], made: Run) -> None:
    assert len(distilled) == 2
    for run in distilled:
        assert run.result["teacher_test_top1"] == made.result["student_test_top1"]


def measured(cwd: Path, *arguments: str) -> dict[str, float]:
    done = command("evaluate", *arguments, "trainer.accelerator=cpu", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines()[1:])}


@pytest.mark.parametrize(
    "where",
    ["home", "elsewhere"],
)
def test_evaluate_repeats_the_figures_of_a_saved_teachers_student(
    home: Path, distilled: list[Run], tmp_path: Path, where: str
) -> None:
    run = distilled[0]
    figures = measured(home if where == "home" else tmp_path, f"run={run.directory}")
    assert {"student_test_top1", "teacher_test_top1", "kl_to_teacher"} <= set(figures)
    for name, value in figures.items():
        assert value == pytest.approx(run.result[name], abs=1e-4)


def test_evaluate_measures_a_saved_network_on_a_label_csv(home: Path, made: Run) -> None:
    table = ("data=folder", "data.root=images", "data.labels=labels.csv")
    figures = measured(home, *TEACHER, *table)
    expected = made.result["student_test_top1"]
    assert figures == {"teacher_test_top1": pytest.approx(expected, abs=1e-4)}


# --- sweeps --------------------------------------------------------------------------------------

GRID = {
    "optimizer.lr": (0.0003, 0.001, 0.003, 0.01),
    "optimizer.wd": (0.00001, 0.00003, 0.0001, 0.0003, 0.001),
    "objective.temperature": (1, 2, 5, 10),
}


def sweep(*overrides: str) -> list[dict[str, str]]:
    """The jobs of `sweep=paper`, by key."""
    with compose_context():
        cfg = hydra.compose("train", ["sweep=paper"], return_hydra_config=True)
    cfg.hydra.overrides.task = list(overrides)
    return [dict(override.split("=", 1) for override in job) for job in app.sweep(cfg)]


def test_paper_sweep_has_80_points() -> None:
    jobs = sweep("data=pets", "teacher=bit_r152x2", "student=bit_r50")
    points = [tuple(float(job[key]) for key in GRID) for job in jobs]
    assert len(points) == 80
    assert sorted(points) == sorted(itertools.product(*GRID.values()))


def test_paper_sweep_is_narrowed_and_extended_by_overrides() -> None:
    jobs = sweep("optimizer.wd=0.0001", "seed=0,1", "objective.temperature=1,2")
    points = {(float(job["optimizer.lr"]), job["seed"]) for job in jobs}
    assert len(jobs) == 4 * 2 * 2
    assert points == set(itertools.product(GRID["optimizer.lr"], "01"))
    assert {job["optimizer.wd"] for job in jobs} == {"0.0001"}


@pytest.mark.slow
@pytest.mark.skipif(HAS_WHITELIST, reason="hydra-optuna-sweeper 1.3 needs Hydra 1.3")
def test_optuna_sweep_reports_the_best_run_on_val(home: Path, made: Run) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    data = ("data=folder", "data.root=images", "name=search")
    search = ("-m", "sweep=optuna", "hydra.sweeper.n_trials=2", "steps=9")
    done = command("train", *search, *data, *STUDENT, *TEACHER, *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert "[2/2] logs/search/function_matching-s0-" in done.stdout
    rows = [json.loads(path.read_text()) for path in (home / "logs/search").glob("*/summary.json")]
    assert len(rows) == 2
    best = max(row["student_val_top1"] for row in rows)
    assert f"best on val ({best:.3f}): function_matching " in done.stdout
    results = yaml.safe_load((home / "logs/search/optimization_results.yaml").read_text())
    assert results["best_value"] == pytest.approx(best)
    chosen = [tuple(lookup(row["settings"], key) for key in GRID) for row in rows]
    assert tuple(results["best_params"][key] for key in GRID) in chosen
    for point in chosen:
        assert all(value in GRID[key] for key, value in zip(GRID, point, strict=True))


def lookup(settings: dict, key: str) -> float:
    group, name = key.split(".")
    return settings[group][name]
