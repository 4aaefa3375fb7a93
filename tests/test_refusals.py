"""What cannot work is refused in one line, before torch is imported; rules by the size of data."""

import json
from pathlib import Path

import pytest

import small
from commands import answers
from funmatch.config import schema, validation

TWO = "data=imagenet student=bit_r50 teacher=bit_r152x2_384_224 teacher"
MILD = "give two sides, resize and crop, crop <= resize: [160,128]"
SHARES = "give each member a positive number, as in {t224:1,t384:1}, or null"
STAIRS = "schedule=warmup_staircase schedule.milestones"
NO_FILE = "no such file or name; give the path of a .safetensors or .npz file, or R152x2_T_224, "
# The command, what is wrong with it, the start of the line.
WRONG = [
    ("train", "teacher=ensemble", "teacher.members={}: name some, as in +teacher@teacher.members"),
    ("train", f"{TWO}.combine=median", "teacher.combine=median: choose probability, logit or sum"),
    ("train", f"{TWO}.shares=2", f"teacher.shares=2: {SHARES}"),
    ("train", f"{TWO}.shares=[1,2]", f"teacher.shares=[1, 2]: {SHARES}"),
    ("train", f"{TWO}.shares={{t224:1}}", f"teacher.shares={{'t224': 1}}: {SHARES}"),
    (
        "train",
        f"{TWO}.shares={{t224:1,t384:0}}",
        f"teacher.shares={{'t224': 1, 't384': 0}}: {SHARES}",
    ),
    ("train", f"{TWO}.shares={{t224:a,t384:1}}", "teacher.shares={'t224': 'a', 't384': 1}: "),
    ("train", f"{TWO}.shares={{t224:1,t384:inf}}", "teacher.shares={'t224': 1, 't384': inf}: "),
    ("train", "student.resize=4", "student.resize=4: give at least student.side=8, which is cut "),
    ("train", "student.weights=5", f"student.weights=5: {NO_FILE}"),
    ("train", "data.mild=[9.5,8]", f"data.mild=[9.5, 8]: {MILD}"),
    ("train", f"{STAIRS}=[9,5]", "schedule.milestones=[9, 5]: give rising steps, as in [200,300,"),
    ("train", f"{STAIRS}=[a]", "schedule.milestones=['a']: give rising steps, as in [200,300,400]"),
    ("train", "data=folder data.root=flat data.split=abc", "data.split=abc: give three shares, "),
    ("train", "data=folder data.root=flat data.split=[1,2,3]", "data.split=[1.0, 2.0, 3.0]: give "),
    ("train", "data=folder data.root=parts data.split=[0.8,0.1,0.1]", "data.split=[0.8, 0.1, 0.1]"),
    ("train", "data=folder data.root=valid", "data.root=valid: valid beside train/ is neither val"),
    ("train", "data=folder data.root=rest", "data.root=rest: test/ without train/ beside it; to "),
    ("finetune", "data=folder data.root=flat", "data.root=flat: has no labels to learn from; name"),
    ("finetune", "-m save_as=a seed=0,1", "save_as=a: several jobs of the sweep; give each a name"),
    ("train", "sweep=optuna dry_run=true", "dry_run=true: a search needs results; leave out sweep"),
    ("train", "sweep=paper steps=0", "steps=0: give a whole number from 1"),  # without -m
    ("train", f"{TWO}.members.t224.weights=x", f"teacher.members.t224.weights=x: {NO_FILE}"),
    ("train", "data.mild=[128,160]", f"data.mild=[128, 160]: {MILD}"),
    ("train", "data.mild=[160]", f"data.mild=[160]: {MILD}"),
    ("train", "data.mild=160", f"data.mild=160: {MILD}"),
    ("train", "data.mild=null", f"data.mild=null: {MILD}"),
    ("train", "data.mild=[160,0]", f"data.mild=[160, 0]: {MILD}"),
    ("train", "student.weights=R50x1_225", f"student.weights=R50x1_225: {NO_FILE}"),
    ("finetune", "model.weights=BiT-M-R50x2", f"model.weights=BiT-M-R50x2: {NO_FILE}"),
    ("train", "teacher=bit_r152x2", "teacher.weights=null: a teacher needs weights; give the path"),
    ("train", "transfer=foodie", "transfer=foodie: no such transfer; choose digits, flowers102, "),
    ("train", "transfer=[pets,foodie]", "transfer=foodie: no such transfer; choose digits, "),
    (
        "train",
        "transfer=folder transfer.folder.root=nowhere",
        "transfer.folder.root=nowhere: no such folder; give the one that holds the images",
    ),
    ("train", "transfer=folder", "transfer.folder.root=???: give it"),
    ("train", "data=folder", "data.root=???: give it a value"),
    ("train", "data=folder data.root=x", "data.root=x: no such f"),
    ("train", "student=timm", "student.name=???: give it a value"),
    ("train", "teacher=saved", "teacher.name=???: give it a value"),
    (
        "train",
        "teacher=saved teacher.name=nobody",
        "teacher.name=nobody: no such network in logs/teachers; give the directory of a run, "
        "or known",
    ),
    (
        "evaluate",
        "teacher=saved teacher.name=nobody data=digits",
        "teacher.name=nobody: no such network in logs/teachers; ",
    ),
    (
        "train",
        "teacher=saved teacher.name=known data=pets student=bit_tiny",
        "teacher.classes=3: data=pets has 37 classes; choose a teacher that was fine-tuned on this",
    ),
    (
        "train",
        "data=folder data.root=flat teacher=timm teacher.name=resnet18 student=bit_tiny",
        "data.classes=null: no labels tell them; give data.classes=NUMBER",
    ),
    (
        "train",
        "data=folder data.root=by_class data.labels=short.csv",
        "data.labels=short.csv: 1 of its 2 images are not below root=by_class, first z.jpg; ",
    ),
    ("finetune", "save_as=a/b", "save_as=a/b: use letters, digits, '.', '_' and '-' only, or null"),
    ("finetune", "rule=bit", "rule=bit: no such rule; choose bit_hyperrule"),
    ("train", "sweep=grid", "sweep=grid: no such sweep; choose optuna or paper"),
    ("train", "-m sweep=paper optimizer.lr=0,1", "optimizer.lr=0: give a positive number"),
    ("evaluate", "teacher=digits", "run=null: give the directory of a run, or both teacher=... "),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, str]]:
    """What the real commands answer to each mistake."""
    path = tmp_path_factory.mktemp("refusals")
    small.photographs(path / "by_class", 10)
    small.photographs(path / "flat", 10, flat=True)
    for part in ("valid/train", "valid/valid", "rest/test", "parts/train"):
        small.photographs(path / part, 2)
    (path / "by_class" / "short.csv").write_text("file,label\ncat_0.jpg,0\nz.jpg,1\n")
    saved = path / "logs" / "teachers" / "known"
    saved.mkdir(parents=True)
    (saved / "student.safetensors").touch()
    inputs = {"net": {}, "classes": 3, "mean": [0.5], "std": [0.5], "side": 16, "resize": 20}
    (saved / "model.json").write_text(json.dumps(inputs))
    return answers([mistake[:2] for mistake in WRONG], cwd=path)


