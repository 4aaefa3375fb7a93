"""Composition and validation of configurations, run ids and error messages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import trees
from commands import QUICK, answers, command, is_error
from funmatch.cli import app
from funmatch.config import identity, schema, validation
from funmatch.config.compose import compose_context, config_groups, group_options
from funmatch.config.errors import UserError

GROUPS = [
    (group, option)
    for group in config_groups()
    if group not in ("model", "network", "experiment", "paper")
    for option in group_options(group)
]
PAPER = ("teacher=bit_r152x2", "student=bit_r50")
# What an option cannot be without: a teacher for its classes, or where something lies.
COMPANY = {
    **{("data", name): PAPER for name in ("flowers102", "pets", "food101", "sun397", "imagenet")},
    ("data", "folder"): ("data.root={root}", "teacher=timm", "teacher.name=resnet18"),
    ("data", "digits_ink"): ("teacher=digits_ink",),
    ("teacher", "digits_ink"): ("data=digits_ink",),
    ("transfer", "folder"): ("transfer.folder.root={root}", "batch_size=8"),
    ("teacher", "bit_r152x2"): ("data=pets",),
    ("teacher", "bit_r152x2_384_224"): ("data=imagenet",),
    **{("teacher", f"efficientnet_lite{i}"): ("data=imagenet",) for i in range(3)},
    **{
        ("teacher", name): ("data=pets", "teacher.weights={saved}/student.safetensors")
        for name in ("bit_r50", "bit_tiny", "mobilenet_v3_large", "mobilenet_v3_small")
    },
    ("teacher", "ensemble"): ("+teacher@teacher.members.a=digits",),
    ("teacher", "saved"): ("teacher.name={saved}",),
    ("teacher", "timm"): ("teacher.name=resnet18",),
    ("student", "timm"): ("student.name=resnet18",),
}
# What is typed; the key and value that the error names.
WRONG = {
    **{
        wrong: wrong
        for wrong in (
            "objective.temprature=2",
            "recipe=best",
            "data=mnist",
            "objective.temperature=0",
            "objective.temperature=-1",
            "objective.temperature=hot",
            "epochs=3 steps=4",
            "steps=0",
            "batch_size=101",
            "optimizer.lr=0",
            "optimizer.wd=-1",
            "teacher.classes=5",
            "teacher.weights=no.npz",
            "recipe.crop=tiny",
            "schedule.warmup_steps=x",
            "objective.temperature=inf",
            "objective.temperature=null",
            "optimizer.lr=inf",
            "recipe.mixing=maybe",
            "recipe.crop=null",
            "recipe.name=a/b",
            "trainer.accelerator=foo",
            "trainer.precision=bf16-true",
            "compute.threads=0",
            "student.classes=5",
            "seed=99999999999",
            "data.min_area=2",
            "data.images_per_class=none",
            "name=a/b",
            "name=..",
            "resume=maybe",
            "max_time=soon",
            "max_skipped=-1",
            "checkpoint_keep=0",
            "trainer.devices=0",
            "trainer.devices=[]",
            "trainer.devices=many",
            "validate_every=0",
        )
    },
    "epochs=null": "epochs=null steps=null",
    "steps=50": "schedule.warmup_steps=50",
    "seed=one": "seed",
    "teacher.made_by=null": "teacher.weights=null",
    "teacher.made_by.command=evaluate": "teacher.made_by.command=evaluate",
    "teacher.made_by.overrides=data": "teacher.made_by.overrides=data",
    "recipe=fixed_teacher recipe.teacher_crop=x": "recipe.teacher_crop=x",
    "recipe=fixed_teacher recipe.mixing=true": "recipe.mixing=True",
    "logger=none logger.wandb.project=x": "logger.wandb.project=x",
    "trainer.devices=3": "batch_size=100",
}
# The whole line of some.
MESSAGES = {
    "objective.temperature=0": "objective.temperature=0: give a positive number",
    "recipe=best": (
        "recipe=best: no such recipe; choose consistent, fixed_teacher, function_matching or "
        "independent_noise"
    ),
    "steps=50": (
        "schedule.warmup_steps=50: must be less than the 50 steps of the run (steps=50); "
        "lower it or train longer"
    ),
    "epochs=3 steps=4": "epochs=3 steps=4: give exactly one of them",
    "trainer.devices=3": "batch_size=100: give a multiple of the 3 ranks that share a batch",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of images by class, and what a run leaves of a network for digits."""
    root, saved = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    trees.class_folders(root, ["a", "b"], each=5)
    net = {"_target_": "funmatch.models.bit.build", "depth": [1], "width": 0.25, "num_classes": 10}
    description = {"net": net, "classes": 10, "mean": [0.5], "std": [0.5], "side": 8, "resize": 8}
    (saved / "model.json").write_text(json.dumps(description))
    (saved / "student.safetensors").touch()
    return {"root": root, "saved": saved}


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_group_option_composes_and_validates(
    compose, group: str, option: str, folders: dict[str, Path]
) -> None:
    company = [each.format(**folders) for each in COMPANY.get((group, option), ())]
    name = "finetune" if group == "rule" else "train"
    cfg = compose(f"{group}={option}", *company, name=name)
    validation.check(cfg)
    assert schema.total_steps(cfg) > 0


