"""The experiments of conf/paper.csv, compared with the settings in the paper."""

import json
import re
import subprocess
from functools import cache

import hydra
import pytest
import torch
from omegaconf import DictConfig

from commands import ROOT
from funmatch.config import compose, groups, identity, schema, validation
from funmatch.experiment import datasets, networks
from funmatch.experiment.build import build
from funmatch.experiment.specs import NetworkSpec
from funmatch.models import pretrained
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher

ROWS = groups.paper()
NAMED = {row["name"]: row for row in ROWS if row["name"]}
NAMES = sorted(NAMED)
every = pytest.mark.parametrize("name", NAMES)
TABLES = sorted(path.stem for path in (ROOT / "conf" / "paper").glob("*.yaml"))
SMALL = [name for name in NAMES if NAMED[name]["base"] == "small_datasets"]
IMAGENET = [name for name in NAMES if NAMED[name]["base"] == "imagenet"]
STUDY = [name for name in NAMES if NAMED[name]["base"] == "consistency"]

# What the table is compared with is typed here from paper.md, sec. 7 to 9.
# Data: (classes, training images, what the paper's teacher is called among the released weights).
DATA = {
    "flowers102": (102, 1020, "R152x2_T_flowers128"),
    "pets": (37, 3312, "R152x2_T_pet128"),
    "food101": (101, 68_175, "R152x2_T_food128"),
    "sun397": (397, 76_128, "R152x2_T_sun128"),
    "imagenet": (1000, 1_255_544, "R152x2_T_224"),
}
# Some of its rows: epochs, temperature, lr, wd, top-1 in %, steps.
SETTINGS = {
    "flowers102_1m": (1_000_000, 1, 3e-4, 1e-5, 96.93, 1_992_188),
    "pets_300": (300, 2, 0.01, 1e-5, 82.75, 1_941),
    "pets_3k": (3_000, 10, 0.003, 3e-4, 90.08, 19_406),
    "food101_1k": (1_000, 10, 0.001, 3e-4, 86.64, 133_154),
    "sun397_1k": (1_000, 10, 0.003, 1e-4, 73.46, 148_688),
    "imagenet_300": (300, 1, 0.03, 3e-4, 80.30, 91_959),
    "imagenet_9600": (9_600, 1, 0.03, 3e-4, 82.31, 2_942_681),
}
# Some of ImageNet's figures by epochs, and of those from labels alone.
FIGURES = {
    ("imagenet_fixed_teacher", 30): "73.75",
    ("imagenet_fixed_teacher", 9600): "76.95",
    ("imagenet_consistent", 1200): "81.15",
    ("imagenet_t224_s160", 4800): "diverged",
    ("imagenet_t384", 4800): "82.33",
    ("imagenet_t384_t224", 1200): "82.12",
    ("imagenet_mobilenet_v3_large", 300): "74.60",
    ("imagenet_bitm_start", 90): "79.43",
    ("labels/imagenet", 300): "78.08",
    ("labels/flowers102_scratch", 10_000): "66.38",
    ("labels/sun397_transfer", None): "71.61",
}
# Forward of the teacher, forward and backward of the student, in FLOP an image, by side.
FLOP = {224: (91.6e9, 24.3e9), 128: (29.9e9, 7.9e9)}
RELEASED_NAMES = {
    **{"flowers102_fast": "10k", "flowers102_medium": "100k", "flowers102_long": "1m"},
    **{"pets_fast": "1k", "pets_medium": "3k", "pets_long": "30k"},
    **{"food101_fast": "100", "food101_medium": "1k", "food101_long": "3k"},
    **{"sun397_fast": "100", "sun397_medium": "1k", "sun397_long": "3k"},
}
# The teacher's fixed view decides what the student sees, unless it is set.
SEEN = {"resize": "whole", "centre": "mild", "inception_ensemble": "inception"}
TRANSFERS = {
    "pets_from_food101": ("pets_10k", "food101"),
    "pets_from_imagenet": ("pets_10k", "imagenet"),
    "sun397_from_imagenet": ("sun397_1k", "imagenet"),
}


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    command = "finetune" if name.startswith("labels/") else "train"
    with compose.compose_context():
        return hydra.compose(command, [f"experiment={name}", *overrides])


def configured(row: dict[str, str]) -> DictConfig:
    """What a row is typed as."""
    return (
        composed(row["name"]) if row["name"] else composed(row["base"], f"epochs={row['epochs']}")
    )


