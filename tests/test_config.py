"""Configurations compose; mistakes are found at the door, in one line, for all jobs of a sweep."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import trees
from commands import QUICK, ROOT, answers, command
from funmatch.cli import app
from funmatch.config import identity, schema, validation
from funmatch.config.errors import UserError

GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in (ROOT / "conf").glob("*/*.yaml")
    if path.parent.name not in ("model", "network", "experiment")
)
PAPER = ("teacher=bit_r152x2", "student=bit_r50")
# What an option cannot be without: a teacher for its classes, or where something lies.
COMPANY = {
    **{("data", name): PAPER for name in ("flowers102", "pets", "food101", "sun397", "imagenet")},
    ("data", "folder"): ("data.root={root}", "teacher=timm", "teacher.name=resnet18"),
    ("transfer", "folder"): ("transfer.folder.root={root}", "batch_size=8"),
    ("teacher", "bit_r152x2"): ("data=pets",),
    ("teacher", "bit_r152x2_384_224"): ("data=imagenet",),
    **{("teacher", f"efficientnet_lite{i}"): ("data=imagenet",) for i in range(3)},
    ("teacher", "ensemble"): ("+teacher@teacher.members.a=digits",),
    ("teacher", "saved"): ("teacher.name={saved}",),
    ("teacher", "timm"): ("teacher.name=resnet18",),
    ("student", "timm"): ("student.name=resnet18",),
}
WRONG = [
    (
        "objective.temprature=2",
        "objective.temprature=2: no such key; did you mean",
    ),
    (
        "recipe=best",
        "recipe=best: no such recipe; choose consistent, fixed_teacher, function_matching",
    ),
    ("data=mnist", "data=mnist: no such data; choose "),
    ("objective.temperature=0", "objective.temperature=0: give a positive number"),
    ("objective.temperature=-1", "objective.temperature=-1: give a positive number"),
    ("objective.temperature=hot", "objective.temperature=hot: give a positive number"),
    ("epochs=null", "epochs=null steps=null: give exactly one of them"),
    ("epochs=3 steps=4", "epochs=3 steps=4: give exactly one of them"),
    ("steps=0", "steps=0: give a whole number from 1"),
    ("steps=50", "schedule.warmup_steps=50: must be less than the 50 steps of the run (steps=50)"),
    ("seed=one", "seed: Value 'one' of type 'str' could not be converted to Integer"),
    ("batch_size=101", "batch_size=101: give at most the 100 training images"),
    ("optimizer.lr=0", "optimizer.lr=0: give a positive number"),
    ("optimizer.wd=-1", "optimizer.wd=-1: give 0 or a positive number"),
    ("teacher.classes=5", "teacher.classes=5: data=digits has 10 classes; choose a teacher"),
    (
        "teacher.weights=no.npz",
        "teacher.weights=no.npz: no such file or name; make it with: python src/finetune.py",
    ),
    (
        "teacher.finetune=null",
        "teacher.weights=null: a teacher needs weights; give the path of a .safetensors or .npz ",
    ),
    ("recipe.crop=tiny", "recipe.crop=tiny: choose inception, mild or whole"),
    (
        "recipe=fixed_teacher recipe.teacher_crop=x",
        "recipe.teacher_crop=x: choose resize, centre or",
    ),
    ("recipe=fixed_teacher recipe.mixing=true", "recipe.mixing=True: a fixed teacher has no word"),
    ("schedule.warmup_steps=x", "schedule.warmup_steps=x: give a whole number from 0"),
    ("objective.temperature=inf", "objective.temperature=inf: give a positive number"),
    ("objective.temperature=null", "objective.temperature=null: give a positive number"),
    ("optimizer.lr=inf", "optimizer.lr=inf: give a positive number"),
    ("recipe.mixing=maybe", "recipe.mixing=maybe: choose true or false"),
    ("recipe.crop=null", "recipe.crop=null: choose inception, mild or whole"),
    ("recipe.name=a/b", "recipe.name=a/b: use letters, digits, '.', '_' and '-' only"),
    ("trainer.accelerator=foo", "trainer.accelerator=foo: choose auto, cpu, gpu, cuda, mps or tpu"),
    ("trainer.precision=bf16-true", "trainer.precision=bf16-true: choose 32-true, bf16-mixed or"),
    ("compute.threads=0", "compute.threads=0: give a whole number from 1, or null"),
    ("student.classes=5", "student.classes=5: data=digits has 10 classes"),
    ("seed=99999999999", "seed=99999999999: give a whole number from 0 to 4294967295"),
    ("logger=none logger.wandb.project=x", "logger.wandb.project=x: no such key; "),
    ("data.min_area=2", "data.min_area=2: give a share in (0, 1]"),
    (
        "data.images_per_class=none",
        "data.images_per_class=none: give a whole number from 1, or null",
    ),
    ("name=a/b", "name=a/b: use letters, digits, '.', '_' and '-' only"),
    ("name=..", "name=..: use letters, digits, '.', '_' and '-' only"),
    ("resume=maybe", "resume=maybe: no checkpoint there; give the directory"),
    ("max_time=soon", "max_time=soon: give hours:minutes:seconds, as in 11:50:00, or null"),
    ("max_skipped=-1", "max_skipped=-1: give a whole number from 0"),
    ("checkpoint_keep=0", "checkpoint_keep=0: give a whole number from 1"),
    ("trainer.devices=0", "trainer.devices=0: give a number, a list as in [0,2], or auto"),
    ("trainer.devices=[]", "trainer.devices=[]: give a number, a list as in [0,2], or auto"),
    ("trainer.devices=many", "trainer.devices=many: give a number, a list as in [0,2], or auto"),
    ("trainer.devices=3", "batch_size=100: give a multiple of the 3 ranks that share a batch"),
    ("validate_every=0", "validate_every=0: give a whole number from 1"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of images by class, and what a run leaves of a network for digits."""
    root, saved = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    trees.class_folders(root, ["a", "b"], each=5)
    net = {"_target_": "funmatch.models.bit.build", "depth": [1], "width": 0.25, "num_classes": 10}
    description = {"net": net, "classes": 10, "mean": [0.5], "std": [0.5], "side": 8, "resize": 8}
    (saved / "model.json").write_text(json.dumps(description))
    (saved / "student.safetensors").touch()
    return {"root": root, "saved": saved}


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_composes_and_passes_the_door(
    compose, group: str, option: str, places: dict[str, Path]
) -> None:
    company = [each.format(**places) for each in COMPANY.get((group, option), ())]
    name = "finetune" if group == "rule" else "train"
    cfg = compose(f"{group}={option}", *company, name=name)
    validation.check(cfg)
    assert schema.total_steps(cfg) > 0


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_the_configuration_without_overrides_is_right(compose, name: str) -> None:
    validation.check(compose(name=name))


