"""Validation errors before torch is imported, the BiT-HyperRule and folder defaults."""

import json
from pathlib import Path

import pytest

import small
from commands import answers, is_error
from funmatch.config import schema, validation

TWO = "data=imagenet student=bit_r50 teacher=bit_r152x2_384_224 teacher"
# The command, what is typed, the key and value that the error names.
WRONG = [
    ("train", "teacher=ensemble", "teacher.members={}"),
    ("train", f"{TWO}.combine=median", "teacher.combine=median"),
    ("train", f"{TWO}.shares=2", "teacher.shares=2"),
    ("train", f"{TWO}.shares=[1,2]", "teacher.shares=[1, 2]"),
    ("train", f"{TWO}.shares={{t224:1}}", "teacher.shares={'t224': 1}"),
    ("train", f"{TWO}.shares={{t224:1,t384:0}}", "teacher.shares={'t224': 1, 't384': 0}"),
    ("train", f"{TWO}.shares={{t224:a,t384:1}}", "teacher.shares={'t224': 'a', 't384': 1}"),
    ("train", f"{TWO}.shares={{t224:1,t384:inf}}", "teacher.shares={'t224': 1, 't384': inf}"),
    ("train", "student.resize=4", "student.resize=4"),
    ("train", "student.weights=5", "student.weights=5"),
    ("train", "data.mild=[9.5,8]", "data.mild=[9.5, 8]"),
    ("train", "schedule=warmup_staircase schedule.milestones=[9,5]", "schedule.milestones=[9, 5]"),
    ("train", "schedule=warmup_staircase schedule.milestones=[a]", "schedule.milestones=['a']"),
    ("train", "data=folder data.root=flat data.split=abc", "data.split=abc"),
    ("train", "data=folder data.root=flat data.split=[1,2,3]", "data.split=[1.0, 2.0, 3.0]"),
    ("train", "data=folder data.root=parts data.split=[0.8,0.1,0.1]", "data.split=[0.8, 0.1, 0.1]"),
    ("train", "data=folder data.root=valid", "data.root=valid"),
    ("train", "data=folder data.root=rest", "data.root=rest"),
    ("finetune", "data=folder data.root=flat", "data.root=flat"),
    ("finetune", "-m save_as=a seed=0,1", "save_as=a"),
    ("train", "sweep=optuna dry_run=true", "dry_run=true"),
    ("train", "sweep=paper steps=0", "steps=0"),
    ("train", f"{TWO}.members.t224.weights=x", "teacher.members.t224.weights=x"),
    ("train", "data.mild=[128,160]", "data.mild=[128, 160]"),
    ("train", "data.mild=[160]", "data.mild=[160]"),
    ("train", "data.mild=160", "data.mild=160"),
    ("train", "data.mild=null", "data.mild=null"),
    ("train", "data.mild=[160,0]", "data.mild=[160, 0]"),
    ("train", "student.weights=R50x1_225", "student.weights=R50x1_225"),
    ("finetune", "model.weights=BiT-M-R50x2", "model.weights=BiT-M-R50x2"),
    ("train", "teacher=bit_r152x2", "teacher.weights=null"),
    ("train", "transfer=foodie", "transfer=foodie"),
    ("train", "transfer=[pets,foodie]", "transfer=foodie"),
    ("train", "transfer=folder transfer.folder.root=nowhere", "transfer.folder.root=nowhere"),
    ("train", "transfer=folder", "transfer.folder.root=???"),
    ("train", "data=folder", "data.root=???"),
    ("train", "data=folder data.root=x", "data.root=x"),
    ("train", "student=timm", "student.name=???"),
    ("train", "teacher=saved", "teacher.name=???"),
    ("train", "teacher=saved teacher.name=nobody", "teacher.name=nobody"),
    ("evaluate", "teacher=saved teacher.name=nobody data=digits", "teacher.name=nobody"),
    ("train", "teacher=saved teacher.name=known data=pets student=bit_tiny", "teacher.classes=3"),
    (
        "train",
        "data=folder data.root=flat teacher=timm teacher.name=resnet18 student=bit_tiny",
        "data.classes=null",
    ),
    ("train", "data=folder data.root=by_class data.labels=short.csv", "data.labels=short.csv"),
    ("finetune", "save_as=a/b", "save_as=a/b"),
    ("finetune", "rule=bit", "rule=bit"),
    ("train", "sweep=grid", "sweep=grid"),
    ("train", "-m sweep=paper optimizer.lr=0,1", "optimizer.lr=0"),
    ("evaluate", "teacher=digits", "run=null"),
]
# How the whole line of some begins.
MESSAGES = {
    "student.weights=5": "student.weights=5: no such file or name; give the path of a .",
    "data=folder": "data.root=???: give it a value",
    "teacher=saved teacher.name=nobody": "teacher.name=nobody: no such network in logs/teachers; ",
    f"{TWO}.shares=2": "teacher.shares=2: give each member a positive number, as in {t224:1,t384:1",
    "data=folder data.root=valid": "data.root=valid: valid beside train/ is neither val",
}