def label(row: dict[str, str]) -> str:
    return row["name"] or f"{row['base']} epochs={row['epochs']}"


every_row = pytest.mark.parametrize("row", ROWS, ids=label)


# --- the table -----------------------------------------------------------------------------------


def test_every_named_row_is_an_experiment() -> None:
    labels = [f"labels/{name}" for name in compose.group_options("experiment/labels")]
    assert sorted([*compose.group_options("experiment"), *labels]) == NAMES
    named = [row for row in ROWS if row["name"]]
    assert len(named) == len(NAMES) == 63
    assert {row["base"] for row in ROWS} == {*TABLES} | ({row["base"] for row in ROWS} & {*NAMES})


@every
def test_experiment_composes_and_validates(name: str) -> None:
    cfg = composed(name)
    validation.check(cfg)
    assert identity.run_id(cfg)


@every_row
def test_row_steps_equal_the_steps_of_the_run(row: dict[str, str]) -> None:
    cfg = configured(row)
    if row["steps"]:
        assert int(row["steps"]) == schema.total_steps(cfg)
    else:  # as its base
        assert identity.identity(cfg) == identity.identity(composed(row["base"]))
    if cfg.epochs is not None:
        images = DATA[cfg.data.name][1]
        assert schema.total_steps(cfg) == round(cfg.epochs * images / cfg.batch_size)


@every_row
def test_row_gpu_hours_equal_the_computed_cost(row: dict[str, str]) -> None:
    """At 790 TFLOP/s; of the rows whose networks are the R50 and, if any, one R152x2."""
    cfg = configured(row)
    learns = cfg.student if "student" in cfg else cfg.model
    others = ("imagenet_t", "imagenet_mobile", "consistency_fixed_ensemble")
    if not row["gpu_hours"] or label(row).startswith(others):
        return
    teacher, student = FLOP[learns.side]
    if "teacher" not in cfg or "teacher_crop" in cfg.recipe:  # evaluated once per image
        teacher = 0
    images = schema.total_steps(cfg) * cfg.batch_size
    hours = images * (teacher + student) / 790e12 / 3600
    assert float(row["gpu_hours"]) == pytest.approx(hours, rel=0.08)


@every_row
def test_row_has_expected_figure_source_and_title(row: dict[str, str]) -> None:
    assert bool(row["source"]) == bool(row["steps"]) == bool(row["gpu_hours"])
    expected = row["expected"]
    assert expected in ("", "diverged") or 20 < float(expected.lstrip("<~")) < 100
    assert bool(row["title"]) == bool(row["name"])


@pytest.mark.parametrize("name", SETTINGS)
def test_row_has_the_papers_settings_and_accuracy(name: str) -> None:
    epochs, temperature, lr, wd, accuracy, steps = SETTINGS[name]
    cfg = composed(name)
    assert (cfg.epochs, schema.total_steps(cfg)) == (epochs, steps)
    assert (cfg.objective.temperature, cfg.optimizer.lr, cfg.optimizer.wd) == (temperature, lr, wd)
    assert float(NAMED[name]["expected"]) == accuracy


@pytest.mark.parametrize(("name", "epochs"), FIGURES)
def test_row_has_the_papers_figure(name: str, epochs: int | None) -> None:
    (figure,) = (
        row["expected"]
        for row in ROWS
        if name in (row["name"], row["base"]) and row["epochs"] == str(epochs or "")
    )
    assert figure == FIGURES[name, epochs]