def test_epochs_become_steps_as_in_the_paper(compose: Callable[..., DictConfig]) -> None:
    """epochs * N / batch, rounded: the figures of paper.md, sec. 8."""
    for epochs, images, batch, steps in (
        (1_000, 1020, 512, 1_992),
        (10_000, 1020, 512, 19_922),
        (1_000_000, 1020, 512, 1_992_188),
        (300, 3312, 512, 1_941),
        (30_000, 3312, 512, 194_062),
        (100, 68_175, 512, 13_315),
        (300, 1_255_544, 4096, 91_959),
        (9_600, 1_255_544, 4096, 2_942_681),
    ):
        cfg = compose(f"epochs={epochs}", f"batch_size={batch}", f"data.train_size={images}")
        assert schema.total_steps(cfg) == steps


def test_steps_replace_the_epochs_that_the_data_proposes(compose) -> None:
    assert compose().epochs == 3000
    cfg = compose("steps=70")
    assert cfg.epochs is None
    assert identity.run_id(cfg) == identity.run_id(compose("epochs=70"))
    assert schema.total_steps(cfg) == 70


def test_a_run_is_named_by_what_decides_its_result(compose) -> None:
    def name(*overrides: str) -> str:
        return identity.run_id(compose(*overrides))

    assert name() == name()
    assert name().startswith("function_matching-s0-")
    for same in ("trainer.devices=2", "paths.logs=x", "logger=none", "name=other", "resume=never",
                 "checkpoint_every=7", "compute.workers=3"):  # fmt: skip
        assert name(same) == name()
    for other in ("seed=1", "optimizer.lr=0.5", "epochs=70", "recipe=consistent", "batch_size=50",
                  "trainer.precision=bf16-mixed", "validate_every=7"):  # fmt: skip
        assert name(other) != name()


