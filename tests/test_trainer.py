"""Arguments of Lightning's Trainer: passed on, refused, and part of the identity."""

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import DictConfig

from commands import QUICK, command_here
from faults import inject
from funmatch.config import identity, trainer_arguments, validation
from funmatch.config.errors import UserError
from funmatch.experiment.build import build
from funmatch.experiment.device import configure_torch
from funmatch.experiment.trainer import build_trainer
from funmatch.views.recipes import Shared
from funmatch.views.repeated import RepeatedSteps
from small import only_run
from toys import array_source, image_stream

SIGNATURE = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
CPU = "trainer.accelerator=cpu"

# An override of each argument that is passed on, and how the Trainer shows that it has arrived.
HONOURED: dict[str, tuple[str, Callable[[Trainer], Any], Any]] = {
    "accelerator": ("cpu", lambda t: type(t.accelerator).__name__, "CPUAccelerator"),
    "devices": ("2", lambda t: t.num_devices, 2),
    "num_nodes": ("2", lambda t: t.num_nodes, 2),
    "strategy": ("ddp", lambda t: type(t.strategy).__name__, "DDPStrategy"),
    "precision": ("bf16-mixed", lambda t: t.precision, "bf16-mixed"),
    "log_every_n_steps": ("7", lambda t: t.log_every_n_steps, 7),
    "deterministic": (
        "warn",
        lambda t: torch.is_deterministic_algorithms_warn_only_enabled(),
        True,
    ),
    "benchmark": ("true", lambda t: torch.backends.cudnn.benchmark, True),
    "detect_anomaly": ("true", lambda t: t._detect_anomaly, True),
    "enable_autolog_hparams": ("false", lambda t: t.enable_autolog_hparams, False),
    "enable_model_summary": ("true", lambda t: RichModelSummary in map(type, t.callbacks), True),
    "inference_mode": ("false", lambda t: t.validate_loop.inference_mode, False),
    "limit_val_batches": ("3", lambda t: t.limit_val_batches, 3),
    "limit_test_batches": ("0.5", lambda t: t.limit_test_batches, 0.5),
    "profiler": ("simple", lambda t: type(t.profiler), SimpleProfiler),
    "sync_batchnorm": (
        "true trainer.accelerator=auto trainer.devices=2 trainer.strategy=ddp",
        lambda t: type(t.strategy._layer_sync),
        TorchSyncBatchNorm,
    ),
}
IN_IDENTITY = ("precision", "deterministic", "sync_batchnorm", "limit_val_batches",
               "limit_test_batches", "overfit_batches")  # fmt: skip


def built(cfg: DictConfig, tmp_path: Path) -> Trainer:
    cfg.paths.logs = str(tmp_path)
    validation.check(cfg)
    experiment = build(cfg)
    configure_torch(experiment)
    return build_trainer(experiment, [], [])


@pytest.fixture(autouse=True)
def _default_flags(compose) -> Any:
    yield
    configure_torch(build(compose(CPU)))


def test_every_trainer_argument_is_passed_on_or_refused() -> None:
    known = {*trainer_arguments.PASSED_ON, *trainer_arguments.REFUSED}
    assert known == set(SIGNATURE)
    assert not {*trainer_arguments.PASSED_ON} & {*trainer_arguments.REFUSED}
    assert {*HONOURED, "overfit_batches"} == {*trainer_arguments.PASSED_ON}


@pytest.mark.parametrize("name", HONOURED)
def test_trainer_argument_reaches_lightning(compose, tmp_path: Path, name: str) -> None:
    text, seen, expected = HONOURED[name]
    cfg = compose(CPU, f"trainer.{name}={text}".split()[0], *text.split()[1:])
    assert seen(built(cfg, tmp_path)) == expected


@pytest.mark.parametrize("name", trainer_arguments.REFUSED)
def test_refused_trainer_argument_names_the_key_to_use(compose, name: str) -> None:
    for given in (f"trainer.{name}=1", f"+trainer.{name}=1"):
        with pytest.raises(UserError, match=rf"trainer\.{name}=1: ") as error:
            validation.check(compose(given))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in HONOURED if name != "accelerator"])
def test_only_trainer_arguments_that_change_results_are_in_the_identity(compose, name: str) -> None:
    text = HONOURED[name][0].split()[0]
    changed = identity.run_id(compose(f"trainer.{name}={text}")) != identity.run_id(compose())
    assert changed == (name in IN_IDENTITY)


