"""Students that are taught together end as those that are taught one by one, to the last byte."""

import gc
import os
import re
import signal
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from commands import QUICK, answers, command, command_here
from funmatch import files
from funmatch.data.lessons import Classmate, Lessons
from funmatch.data.module import DataModule
from funmatch.data.source import Splits
from funmatch.distillation import Distillation
from funmatch.evaluation import EvaluationViews
from funmatch.models import conv
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.recipes import Independent
from funmatch.runs import Run
from funmatch.targets import Asked, Live
from funmatch.turns import Seat, take_turns
from small import experiment
from toys import array_source, fit, learning, network, trainer

SETTINGS = (
    *QUICK,
    *("schedule.warmup_steps=2", "validate_every=5", "checkpoint_every=4", "trainer.log_every=1"),
    *("batch_size=50", "teacher.weights=teacher.safetensors"),
)
PAIR = ("name=pair", "steps=10", "objective.temperature=5,1")

# --- what commands are given: networks and faults of the test's own ------------------------------

asked: list[int] = []  # so many images at a time, of a teacher that listens


def listening(**settings: Any) -> nn.Module:
    """A network that notes whenever it is asked."""
    net = conv.build(**settings)
    net.register_forward_hook(lambda net, images, logits: asked.append(len(logits)))
    return net


def choosy(*, side: int, **settings: Any) -> nn.Module:
    """A network that says itself how large its views are, as those of timm do."""
    net = conv.build(side=side, **settings)
    net.pretrained_cfg = {"input_size": (1, side, side), "crop_pct": 1.0, "mean": (0.5,)}
    net.pretrained_cfg["std"] = (0.5,)
    return net


class SignalAt(Callback):
    """A signal to this process when the student of a temperature has done so many steps."""

    def __init__(self, step: int, temperature: float, number: int) -> None:
        self._at, self._number = (step, temperature), number

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if (trainer.global_step, module.objective.temperature) == self._at:
            os.kill(os.getpid(), self._number)


def signal_at(step: int, temperature: float, number: int) -> list[str]:
    """Strikes before the checkpoint of the step is written."""
    values = {"step": step, "temperature": temperature, "number": int(number)}
    given = [f"+callbacks.fault.{key}={value}" for key, value in values.items()]
    return ["+callbacks.fault._target_=test_cohort.SignalAt", *given]


# --- real commands -------------------------------------------------------------------------------