@pytest.mark.parametrize("table", TABLES)
def test_table_header_describes_rows_and_command(table: str) -> None:
    text = (ROOT / "conf" / "paper" / f"{table}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    for key in ("Paper", "Rows", "Command", "Cost", "Expected"):
        assert re.search(rf"^# {key}: +\S", text, re.MULTILINE)
    (command,) = re.findall(r"^# Command: +python src/(.*)$", text, re.MULTILINE)
    parsed = re.match(r"(\w+)\.py experiment=([\w/]+)( epochs=1200)?$", command)
    assert parsed is not None
    assert parsed[1] == ("finetune" if parsed[2].startswith("labels/") else "train")
    assert NAMED[parsed[2]]["base"] == table


# --- settings ------------------------------------------------------------------------------------


def is_function_matching(cfg: DictConfig) -> bool:
    recipe = (cfg.recipe.name, cfg.recipe.crop, cfg.recipe.mixing, cfg.recipe.alpha)
    return recipe == ("function_matching", "inception", True, 1.0)


def optimises_as_the_paper(cfg: DictConfig, lr: float, wd: float, warmup: int) -> bool:
    optimizer, schedule = cfg.optimizer, cfg.schedule
    return (
        optimizer._target_ == "funmatch.optim.adam.adam"
        and schedule._target_ == "funmatch.optim.schedules.warmup_cosine"
        and (optimizer.lr, optimizer.wd, schedule.warmup_steps) == (lr, wd, warmup)
        and cfg.clip_norm == 1.0
    )


@pytest.mark.parametrize("name", SMALL)
def test_small_data_set_row_has_the_papers_settings(name: str) -> None:
    row, data = NAMED[name], name.partition("_")[0]
    classes, images, weights = DATA[data]
    cfg = composed(name)
    assert (cfg.batch_size, cfg.objective.temperature in (1, 2, 5, 10)) == (512, True)
    assert optimises_as_the_paper(cfg, float(row["lr"]), float(row["wd"]), 1500)
    assert is_function_matching(cfg)
    assert (cfg.data.name, cfg.data.classes, cfg.data.train_size) == (data, classes, images)
    assert (cfg.data.min_area, cfg.data.flip, list(cfg.data.mild)) == (0.05, True, [160, 128])
    assert list(schema.training_sets(cfg)) == ["data"]
    assert (cfg.teacher.weights, cfg.teacher.head) == (weights, "keep")
    assert cfg.student.weights is None


@pytest.mark.parametrize("name", RELEASED_NAMES)
def test_released_name_equals_its_row(name: str) -> None:
    row = f"{name.partition('_')[0]}_{RELEASED_NAMES[name]}"
    assert identity.identity(composed(name)) == identity.identity(composed(row))


@pytest.mark.parametrize("epochs", [30, 90, 300, 600, 1200, 4800, 9600])
def test_imagenet_epochs_row_is_function_matching_of_that_length(epochs: int) -> None:
    cfg = composed(f"imagenet_{epochs}")
    longer = composed("imagenet_function_matching", f"epochs={epochs}")
    assert identity.identity(cfg) == identity.identity(longer)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_row_has_the_papers_settings(name: str) -> None:
    cfg = composed(name)
    assert (cfg.data.name, cfg.data.classes, cfg.data.train_size) == ("imagenet", 1000, 1_255_544)
    assert (cfg.epochs, cfg.batch_size, cfg.objective.temperature) == (1200, 4096, 1.0)
    assert optimises_as_the_paper(cfg, 0.03, 3e-4, 5000)
    assert (cfg.data.side, cfg.data.resize) == (224, 256)
    if name in ("imagenet_consistent", "imagenet_fixed_teacher"):
        assert cfg.recipe.name == name.removeprefix("imagenet_")
        assert not cfg.recipe.mixing
    else:
        assert is_function_matching(cfg)


def test_imagenet_teacher_pair_averages_logits() -> None:
    cfg = composed("imagenet_t384_t224")
    assert cfg.teacher.combine == "logit"
    assert cfg.teacher.shares is None
    assert teacher_of(cfg).combine == "logit"


def test_shampoo_row_has_the_settings_of_the_appendix() -> None:
    cfg = composed("imagenet_shampoo")
    assert cfg.optimizer._target_ == "funmatch.optim.shampoo.shampoo"
    assert (cfg.optimizer.block_size, cfg.optimizer.every, cfg.optimizer.wd) == (128, 1, 3.75e-4)
    assert cfg.schedule._target_ == "funmatch.optim.schedules.warmup_quadratic"
    assert cfg.schedule.warmup_steps == 1800
    assert is_function_matching(cfg)
    assert schema.total_steps(cfg) == 367_835


@pytest.mark.parametrize("name", STUDY)
def test_consistency_study_varies_only_the_recipe(name: str) -> None:
    cfg, base = composed(name), composed("flowers102_10k")
    kind, _, view = name.removeprefix("consistency_").rpartition("_")
    built_recipe = datasets.build_recipe(build(cfg))
    if kind == "fixed":
        assert cfg.recipe.name == "fixed_teacher"
        assert cfg.recipe.teacher_crop == {"ensemble": "inception_ensemble"}.get(view, view)
        assert built_recipe.student_crop == SEEN[cfg.recipe.teacher_crop]
    elif kind == "function":
        assert is_function_matching(cfg)
    else:
        names = {"independent": "independent_noise", "consistent": "consistent"}
        assert (cfg.recipe.name, cfg.recipe.crop) == (names[kind], view)
    assert cfg.recipe.mixing == (kind == "function")
    if view == "ensemble":
        assert cfg.recipe.ensemble == 1000
    own, others = identity.identity(cfg), identity.identity(base)
    own.pop("recipe")
    others.pop("recipe")
    assert own == others


@pytest.mark.parametrize(("name", "data", "epochs"), [
    ("consistency_consistent_mild", "pets", 1000),
    ("consistency_fixed_centre", "food101", 100),
    ("consistency_independent_inception", "sun397", 100),
])  # fmt: skip
def test_consistency_study_accepts_other_data_sets(name: str, data: str, epochs: int) -> None:
    cfg = composed(name, f"data={data}", f"epochs={epochs}")
    validation.check(cfg)
    assert (cfg.data.name, cfg.teacher.weights) == (data, DATA[data][2])
    assert schema.total_steps(cfg) == round(epochs * DATA[data][1] / 512)


@pytest.mark.parametrize("name", TRANSFERS)
def test_out_of_domain_rows_train_only_on_the_transfer_set(name: str) -> None:
    row, transfer = TRANSFERS[name]
    cfg, base = composed(name), composed(row)
    assert [part.name for part in schema.training_sets(cfg).values()] == [transfer]
    assert schema.train_size(cfg) == cfg.transfer[transfer].train_size > cfg.data.train_size
    assert schema.total_steps(cfg) == schema.total_steps(base)
    own, others = identity.identity(cfg), identity.identity(base)
    assert own.pop("transfer").keys() == {transfer}
    others.pop("transfer")
    assert own == others


@pytest.mark.parametrize("data", [data for data in DATA if data != "imagenet"])
def test_label_transfer_rows_follow_the_bit_hyperrule(data: str) -> None:
    cfg = composed(f"labels/{data}_transfer")
    large = DATA[data][1] >= 20_000
    steps, warmup, milestones = (
        (10_000, 500, [3000, 6000, 9000]) if large else (500, 100, [200, 300, 400])
    )
    assert (schema.total_steps(cfg), cfg.batch_size) == (steps, 512)
    assert cfg.optimizer._target_ == "funmatch.optim.sgd.sgd"
    optimizer = (cfg.optimizer.lr, cfg.optimizer.wd, cfg.optimizer.momentum)
    assert optimizer == (0.003, 0.0, 0.9)
    assert cfg.schedule._target_ == "funmatch.optim.schedules.warmup_staircase"
    assert (cfg.schedule.warmup_steps, list(cfg.schedule.milestones)) == (warmup, milestones)
    assert cfg.schedule.factor == 0.1
    assert cfg.clip_norm is None
    assert (cfg.recipe.crop, cfg.recipe.mixing, cfg.recipe.alpha) == ("mild", large, 0.1)
    assert (cfg.model.weights, cfg.model.head) == ("BiT-M-R50x1", "zero")


@pytest.mark.parametrize("data", DATA)
def test_label_scratch_rows_have_no_weights_and_the_papers_settings(data: str) -> None:
    name = "labels/imagenet" if data == "imagenet" else f"labels/{data}_scratch"
    rows = {"flowers102": "10k", "pets": "1k", "food101": "100", "sun397": "100"}
    row = "imagenet_function_matching" if data == "imagenet" else f"{data}_{rows[data]}"
    cfg, base = composed(name), composed(row)
    assert cfg.model.weights is None
    assert cfg.recipe.mixing
    assert cfg.recipe.name == "labels"
    for key in ("data", "optimizer", "schedule", "steps"):
        assert identity.identity(cfg)[key] == identity.identity(base)[key]


# --- networks ------------------------------------------------------------------------------------


_SKETCHES: dict[str, Network] = {}


def sketched(spec: NetworkSpec) -> Network:
    """A network without numbers in it; equal ones are built once."""
    key = json.dumps(dict(spec.settings))
    if key not in _SKETCHES:
        with torch.device("meta"):
            _SKETCHES[key] = networks.build_network(spec)
    return _SKETCHES[key]


def parameters(spec: NetworkSpec) -> int:
    return sum(parameter.numel() for parameter in sketched(spec).parameters())


def teacher_of(cfg: DictConfig) -> Teacher:
    experiment = build(cfg)
    return networks.build_teacher(experiment, datasets.build_task(experiment.data), sketched)


def bit_parameters(blocks: tuple[int, ...], width: int, classes: int) -> int:
    """Of a BiT ResNet-v2, layer by layer: convolutions without bias, norms with scale and shift."""
    channels = 64 * width
    total = 7 * 7 * 3 * channels
    for stage, units in enumerate(blocks):
        out = 256 * width * 2**stage
        inner = out // 4
        total += channels * out  # projection of the shortcut
        for _ in range(units):
            total += channels * inner + 9 * inner * inner + inner * out
            total += 2 * (channels + inner + inner)
            channels = out
    return total + 2 * channels + (channels + 1) * classes


def expected_parameters(kind: str, classes: int) -> int:
    if kind == "bit_r50":
        return bit_parameters((3, 4, 6, 3), 1, classes)
    if kind == "bit_r152x2":
        return bit_parameters((3, 8, 36, 3), 2, classes)
    return 5_483_032 + (classes - 1000) * 1281  # MobileNetV3-Large, Howard et al. 2019


@pytest.mark.parametrize(
    ("kind", "millions"), [("bit_r50", 25.5), ("bit_r152x2", 236.3), ("mobilenet_v3_large", 5.5)]
)
def test_parameter_formulas_give_published_sizes(kind: str, millions: float) -> None:
    assert expected_parameters(kind, 1000) / 1e6 == pytest.approx(millions, abs=0.06)


@every
def test_experiment_networks_have_the_papers_sizes(name: str) -> None:
    cfg = composed(name)
    experiment = build(cfg)
    mobile = name == "imagenet_mobilenet_v3_large"
    kind = "mobilenet_v3_large" if mobile else "bit_r50"
    assert parameters(experiment.student) == expected_parameters(kind, cfg.data.classes)
    if experiment.teacher is not None:
        assert [parameters(member) for member in experiment.teacher.members.values()] == [
            expected_parameters("bit_r152x2", cfg.data.classes)
        ] * (2 if name == "imagenet_t384_t224" else 1)


@every
def test_experiment_views_have_the_papers_sides(name: str) -> None:
    cfg = composed(name)
    side = 224 if cfg.data.name == "imagenet" else 128
    learns = cfg.student if "student" in cfg else cfg.model
    expected = {"imagenet_t224_s160": (160, 183)}.get(name, (side, {224: 256, 128: 160}[side]))
    assert (learns.side, learns.resize) == expected
    if "teacher" in cfg:
        teachers = {
            "imagenet_t384": {"teacher": 384},
            "imagenet_t384_t224": {"teacher.t384": 384, "teacher.t224": 224},
        }.get(name, {"teacher": side})
        assert teacher_of(cfg).sides == teachers


@every
def test_experiment_weights_are_released_weights(name: str) -> None:
    cfg = composed(name)
    data = cfg.data.name
    if "teacher" in cfg:
        own = DATA[data][2]
        expected = {
            "imagenet_t384": ["R152x2_T_384"],
            "imagenet_t384_t224": ["R152x2_T_224", "R152x2_T_384"],  # by their names
        }.get(name, [own])
        names = [part.weights for part in schema.teachers(cfg).values()]
        assert names == expected
        assert set(names) <= set(pretrained.NAMES)
    learns = cfg.student if "student" in cfg else cfg.model
    starts = name == "imagenet_bitm_start" or name.endswith("_transfer")
    assert learns.weights == ("BiT-M-R50x1" if starts else None)


def test_mobilenet_student_uses_group_norm() -> None:
    kinds = {
        type(module).__name__
        for module in sketched(build(composed("imagenet_mobilenet_v3_large")).student).modules()
    }
    assert not any("BatchNorm" in kind for kind in kinds)
    assert any("GroupNorm" in kind for kind in kinds)


# --- the list ------------------------------------------------------------------------------------


def test_make_lists_every_experiment_with_its_title() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "experiments"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["name", "expected", "gpu_hours", "title"]
    columns = ("name", "expected", "gpu_hours", "title")
    expected = [" ".join(row[key] for key in columns).split() for row in ROWS if row["name"]]
    assert [line.split() for line in lines] == expected
