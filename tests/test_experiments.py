"""The rows of the paper: every experiment is what paper.md, sec. 8, says of it."""

import json
import re
import subprocess
from functools import cache

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from commands import ROOT
from funmatch.config import compose, identity, schema, validation
from funmatch.experiment import build
from funmatch.models import pretrained
from funmatch.models.network import Network

FOLDER = ROOT / "conf" / "experiment"
NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")
)
every = pytest.mark.parametrize("name", NAMES)

# Data: (classes, training images, what the paper's teacher is called among the released weights).
DATA = {
    "flowers102": (102, 1020, "R152x2_T_flowers128"),
    "pets": (37, 3312, "R152x2_T_pet128"),
    "food101": (101, 68_175, "R152x2_T_food128"),
    "sun397": (397, 76_128, "R152x2_T_sun128"),
}
# Length in epochs: temperature, lr, wd, the student's test top-1 in %, steps of 512 images.
SMALL = {
    "flowers102_1k": (1_000, 10, 0.003, 1e-3, 77.51, 1_992),
    "flowers102_10k": (10_000, 10, 0.003, 3e-4, 92.83, 19_922),
    "flowers102_100k": (100_000, 1, 0.001, 1e-4, 95.54, 199_219),
    "flowers102_1m": (1_000_000, 1, 3e-4, 1e-5, 96.93, 1_992_188),
    "pets_300": (300, 2, 0.01, 1e-5, 82.75, 1_941),
    "pets_1k": (1_000, 5, 0.01, 1e-3, 88.01, 6_469),
    "pets_3k": (3_000, 10, 0.003, 3e-4, 90.08, 19_406),
    "pets_10k": (10_000, 2, 0.001, 1e-4, 90.98, 64_688),
    "pets_30k": (30_000, 2, 0.003, 1e-5, 91.06, 194_062),
    "food101_100": (100, 10, 0.01, 1e-3, 83.29, 13_315),
    "food101_1k": (1_000, 10, 0.001, 3e-4, 86.64, 133_154),
    "food101_3k": (3_000, 5, 0.01, 1e-4, 87.20, 399_463),
    "sun397_100": (100, 10, 0.01, 1e-3, 68.28, 14_869),
    "sun397_1k": (1_000, 10, 0.003, 1e-4, 73.46, 148_688),
    "sun397_3k": (3_000, 10, 0.01, 3e-5, 74.26, 446_062),
}
# Of data: the teacher, the best R50 by transfer, the best from scratch, test top-1 in %.
BESIDE = {
    "flowers102": (97.82, 97.50, 66.38),
    "pets": (91.03, 88.20, 74.24),
    "food101": (86.24, 85.05, 74.56),
    "sun397": (74.22, 71.61, 60.63),
}
RELEASED_NAMES = {
    **{"flowers102_fast": "10k", "flowers102_medium": "100k", "flowers102_long": "1m"},
    **{"pets_fast": "1k", "pets_medium": "3k", "pets_long": "30k"},
    **{"food101_fast": "100", "food101_medium": "1k", "food101_long": "3k"},
    **{"sun397_fast": "100", "sun397_medium": "1k", "sun397_long": "3k"},
}
# ImageNet: top-1 in % by epochs, and steps of 4096 images.
LENGTHS = {
    **{30: 9_196, 90: 27_588, 300: 91_959, 600: 183_918, 1200: 367_835},
    **{4800: 1_471_341, 9600: 2_942_681},
}
ALL = tuple(LENGTHS)
IMAGENET: dict[str, dict[int, float | str]] = {
    "labels/imagenet": {90: 76.59, 300: 78.08, 1200: 78.15, 4800: 76.59},
    "imagenet_fixed_teacher": dict(
        zip(ALL, (73.75, 76.45, 77.76, 77.99, 78.11, 77.56, 76.95), strict=True)
    ),
    "imagenet_consistent": dict(
        zip(ALL, (74.95, 78.05, 80.08, 80.63, 81.15, 81.58, 81.76), strict=True)
    ),
    "imagenet_function_matching": dict(
        zip(ALL, (73.89, 78.00, 80.30, 81.17, 81.54, 82.18, 82.31), strict=True)
    ),
    "imagenet_t224_s160": dict(
        zip(ALL, (70.22, 75.34, 78.17, 79.07, 79.61, "diverged", 80.49), strict=True)
    ),
    "imagenet_t384": {300: 80.46, 1200: 81.82, 4800: 82.33, 9600: 82.64},
    "imagenet_t384_t224": {1200: 82.12, 4800: 82.71, 9600: 82.82},
    "imagenet_mobilenet_v3_large": {300: 74.60, 1200: 76.31, 4800: 76.84, 9600: 76.97},
    "imagenet_bitm_start": dict(
        zip(ALL[:-1], (77.52, 79.43, 80.47, 80.83, 81.11, 81.45), strict=True)
    ),
}
# The consistency study: recipe, the teacher's fixed view, the student's crop.
STUDY = {
    "fixed_resize": ("fixed_teacher", "resize", "whole"),
    "fixed_centre": ("fixed_teacher", "centre", "mild"),
    "fixed_ensemble": ("fixed_teacher", "inception_ensemble", "inception"),
    "independent_mild": ("independent_noise", None, "mild"),
    "independent_inception": ("independent_noise", None, "inception"),
    "consistent_mild": ("consistent", None, "mild"),
    "consistent_inception": ("consistent", None, "inception"),
    "function_matching": ("function_matching", None, "inception"),
}
TRANSFERS = {
    "pets_from_food101": ("pets_10k", "food101"),
    "pets_from_imagenet": ("pets_10k", "imagenet"),
    "sun397_from_imagenet": ("sun397_1k", "imagenet"),
}


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    command = "finetune" if name.startswith("labels/") else "train"
    with hydra.initialize_config_dir(str(compose.config_directory()), version_base="1.3"):
        return hydra.compose(command, [f"experiment={name}", *overrides])