def test_compose_context_restores_the_hydra_of_a_job() -> None:
    with compose_context():
        outer = GlobalHydra.instance().hydra
        with compose_context():
            assert GlobalHydra.instance().hydra is not outer
        assert GlobalHydra.instance().hydra is outer
        assert hydra.compose("train").recipe.name == "function_matching"


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_default_configuration_validates(compose, name: str) -> None:
    validation.check(compose(name=name))


def changed(cfg: DictConfig, *values: str) -> DictConfig:
    """A copy of what was composed, with other values of its keys."""
    return cast(DictConfig, OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(values))))


def test_total_steps_of_epochs_are_those_of_the_paper(compose: Callable[..., DictConfig]) -> None:
    """epochs * N / batch, rounded: the figures of paper.md, sec. 8."""
    base = compose()
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
        sizes = (f"epochs={epochs}", f"batch_size={batch}", f"data.train_size={images}")
        cfg = changed(base, *sizes)
        assert schema.total_steps(cfg) == steps


def test_steps_override_the_suggested_epochs(compose) -> None:
    assert compose().epochs == 3000
    cfg = compose("steps=70")
    assert cfg.epochs is None
    assert identity.run_id(cfg) == identity.run_id(compose("epochs=70"))
    assert schema.total_steps(cfg) == 70


def test_run_id_depends_only_on_settings_that_change_results(compose) -> None:
    base = compose()
    name = identity.run_id(base)
    assert name.startswith("function_matching-s0-")
    assert identity.run_id(compose("logger=none")) == name
    assert identity.run_id(compose("recipe=consistent")) != name
    for same in ("trainer.devices=2", "paths.logs=x", "name=other", "resume=never",
                 "checkpoint_every=7", "compute.workers=3"):  # fmt: skip
        assert identity.run_id(changed(base, same)) == name
    for other in ("seed=1", "optimizer.lr=0.5", "epochs=70", "batch_size=50",
                  "trainer.precision=bf16-mixed", "validate_every=7"):  # fmt: skip
        assert identity.run_id(changed(base, other)) != name


def test_run_id_does_not_depend_on_order_of_names(compose) -> None:
    """Transfer sets are joined, and teachers evaluated, in the order of their names."""
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


def test_run_id_is_the_same_for_10_and_10_0(compose) -> None:
    ten = [changed(compose(), f"objective.temperature={value}") for value in ("10", "10.0", "1e1")]
    assert len({identity.run_id(cfg) for cfg in ten}) == 1


def test_differing_key_names_key_and_both_values(compose) -> None:
    one, other = (identity.identity(changed(compose(), f"optimizer.lr={lr}")) for lr in (0.1, 0.2))
    assert identity.differing_key(one, other) == "optimizer.lr (recorded: 0.1, now: 0.2)"
    assert identity.differing_key(one, one) is None


@pytest.fixture(scope="module")
def responses(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], tuple[int, str, str]]:
    """What the real command answers to each mistake; not even a directory is made."""
    path = tmp_path_factory.mktemp("wrong")
    results = answers([("train", wrong) for wrong in WRONG], cwd=path)
    assert not list(path.iterdir())
    return results


@pytest.mark.fault(16)
@pytest.mark.parametrize(("wrong", "named"), WRONG.items())
def test_error_names_key_and_value_before_torch_is_imported(
    responses, wrong: str, named: str
) -> None:
    code, out, err = responses["train", wrong]
    assert (code, out) == (1, "")
    assert is_error(err, named), err


def test_train_error_messages(responses) -> None:
    messages = {wrong: responses["train", wrong][2] for wrong in MESSAGES}
    assert messages == {wrong: f"error: {line}\n" for wrong, line in MESSAGES.items()}


def test_wrong_sweep_job_is_refused_before_any_job_starts(tmp_path: Path) -> None:
    done = command(
        "train", "-m", "recipe=consistent", "objective.temperature=1,0", *QUICK, cwd=tmp_path
    )
    assert done.returncode == 1
    assert is_error(done.stderr, "objective.temperature=0")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_hydra_full_error_shows_the_traceback(tmp_path: Path) -> None:
    done = command("train", "objective.temperature=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "error: objective.temperature=0" in done.stderr


def test_sweep_expands_sweeper_params_and_overrides(compose) -> None:
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