@pytest.fixture(scope="module")
def responses(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], tuple[int, str, str]]:
    """What the real commands answer to each mistake."""
    path = tmp_path_factory.mktemp("refusals")
    small.photographs(path / "by_class", 10)
    small.photographs(path / "flat", 10, flat=True)
    for part in ("valid/train", "valid/valid", "rest/test", "parts/train"):
        small.photographs(path / part, 2)
    (path / "own" / "experiment").mkdir(parents=True)
    (path / "own" / "experiment" / "pets_1k.yaml").write_text("# @package _global_\nepochs: 7\n")
    (path / "by_class" / "short.csv").write_text("file,label\ncat_0.jpg,0\nz.jpg,1\n")
    saved = path / "logs" / "teachers" / "known"
    saved.mkdir(parents=True)
    (saved / "student.safetensors").touch()
    inputs = {"net": {}, "classes": 3, "mean": [0.5], "std": [0.5], "side": 16, "resize": 20}
    (saved / "model.json").write_text(json.dumps(inputs))
    return answers([mistake[:2] for mistake in WRONG], cwd=path)


@pytest.mark.fault(16)
@pytest.mark.parametrize(("script", "wrong", "named"), WRONG)
def test_error_names_key_and_value(responses, script: str, wrong: str, named: str) -> None:
    code, out, err = responses[script, wrong]
    assert (code, out) == (1, "")
    assert is_error(err, named), err


def test_messages_of_some_errors(responses) -> None:
    for wrong, line in MESSAGES.items():
        assert responses["train", wrong][2].startswith(f"error: {line}")


# --- the BiT-HyperRule ---------------------------------------------------------------------------

SHORT = (500, 100, [200, 300, 400], False)
MIDDLE = (10_000, 500, [3000, 6000, 9000], True)
LONG = (20_000, 500, [6000, 12_000, 18_000], True)


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [
        (5, 5, SHORT),
        (511, 511, SHORT),
        (512, 512, SHORT),
        (19_999, 512, SHORT),
        (20_000, 512, MIDDLE),
        (499_999, 512, MIDDLE),
        (500_000, 512, LONG),
        (1_255_544, 512, LONG),
    ],
)
@pytest.mark.parametrize("how", ["model=bit_r152x2", "rule=bit_hyperrule model=bit_tiny"])
def test_hyperrule_depends_on_the_number_of_images(
    compose, images: int, batch: int, expected: tuple[int, int, list[int], bool], how: str
) -> None:
    """A large network follows it unasked."""
    cfg = compose("data=pets", *how.split(), f"data.train_size={images}", name="finetune")
    validation.check(cfg)
    steps, warmup, milestones, mixing = expected
    assert (schema.total_steps(cfg), cfg.batch_size) == (steps, batch)
    assert (cfg.schedule.warmup_steps, list(cfg.schedule.milestones)) == (warmup, milestones)
    assert (cfg.recipe.mixing, cfg.recipe.alpha, cfg.recipe.crop) == (mixing, 0.1, "mild")
    assert cfg.optimizer._target_ == "funmatch.optim.sgd.sgd"
    assert (cfg.optimizer.lr, cfg.optimizer.wd, cfg.optimizer.momentum) == (0.003, 0.0, 0.9)


def test_hyperrule_can_be_disabled_or_overridden(compose) -> None:
    plain = compose("data=pets", "model=bit_r152x2", "rule=none", name="finetune")
    assert plain.optimizer._target_ == "funmatch.optim.adam.adam"
    assert schema.total_steps(plain) == round(1000 * 3312 / 512)
    given = ("data=pets", "model=bit_r152x2", "steps=700", "recipe.mixing=true", "optimizer=adam")
    cfg = compose(*given, name="finetune")
    validation.check(cfg)
    assert (schema.total_steps(cfg), cfg.recipe.mixing) == (700, True)
    assert cfg.optimizer._target_ == "funmatch.optim.adam.adam"
    assert list(cfg.schedule.milestones) == [200, 300, 400]


def test_milestones_beyond_the_run_are_refused(compose) -> None:
    cfg = compose("data=pets", "model=bit_r152x2", "epochs=30", name="finetune")
    with pytest.raises(
        ValueError, match=r"^schedule\.milestones=\[200, 300, 400\]: must lie between"
    ):
        validation.check(cfg)


@pytest.mark.parametrize(("each", "batch", "warmup"), [(10, 24, 100), (300, 512, 140)])
def test_folder_suggests_batch_size_and_warmup_by_its_size(
    compose, tmp_path: Path, each: int, batch: int, warmup: int
) -> None:
    """A batch of 512 at most, and a warm-up of 1500 steps at most, or a tenth of the run."""
    for name in small.CLASSES:
        (tmp_path / name).mkdir()
        for number in range(each):
            (tmp_path / name / f"{number}.jpg").touch()  # only listed
    folder = ("data=folder", f"data.root={tmp_path}", "student=bit_tiny")
    cfg = compose(*folder)
    assert (cfg.batch_size, cfg.data.train_size) == (batch, 3 * each * 8 // 10)
    assert cfg.schedule.warmup_steps == warmup == schema.total_steps(cfg) // 10
    assert compose(*folder, "epochs=100000").schedule.warmup_steps == 1500