def header(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def field(name: str, key: str) -> str | None:
    """What follows `# Key:` in a header."""
    found = [line for line in header(name) if line.startswith(f"# {key}:")]
    assert len(found) <= 1
    return found[0].partition(":")[2].strip() if found else None


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_tables_here_name_every_experiment() -> None:
    labels = [f"labels/{data}_{way}" for data in DATA for way in ("scratch", "transfer")]
    known = [*SMALL, *RELEASED_NAMES, *IMAGENET, *TRANSFERS, *labels, "imagenet_shampoo"]
    known += [f"imagenet_{epochs}" for epochs in LENGTHS] + [f"consistency_{row}" for row in STUDY]
    assert sorted(known) == NAMES


@every
def test_it_composes_and_passes_the_door(name: str) -> None:
    cfg = composed(name)
    validation.check(cfg)
    assert identity.run_id(cfg)


# --- headers -------------------------------------------------------------------------------------


@every
def test_its_header_has_a_title_and_its_own_command(name: str) -> None:
    package, title, *_ = header(name)
    assert package == "# @package _global_"
    assert re.fullmatch(r"# [A-Z]\w+.*|# \w+ under the name of the released code", title)
    command = field(name, "Command")
    assert command is not None
    script = "finetune" if name.startswith("labels/") else "train"
    found = re.match(r"python src/(\w+)\.py experiment=([\w/]+)( epochs=1200)?(?=$|   )", command)
    assert found is not None
    assert found[1] == script
    assert found[2] == name


@every
def test_the_steps_of_its_header_are_those_of_the_run(name: str) -> None:
    cfg, told = composed(name), field(name, "Steps")
    table = re.findall(r"^#\s+([\d,]+)\s+([\d,]+)\s+[\d.,]+\s+\S+$", "\n".join(header(name)), re.M)
    if told is not None:
        found = re.match(
            r"([\d,]+) of (\d+) images(?: \(([\d,]+) epochs.*\)|, as in (\w+))?$", told
        )
        assert found is not None
        assert number(found[1]) == schema.total_steps(cfg)
        assert int(found[2]) == cfg.batch_size
        if found[3]:
            assert number(found[3]) == cfg.epochs
        if found[4]:
            assert schema.total_steps(composed(found[4])) == schema.total_steps(cfg)
    elif table:
        command = field(name, "Command")
        assert command is not None
        assert f"epochs={cfg.epochs}" in command
        size, batch = schema.train_size(cfg), cfg.batch_size
        for epochs, steps in table:
            assert number(steps) == round(number(epochs) * size / batch) == LENGTHS[number(epochs)]
        assert cfg.epochs in [number(epochs) for epochs, _ in table]
    else:  # another name of a row
        there = re.search(
            r"^# Steps, cost, expected: see (\w+)\.yaml$", "\n".join(header(name)), re.M
        )
        assert there is not None
        assert identity.identity(composed(there[1])) == identity.identity(cfg)


@pytest.mark.parametrize("name", IMAGENET)
def test_the_header_of_an_imagenet_row_has_the_papers_figures(name: str) -> None:
    rows = re.findall(
        r"^#\s+([\d,]+)\s+[\d,]+\s+[\d.,]+\s+([\d.]+|diverged)$", "\n".join(header(name)), re.M
    )
    found = {number(e): t if t == "diverged" else float(t) for e, t in rows}
    assert found == IMAGENET[name]
    assert f"{IMAGENET[name][1200]:.2f} %" in header(name)[1]


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
def test_a_small_row_has_the_papers_settings(name: str) -> None:
    epochs, temperature, lr, wd, accuracy, steps = SMALL[name]
    data = name.partition("_")[0]
    classes, images, weights = DATA[data]
    cfg = composed(name)
    assert schema.total_steps(cfg) == steps
    assert (cfg.epochs, cfg.batch_size) == (epochs, 512)
    assert cfg.objective.temperature == temperature
    assert optimises_as_the_paper(cfg, lr, wd, 1500)
    assert is_function_matching(cfg)
    assert (cfg.data.name, cfg.data.classes, cfg.data.train_size) == (data, classes, images)
    assert (cfg.data.min_area, cfg.data.flip, list(cfg.data.mild)) == (0.05, True, [160, 128])
    assert list(schema.training_sets(cfg)) == ["data"]
    assert (cfg.teacher.weights, cfg.teacher.head) == (weights, "keep")
    assert cfg.student.weights is None
    title, expected = header(name)[1], field(name, "Expected")
    assert f"{accuracy:.2f} %" in title
    assert expected is not None
    assert expected.startswith(f"student {accuracy:.2f} %")
    assert all(f"{figure:.2f}" in expected for figure in BESIDE[data])


@pytest.mark.parametrize("name", RELEASED_NAMES)
def test_a_name_of_the_released_code_is_a_row(name: str) -> None:
    row = f"{name.partition('_')[0]}_{RELEASED_NAMES[name]}"
    assert identity.identity(composed(name)) == identity.identity(composed(row))


@pytest.mark.parametrize("epochs", LENGTHS)
def test_an_imagenet_length_is_function_matching_for_so_long(epochs: int) -> None:
    cfg = composed(f"imagenet_{epochs}")
    longer = composed("imagenet_function_matching", f"epochs={epochs}")
    assert identity.identity(cfg) == identity.identity(longer)
    assert schema.total_steps(cfg) == LENGTHS[epochs]
    title = header(f"imagenet_{epochs}")[1]
    assert f"{IMAGENET['imagenet_function_matching'][epochs]:.2f} %" in title


@pytest.mark.parametrize("name", [name for name in IMAGENET if not name.startswith("labels/")])
def test_an_imagenet_row_has_the_papers_settings(name: str) -> None:
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


def test_two_teachers_of_imagenet_are_averaged_by_their_logits() -> None:
    cfg = composed("imagenet_t384_t224")
    assert cfg.teacher.combine == "logit"
    assert cfg.teacher.shares is None
    assert build.teacher(cfg, sketched).combine == "logit"


def test_shampoo_has_the_settings_of_the_appendix() -> None:
    cfg = composed("imagenet_shampoo")
    assert cfg.optimizer._target_ == "funmatch.optim.shampoo.shampoo"
    assert (cfg.optimizer.block_size, cfg.optimizer.every, cfg.optimizer.wd) == (128, 1, 3.75e-4)
    assert cfg.schedule._target_ == "funmatch.optim.schedules.warmup_quadratic"
    assert cfg.schedule.warmup_steps == 1800
    assert is_function_matching(cfg)
    assert schema.total_steps(cfg) == LENGTHS[1200]


@pytest.mark.parametrize("row", STUDY)
def test_the_consistency_study_varies_the_recipe_alone(row: str) -> None:
    recipe, teacher_crop, crop = STUDY[row]
    cfg, base = composed(f"consistency_{row}"), composed("flowers102_10k")
    assert cfg.recipe.name == recipe
    assert cfg.recipe.mixing == (recipe == "function_matching")
    assert cfg.recipe.get("teacher_crop") == teacher_crop
    law = build.recipe(cfg)
    assert getattr(law, "student_crop", cfg.recipe.crop) == crop
    if row == "fixed_ensemble":
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
def test_the_consistency_study_takes_other_data(name: str, data: str, epochs: int) -> None:
    cfg = composed(name, f"data={data}", f"epochs={epochs}")
    validation.check(cfg)
    assert (cfg.data.name, cfg.teacher.weights) == (data, DATA[data][2])
    assert schema.total_steps(cfg) == round(epochs * DATA[data][1] / 512)


@pytest.mark.parametrize("name", TRANSFERS)
def test_out_of_domain_teaches_on_the_transfer_set_alone(name: str) -> None:
    row, transfer = TRANSFERS[name]
    cfg, base = composed(name), composed(row)
    assert [part.name for part in schema.training_sets(cfg).values()] == [transfer]
    assert schema.train_size(cfg) == cfg.transfer[transfer].train_size > cfg.data.train_size
    assert schema.total_steps(cfg) == schema.total_steps(base)
    own, others = identity.identity(cfg), identity.identity(base)
    assert own.pop("transfer").keys() == {transfer}
    others.pop("transfer")
    assert own == others


@pytest.mark.parametrize("data", DATA)
def test_labels_by_transfer_follow_the_hyperrule(data: str) -> None:
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
    assert f"{BESIDE[data][1]:.2f} %" in header(f"labels/{data}_transfer")[1]


@pytest.mark.parametrize("data", [*DATA, "imagenet"])
def test_labels_from_scratch_have_no_weights_and_the_settings_of_a_row(data: str) -> None:
    name = "labels/imagenet" if data == "imagenet" else f"labels/{data}_scratch"
    rows = {"flowers102": "10k", "pets": "1k", "food101": "100", "sun397": "100"}
    row = "imagenet_function_matching" if data == "imagenet" else f"{data}_{rows[data]}"
    cfg, base = composed(name), composed(row)
    assert cfg.model.weights is None
    assert cfg.recipe.mixing
    assert cfg.recipe.name == "labels"
    for key in ("data", "optimizer", "schedule", "steps"):
        assert identity.identity(cfg)[key] == identity.identity(base)[key]
    if data != "imagenet":
        assert f"{BESIDE[data][2]:.2f} %" in header(name)[1]


# --- networks ------------------------------------------------------------------------------------


@cache
def _sketch(text: str) -> Network:
    with torch.device("meta"):
        return build.blank(OmegaConf.create(json.loads(text)))


def sketched(cfg: DictConfig) -> Network:
    """The network of a configuration, without numbers in it."""
    return _sketch(json.dumps(OmegaConf.to_container(cfg, resolve=True)))


def parameters(cfg: DictConfig) -> int:
    return sum(parameter.numel() for parameter in sketched(cfg).parameters())


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
def test_the_sizes_here_are_those_of_the_literature(kind: str, millions: float) -> None:
    assert expected_parameters(kind, 1000) / 1e6 == pytest.approx(millions, abs=0.06)


@every
def test_its_networks_have_the_papers_size(name: str) -> None:
    cfg = composed(name)
    learns = cfg.student if "student" in cfg else cfg.model
    mobile = name == "imagenet_mobilenet_v3_large"
    kind = "mobilenet_v3_large" if mobile else "bit_r50"
    assert parameters(learns) == expected_parameters(kind, cfg.data.classes)
    if "teacher" in cfg:
        assert [parameters(part) for part in schema.teachers(cfg).values()] == [
            expected_parameters("bit_r152x2", cfg.data.classes)
        ] * (2 if name == "imagenet_t384_t224" else 1)


@every
def test_its_networks_see_views_of_the_papers_side(name: str) -> None:
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
        assert build.teacher(cfg, sketched).sides == teachers


@every
def test_its_weights_are_released_ones(name: str) -> None:
    cfg = composed(name)
    data = cfg.data.name
    if "teacher" in cfg:
        own = "R152x2_T_224" if data == "imagenet" else DATA[data][2]
        expected = {
            "imagenet_t384": ["R152x2_T_384"],
            "imagenet_t384_t224": ["R152x2_T_224", "R152x2_T_384"],  # by their names
        }.get(name, [own])
        found = [part.weights for part in schema.teachers(cfg).values()]
        assert found == expected
        assert set(found) <= set(pretrained.NAMES)
    learns = cfg.student if "student" in cfg else cfg.model
    starts = name == "imagenet_bitm_start" or name.endswith("_transfer")
    assert learns.weights == ("BiT-M-R50x1" if starts else None)


def test_the_mobile_student_has_group_norm() -> None:
    kinds = {
        type(module).__name__
        for module in sketched(composed("imagenet_mobilenet_v3_large").student).modules()
    }
    assert not any("BatchNorm" in kind for kind in kinds)
    assert any("GroupNorm" in kind for kind in kinds)


# --- the list ------------------------------------------------------------------------------------


def test_make_lists_every_experiment_with_its_title() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "experiments"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert sorted(found) == NAMES
    for name, title in found.items():
        assert f"# {title}" == header(name)[1]