@pytest.mark.fault(16)
@pytest.mark.parametrize(("script", "wrong", "line"), WRONG)
def test_a_mistake_is_one_line(said, script: str, wrong: str, line: str) -> None:
    code, out, err = said[script, wrong]
    assert code == 1
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert out == ""


# --- the BiT-HyperRule ---------------------------------------------------------------------------

SHORT = (500, 100, [200, 300, 400], False)
MIDDLE = (10_000, 500, [3000, 6000, 9000], True)
LONG = (20_000, 500, [6000, 12_000, 18_000], True)


@pytest.mark.parametrize(
    ("images", "batch", "said"),
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
def test_the_hyperrule_goes_by_the_number_of_images(
    compose, images: int, batch: int, said: tuple[int, int, list[int], bool], how: str
) -> None:
    """A large network follows it unasked."""
    cfg = compose("data=pets", *how.split(), f"data.train_size={images}", name="finetune")
    validation.check(cfg)
    steps, warmup, milestones, mixing = said
    assert (schema.total_steps(cfg), cfg.batch_size) == (steps, batch)
    assert (cfg.schedule.warmup_steps, list(cfg.schedule.milestones)) == (warmup, milestones)
    assert (cfg.recipe.mixing, cfg.recipe.alpha, cfg.recipe.crop) == (mixing, 0.1, "mild")
    assert cfg.optimizer._target_ == "funmatch.optim.sgd.sgd"
    assert (cfg.optimizer.lr, cfg.optimizer.wd, cfg.optimizer.momentum) == (0.003, 0.0, 0.9)


def test_the_hyperrule_can_be_left_or_changed(compose) -> None:
    plain = compose("data=pets", "model=bit_r152x2", "rule=none", name="finetune")
    assert plain.optimizer._target_ == "funmatch.optim.adam.adam"
    assert schema.total_steps(plain) == round(1000 * 3312 / 512)
    given = ("data=pets", "model=bit_r152x2", "steps=700", "recipe.mixing=true", "optimizer=adam")
    cfg = compose(*given, name="finetune")
    validation.check(cfg)
    assert (schema.total_steps(cfg), cfg.recipe.mixing) == (700, True)
    assert cfg.optimizer._target_ == "funmatch.optim.adam.adam"
    assert list(cfg.schedule.milestones) == [200, 300, 400]


@pytest.mark.parametrize(("each", "batch", "warmup"), [(10, 24, 100), (300, 512, 140)])
def test_a_folder_suggests_what_fits_its_size(
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