def test_trainer_defaults_do_not_change_the_identity(compose) -> None:
    for given in ("deterministic=false", "sync_batchnorm=false", "limit_val_batches=1.0",
                  "limit_test_batches=null", "overfit_batches=null"):  # fmt: skip
        assert identity.run_id(compose(f"trainer.{given}")) == identity.run_id(compose()), given
    one, all_of_them = (compose(f"trainer.limit_val_batches={n}") for n in ("1", "1.0"))
    assert identity.run_id(one) != identity.run_id(all_of_them)
    assert identity.run_id(compose("trainer.overfit_batches=1")) != identity.run_id(compose())


REFUSED_VALUES = {
    "trainer.strategy=fsdp": "choose auto, ddp, ",
    "trainer.strategy=ddp_spawn": "spawn and fork: the processes of a run are started by funmatch",
    "trainer.strategy._target_=lightning.pytorch.strategies.FSDPStrategy": "choose auto, ddp, ",
    "trainer.limit_val_batches=0": "give a number of batches from 1, or a share in (0, 1]",
    "trainer.limit_test_batches=true": "give a number of batches from 1, or a share in (0, 1]",
    "trainer.limit_val_batches=2 trainer.devices=2": "counts batches of each device",
    "trainer.overfit_batches=0.1": "give a whole number from 1: the batches of so many steps",
    "trainer.overfit_batches=1 targets=record": "targets=record records; give targets=live",
    "trainer.profiler=fast": "choose simple, advanced, pytorch, or a profiler by _target_",
    "trainer.deterministic=yes": "choose true, false or warn",
    "trainer.sync_batchnorm=true trainer=cpu": "needs GPUs",
    "trainer.benchmrak=true": "no such argument of lightning.Trainer; did you mean trainer.bench",
    "+trainer.colour=red": "no such argument of lightning.Trainer; see its documentation",
    "trainer.log_every=5": "is now trainer.log_every_n_steps; give trainer.log_every_n_steps=5",
    **{
        f"trainer.{name}=2": f"is now compute.{name}; give compute.{name}=2"
        for name in ("workers", "threads", "micro_batch", "channels_last", "compile", "fused")
    },
    "trainer._target_=os.system": "a configuration may call here only",
}


@pytest.mark.parametrize("given", REFUSED_VALUES)
def test_wrong_trainer_value_is_refused_in_one_line(compose, given: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.") as error:
        validation.check(compose(*given.split()))
    assert REFUSED_VALUES[given] in str(error.value)
    assert "\n" not in str(error.value)


def test_ddp_strategy_and_profiler_may_be_given_by_target(compose, tmp_path: Path) -> None:
    strategy = "{_target_:lightning.pytorch.strategies.DDPStrategy,gradient_as_bucket_view:true}"
    profiler = "{_target_:lightning.pytorch.profilers.AdvancedProfiler,line_count_restriction:5}"
    cfg = compose(CPU, "trainer.devices=2", f"trainer.strategy={strategy}",
                  f"trainer.profiler={profiler}")  # fmt: skip
    trainer = built(cfg, tmp_path)
    assert trainer.strategy._ddp_kwargs["gradient_as_bucket_view"] is True
    assert trainer.profiler.line_count_restriction == 5


def test_trainer_group_options_set_their_arguments(compose) -> None:
    assert compose("trainer=auto").trainer == compose().trainer
    assert compose("trainer=cpu").trainer.accelerator == "cpu"
    assert compose("trainer=gpu").trainer.accelerator == "gpu"
    ddp = compose("trainer=ddp").trainer
    assert (ddp.accelerator, ddp.devices, ddp.strategy) == ("gpu", "auto", "ddp")


def test_torch_flags_are_reset_for_the_next_job(compose) -> None:
    both = ("trainer.deterministic=true", "trainer.benchmark=true")
    configure_torch(build(compose(CPU, *both)))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark  # torch would ignore the former
    configure_torch(build(compose(CPU)))
    assert not torch.are_deterministic_algorithms_enabled()


def test_repeated_steps_repeat_the_first_batches() -> None:
    recipe = Shared(name="r", crop="inception", mixing=True, min_area=0.3, mild=(12, 8), flip=True)
    stream = image_stream(array_source(), recipe, sides={"student": 8}, batch_size=6, seed=0)
    repeated = RepeatedSteps(stream, 2)
    for step in (0, 1, 2, 5):
        batch, first = repeated[step], stream[step % 2]
        assert batch.step == step
        assert torch.equal(batch.views["student"], first.views["student"])
        assert (batch.index == first.index).all()
        assert batch.coefficient == first.coefficient


# --- real commands -------------------------------------------------------------------------------

SHORT = (*QUICK, "steps=6", "schedule.warmup_steps=1", "validate_every=3", "batch_size=20")


def test_run_with_profiler_validation_limit_and_overfit_batches(workplace: Path) -> None:
    given = ("name=lightning", "trainer.profiler=simple", "trainer.limit_val_batches=2",
             "trainer.overfit_batches=1", "trainer.log_every_n_steps=1", "optimizer.lr=0.003",
             "trainer.deterministic=true", "trainer.enable_model_summary=true")  # fmt: skip
    code, out, err = command_here("train", *SHORT, *given, cwd=workplace)
    assert (code, err) == (0, "")
    assert "Trainable params" in out
    (folder,) = (workplace / "logs" / "lightning").glob("*/")
    assert "training_step" in (folder / "fit-profile.txt").read_text()
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) > 6
    head = rows[0].split(",")
    losses = [float(row.split(",")[head.index("train/loss")]) for row in rows[1:7]]
    assert losses == sorted(losses, reverse=True)  # of one batch