def test_the_order_in_which_things_are_named_makes_no_other_run(compose) -> None:
    """Transfer sets are joined, and teachers asked, in the order of their names."""
    paper = ("data=pets", "teacher=bit_r152x2", "student=bit_r50", "optimizer.lr=0.003")
    one, other = (
        compose(*paper, f"transfer=[{names}]") for names in ("food101,sun397", "sun397,food101")
    )
    assert identity.run_id(one) == identity.run_id(other)
    assert [*schema.training_sets(one)] == [*schema.training_sets(other)]
    alone = compose(*paper)
    assert identity.run_id(alone) != identity.run_id(one)
    two = ("data=digits", "teacher=ensemble", "student=digits")
    members = [f"+teacher@teacher.members.{name}=digits" for name in "ab"]
    shares = "teacher.shares={a:1,b:3}"
    ensembles = [compose(*two, *order, shares) for order in (members, members[::-1])]
    assert len({identity.run_id(cfg) for cfg in ensembles}) == 1
    assert [*schema.teachers(ensembles[0])] == [*schema.teachers(ensembles[1])]
    assert identity.run_id(compose(*two, *members, "teacher.shares={a:3,b:1}")) not in {
        identity.run_id(cfg) for cfg in ensembles
    }


def test_ten_is_ten_point_zero(compose) -> None:
    ten = [compose(f"objective.temperature={value}") for value in ("10", "10.0", "1e1")]
    assert len({identity.run_id(cfg) for cfg in ten}) == 1


def test_the_key_in_which_two_configurations_differ_is_named(compose) -> None:
    one, other = (identity.identity(compose(f"optimizer.lr={lr}")) for lr in (0.1, 0.2))
    assert identity.differing_key(one, other) == "optimizer.lr (there 0.1, here 0.2)"
    assert identity.differing_key(one, one) is None


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, str]]:
    """What the real command answers to each mistake; not even a directory is made."""
    path = tmp_path_factory.mktemp("wrong")
    found = answers([("train", wrong) for wrong, _ in WRONG], cwd=path)
    assert not list(path.iterdir())
    return found


@pytest.mark.fault(16)
@pytest.mark.parametrize(("wrong", "line"), WRONG)
def test_a_mistake_is_one_line_before_torch_is_imported(said, wrong: str, line: str) -> None:
    code, out, err = said["train", wrong]
    assert code == 1
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_one_wrong_job_stops_a_sweep_before_the_first_starts(tmp_path: Path) -> None:
    done = command(
        "train", "-m", "recipe=consistent", "objective.temperature=1,0", *QUICK, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == "error: objective.temperature=0: give a positive number\n"
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    done = command("train", "objective.temperature=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "error: objective.temperature=0" in done.stderr


def test_sweeps_of_a_configuration_are_checked_too(compose) -> None:
    cfg = OmegaConf.create(
        {"hydra": {"sweeper": {"params": {"seed": "1,2"}}, "overrides": {"task": ["recipe=a,b"]}}}
    )
    jobs = [
        ["seed=1", "recipe=a"],
        ["seed=1", "recipe=b"],
        ["seed=2", "recipe=a"],
        ["seed=2", "recipe=b"],
    ]
    assert app.sweep(cfg) == jobs


def test_user_errors_are_value_errors() -> None:
    assert issubclass(UserError, ValueError)