def told(home: Path, script: str, *overrides: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that finds the students' experiments."""
    flags = ["--config-dir=own", *["-m"][: script == "train"]]
    return command_here(script, *flags, *SETTINGS, *overrides, cwd=home)


def taught(home: Path, script: str, *overrides: str) -> str:
    """What a command said that went well."""
    code, out, err = told(home, script, *overrides)
    assert (code, err) == (0, "")
    return out


def left(home: Path, name: str = "*") -> dict[str, tuple[bytes, bytes]]:
    """Student and metrics of every finished run of a name, by directory."""
    runs = [Run(path.parent) for path in home.glob(f"logs/{name}/*/summary.json")]
    return {
        run.directory.name: (run.student.read_bytes(), run.metrics.read_bytes())
        for run in runs
        if run.completed
    }


def homes(folder: Path, *names: str) -> list[Path]:
    """Directories with the same teacher, and an experiment for every student."""
    torch.manual_seed(0)
    teacher = conv.build((32, 64), side=8, num_classes=10)
    nn.init.normal_(teacher[-1].weight, std=0.3)
    found = [folder / name for name in names]
    for home in found:
        files.write(home / "teacher.safetensors", safetensors.torch.save(teacher.state_dict()))
        for name, (groups, settings) in STUDENTS.items():
            experiment(home, name, groups, **{"steps": 10, **settings})
    return found


NARROW = {"net": {"widths": [8, 8]}}
STUDENTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "soft": ({}, {}),
    "forgetful": ({}, {"student": {"net": {"_target_": "toys.forgetful"}}}),
    "hard": ({}, {"objective": {"temperature": 1}}),
    "other": (
        {"optimizer": "sgd"},
        {"optimizer": {"lr": 0.1}, "clip_norm": None, "init_seed": 7, "student": NARROW},
    ),
    "short": ({}, {"steps": 7}),
    "seed": ({}, {"seed": 1}),
    "noise": ({"recipe": "independent_noise"}, {}),
    "noise_hard": ({"recipe": "independent_noise"}, {"objective": {"temperature": 1}}),
    "fixed": ({"recipe": "fixed_teacher"}, {}),
    "fixed_hard": ({"recipe": "fixed_teacher"}, {"objective": {"temperature": 1}}),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all students were taught one by one."""
    (home,) = homes(tmp_path_factory.mktemp("alone"), "home")
    taught(home, "train", f"experiment={','.join(STUDENTS)}")
    assert len(set(left(home).values())) == len(STUDENTS)  # no two are the same
    return home


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all students were taught at once, from images on the device."""
    (home,) = homes(tmp_path_factory.mktemp("together"), "home")
    out = taught(home, "cohort", f"experiment={','.join(STUDENTS)}", "data.cache=device")
    shared = re.findall(r"cohort: (\d+) students, one teacher", out)
    assert shared == ["5", "2", "2"]  # who see the same views
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return homes(tmp_path, "home")[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_what_it_becomes_alone(alone: Path, together: Path, name: str) -> None:
    assert left(together, name) == left(alone, name)


def test_a_student_may_learn_longer_than_the_first(alone: Path, home: Path) -> None:
    code, _, err = told(home, "cohort", "experiment=short,soft")
    assert (code, err) == (0, "")
    assert left(home, "soft") == left(alone, "soft")


def test_students_that_say_themselves_how_large_their_views_are(home: Path) -> None:
    choosy = ["student.net._target_=test_cohort.choosy", "student.side=null", "student.resize=null"]
    taught(home, "cohort", *choosy, "steps=3", "student.net.side=8,6", "name=together")
    taught(home, "train", *choosy, "steps=3", "student.net.side=6", "name=alone")
    assert left(home, "alone").items() <= left(home, "together").items()


def test_what_is_asked_for_one_is_recorded_for_all(home: Path) -> None:
    out = taught(home, "cohort", "targets=auto", *PAIR)
    assert out.count("0 of 10 steps are in logs/targets/") == 2
    verified = ("targets.verify=10", "name=verified")  # against the teacher, at every step
    out = taught(home, "train", "targets=replay", *PAIR, *verified)
    assert out.count("10 of 10 steps are in logs/targets/") == 2
    assert left(home, "pair") == left(home, "verified")


def test_the_teacher_is_asked_once_about_each_batch_and_not_again(home: Path) -> None:
    asked.clear()
    listens = "teacher.net._target_=test_cohort.listening"
    taught(home, "cohort", listens, *PAIR)
    assert asked.count(50) == 10
    before = {path: path.stat().st_mtime_ns for path in home.glob("logs/pair/*/s*.*")}
    taught(home, "cohort", listens, *PAIR)
    assert asked.count(50) == 10
    taught(home, "cohort", listens, *PAIR, "objective.temperature=5,1,2")  # the third one is left
    assert asked.count(50) == 20
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(left(home)) == 3


def test_each_has_a_tracker_of_its_own(
    alone: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = {"_target_": "funmatch.loggers.wandb.start", "_partial_": True, "project": "x"}
    given = [f"+logger.wandb.{key}={value}" for key, value in tracker.items()]
    code, _, err = told(home, "cohort", *PAIR, *given)
    assert (code, err) == (0, "")
    for run in (Run(path.parent) for path in home.glob("logs/pair/*/summary.json")):
        (log,) = run.directory.glob("wandb/offline-run-*/*.wandb")
        assert log.stem == f"run-{run.tracker_id.read_text()}"
    assert left(home) == pair_of(alone)


def test_one_that_fails_leaves_the_others_as_they_are(alone: Path, home: Path) -> None:
    """Though it is the first one, by which all that they share was made."""
    code, out, err = told(home, "cohort", *PAIR, "objective.temperature=1e25,5,1", "max_skipped=0")
    assert code == 1
    assert err.startswith("error: max_skipped=0: at step 1 loss or gradient are not finite")
    assert "1 failed" in out
    assert left(home) == pair_of(alone)


def pair_of(alone: Path) -> dict[str, tuple[bytes, bytes]]:
    """What PAIR leaves."""
    return left(alone, "soft") | left(alone, "hard")


def goes_on(home: Path, *steps: int) -> None:
    """What the same command says of each checkpoint."""
    runs = [Run(path.parent) for path in home.glob("logs/pair/*/summary.json")]
    assert [run.result["status"] for run in runs] == ["running", "running"]
    out = taught(home, "cohort", *PAIR)
    assert [line for line in out.splitlines() if "going on" in line] == [
        f"  going on from step {step} of 10" for step in steps
    ]


def test_a_cohort_that_was_killed_goes_on_exactly(alone: Path, home: Path) -> None:
    """Just before the second student's checkpoint, which the first one has."""
    killed = command("cohort", *SETTINGS, *PAIR, *signal_at(8, 1, signal.SIGKILL), cwd=home)
    assert killed.returncode == -signal.SIGKILL
    goes_on(home, 8, 4)
    assert left(home) == pair_of(alone)


def test_ctrl_c_ends_all_and_the_same_command_goes_on(alone: Path, home: Path) -> None:
    """All save what they have."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    code, _, err = told(home, "cohort", *PAIR, *signal_at(4, 1, signal.SIGINT))
    again = "saved after step 5 of 10; the same command goes on (exit code 130)"
    assert (code, err) == (130, f"interrupted by SIGINT: {again}\n")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    goes_on(home, 5, 4)  # all that they had locked is free
    assert left(home) == pair_of(alone)


def test_a_dry_run_is_refused(tmp_path: Path) -> None:
    """Before torch is imported."""
    call = ("cohort", "dry_run=true")
    told = "error: dry_run=true: a cohort has none; python src/train.py -m has\n"
    assert answers([call], cwd=tmp_path)[call] == (1, "", told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("dry_run=true objective.temperature=5,1", "dry_run=true: a cohort has none"),
        ("trainer.devices=2 seed=0,1", "trainer.devices=2: a cohort runs on one device"),
    ],
)
def test_what_no_cohort_can_do_is_refused_in_one_line(
    tmp_path: Path, arguments: str, told: str
) -> None:
    call = ("cohort", arguments)
    code, _, errors = answers([call], cwd=tmp_path)[call]
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: {told}")


def test_a_search_is_refused(tmp_path: Path) -> None:
    given = ("cohort", "sweep=optuna", "hydra.sweeper.n_trials=3", *QUICK)
    told = "a search waits for results; leave it out, or use python src/train.py"
    done = command(*given, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: sweep=optuna: {told}"  # Optuna says more


def test_the_configuration_is_shown(tmp_path: Path) -> None:
    calls = [(script, "--cfg job seed=3") for script in ("cohort", "train")]
    cohort, train = answers(calls, cwd=tmp_path).values()
    assert cohort == train
    assert "\nseed: 3\n" in train[1]


# --- toys: one pass of the teacher ---------------------------------------------------------------

NOISY = Independent(name="independent_noise", crop="inception", mixing=True, min_area=0.3)
LENGTHS = (5, 3, 5)  # steps of each student
SIZES = {"steps": 5, "batch_size": 8}


def members() -> dict[str, Network]:
    return {"teacher.large": network(10, seed=2), "teacher.small": network(6, seed=3)}


def distillation(number: int, teacher: Teacher, asked: Asked | None = None) -> Distillation:
    """Teaches one of the students, three images at a time."""
    temperature = 100.0 * (number + 1)
    words = Live(teacher.softened(temperature), asked)
    pieces = replace(learning(LENGTHS[number]), micro_batch=3)
    objective = FunctionMatching(temperature)
    return Distillation(network(8, seed=10 + number), words, {}, objective, pieces)


def weights(learner: Distillation) -> Tensor:
    return learner.student.net.linear.weight.detach()


def side_by_side(teacher: Teacher) -> list[Distillation]:
    """All students, taught by one pass of the teacher."""
    sides = {"student": 8, **teacher.sides}
    views = (EvaluationViews(array_source(6, seed=s), resize=8, side=8) for s in (1, 2))
    data = DataModule(Splits(array_source(), *views), NOISY, sides=sides, seed=0, **SIZES)
    lessons = Lessons(data, torch.device("cpu"))
    asked = Asked(teacher.members, several=True)
    students = [distillation(number, teacher, asked) for number in range(3)]

    def teach(number: int, seat: Seat) -> None:
        steps = LENGTHS[number]
        trainer(steps).fit(students[number], Classmate(lessons, steps, seat.wait))

    assert take_turns([partial(teach, number) for number in range(3)]) == [None] * 3
    return students


def test_one_pass_of_an_ensemble_teaches_all() -> None:
    """Each member is asked once about each piece of each batch."""
    nets = members()
    teacher = Teacher({name: Frozen(net) for name, net in nets.items()})
    sides = {"student": 8, **teacher.sides}
    alone = [distillation(number, teacher) for number in range(3)]
    for learner, steps in zip(alone, LENGTHS, strict=True):
        fit(learner, array_source(), NOISY, sides=sides, **{**SIZES, "steps": steps})
    for net in nets.values():
        net.net.seen.clear()
    for student, twin in zip(side_by_side(teacher), alone, strict=True):
        assert torch.equal(weights(student), weights(twin))
    for net in nets.values():
        assert [len(images) for images in net.net.seen] == [3, 3, 2] * 5


# --- turns ---------------------------------------------------------------------------------------


def test_whoever_is_furthest_behind_goes_on_and_of_equals_the_first() -> None:
    order: list[tuple[str, int]] = []

    def task(name: str, steps: range, seat: Seat) -> str:
        order.append((name, -1))
        for step in steps:
            seat.wait(step)
            order.append((name, step))
        return name.upper()

    tasks = {"a": range(3), "b": range(1, 3), "c": range(0, 4, 3)}
    assert take_turns([partial(task, *each) for each in tasks.items()]) == ["A", "B", "C"]
    assert " ".join(f"{name}{step}" for name, step in order) == ("a-1 b-1 c-1 a0 c0 a1 b1 a2 b2 c3")
    assert take_turns([]) == []


def test_what_ends_one_is_kept_and_the_others_go_on() -> None:
    errors = [ValueError("at once"), OSError("in the middle")]

    def task(number: int, seat: Seat) -> int:
        for step in range(4):
            if (number, step) in ((0, 0), (2, 2)):
                raise errors[number // 2]
            seat.wait(step)
        return number

    outcomes = take_turns([partial(task, number) for number in range(4)])
    assert outcomes == [errors[0], 1, errors[1], 3]


def test_what_one_had_that_failed_is_free_for_the_others() -> None:
    """Of the memory of a device, say, of which it needed too much."""
    held: list[weakref.ref[nn.Module]] = []

    def fails(seat: Seat) -> None:
        net = nn.Linear(1, 1)
        held.append(weakref.ref(net))
        seat.wait(0)
        raise MemoryError

    def goes_on(seat: Seat) -> bool:
        seat.wait(1)
        gc.collect()
        return held[0]() is None

    assert take_turns([fails, goes_on])[1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("step", "begun"), [pytest.param(-1, "ab", id="getting ready"), pytest.param(1, "abc", id="on")]
)
def test_an_interrupt_ends_them_all_where_they_are(
    kind: type[BaseException], step: int, begun: str
) -> None:
    ended: list[tuple[str, int]] = []

    def task(name: str, seat: Seat) -> None:
        at = -1
        try:
            while at < 5:
                if (name, at) == ("b", step):
                    raise kind
                with suppress(Exception):  # no error that a task could live with
                    seat.wait(at + 1)
                at += 1
        finally:
            ended.append((name, at))

    with pytest.raises(kind):
        take_turns([partial(task, name) for name in "abc"])
    assert sorted(ended) == [(name, step - (name > "b")) for name in begun]