def test_renamed_trainer_keys_are_refused_by_every_command(tmp_path: Path) -> None:
    for script, *given in (
        ("train", "trainer.workers=2"),
        ("evaluate", "run=x", "trainer.workers=2"),
        ("export", "run=x", "+trainer.workers=2"),
    ):
        code, out, err = command_here(script, *given, cwd=tmp_path)
        assert (code, out) == (1, "")
        assert err == "error: trainer.workers=2: is now compute.workers; give compute.workers=2\n"
    code, _, err = command_here("evaluate", "run=x", "+trainer.profiler=simple", cwd=tmp_path)
    assert code == 1
    assert err.startswith("error: trainer.profiler=simple: ")


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize("script", ["train", pytest.param("finetune", marks=pytest.mark.slow)])
def test_fast_dev_run_completes_in_five_steps(workplace: Path, script: str) -> None:
    given = ("compute.threads=1", CPU, "debug=fast_dev_run", f"name=fast_{script}")
    for _ in range(2):  # the second time anew
        code, out, err = command_here(script, *given, cwd=workplace)
        assert (code, err) == (0, "")
        assert "finished before" not in out
    run = only_run(workplace, f"fast_{script}")
    assert (run.result["status"], run.result["steps"]) == ("completed", 5)
    assert column(run.metrics, "step") == [1, 2, 3, 4, 5]
    assert len(run.predictions.read_text().splitlines()) == 1 + 2 * 100  # test, two batches
    assert not list(run.directory.glob("wandb")) + list(run.directory.glob("tensorboard"))


@pytest.mark.slow
def test_overfit_learns_one_batch_and_resumes_exactly(workplace: Path) -> None:
    given = ("compute.threads=1", CPU, "debug=overfit", "steps=60", "validate_every=60",
             "checkpoint_every=30")  # fmt: skip
    code, _, err = command_here("train", *given, "name=overfit", cwd=workplace)
    assert (code, err) == (0, "")
    run = only_run(workplace, "overfit")
    losses = column(run.metrics, "train/loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 5
    stop = inject("SignalAt", step=31, number=15)
    assert command_here("train", *given, "name=overfit2", *stop, cwd=workplace)[0] == 75
    assert command_here("train", *given, "name=overfit2", "resume=auto", cwd=workplace)[0] == 0
    again = only_run(workplace, "overfit2")
    assert again.metrics.read_text() == run.metrics.read_text()
    assert again.student.read_bytes() == run.student.read_bytes()


def test_debug_overrides_experiment_and_command_line_overrides_both(compose) -> None:
    given = ("experiment=pets_3k", "debug=profile")
    cfg = compose(*given)
    assert (cfg.steps, cfg.epochs, cfg.name, cfg.logger) == (100, None, "debug", {})
    assert cfg.trainer.profiler == "simple"
    assert compose(*given, "steps=7", "name=mine", "logger=tensorboard").steps == 7
    assert set(compose(*given, "logger=tensorboard").logger) == {"tensorboard"}
