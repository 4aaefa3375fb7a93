"""Recorded targets: encodings, the store, recording, replay and verification."""

import csv
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from commands import QUICK, ROOT, answers, command, command_here, environment
from faults import inject
from funmatch.config import identity, validation
from funmatch.config.errors import UserError
from funmatch.experiment import datasets, target_policy
from funmatch.experiment.build import build
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.runs.directory import Run
from funmatch.runtime import hardware
from funmatch.targets import per_image
from funmatch.targets.store import LogitStore, encoding
from funmatch.training.distillation import Distillation
from funmatch.views.recipes import Fixed
from small import only_run
from toys import TASK, array_source, fit, learning, network, teacher_of

FORMS = ("float32", "float16", "top3")


def logits(rows: int, classes: int = 7, seed: int = 0) -> Tensor:
    return 4 * torch.randn(rows, classes, generator=torch.manual_seed(seed))


# --- forms: logits as bytes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_encoded_rows_have_the_promised_width(name: str) -> None:
    rows = encoding(name).encode(logits(5))
    assert rows.dtype == torch.uint8
    assert rows.shape == (5, encoding(name).width(7))


def test_float32_is_lossless_and_float16_rounds_to_half() -> None:
    values = logits(50)
    for name, expected in (("float32", values), ("float16", values.half().float())):
        assert torch.equal(encoding(name).decode(encoding(name).encode(values), 7), expected)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_preserves_top_probabilities_and_their_remainder(k: int) -> None:
    original = logits(50)
    decoded = encoding(f"top{k}").decode(encoding(f"top{k}").encode(original), 7)
    assert torch.equal(decoded.topk(k).indices, original.topk(k).indices)
    before, after = original.softmax(-1), decoded.softmax(-1)
    rounding = 4 * 2**-11 * float(decoded.abs().max())  # of a difference of two halves, doubled
    top = original.topk(k).indices
    torch.testing.assert_close(after.gather(-1, top), before.gather(-1, top), rtol=rounding, atol=0)
    rest = [p.scatter(-1, top, 0).sum(-1) for p in (after, before)]
    torch.testing.assert_close(*rest, rtol=rounding, atol=0)
    others = decoded.scatter(-1, top, torch.nan)  # all alike
    assert all(len(row[~row.isnan()].unique()) == 1 for row in others)


def test_top_k_of_bfloat16_equals_top_k_of_float32() -> None:
    values = logits(9).bfloat16()
    assert torch.equal(encoding("top3").encode(values), encoding("top3").encode(values.float()))


@pytest.mark.parametrize("name", ["top7", "top8", "top0"])
def test_top_k_of_zero_or_all_classes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"targets.form={name}: there are 7 classes; keep fewer"):
        encoding(name).width(7)


@pytest.mark.parametrize("name", ["top7", "top8"])
def test_store_refuses_top_k_of_at_least_all_classes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="there are 7 classes; keep fewer"):
        LogitStore(tmp_path, {}, name).encode(logits(5))


@pytest.mark.parametrize("name", ["half", "top", "top-1", "top1.5", "float64", ""])
def test_unknown_form_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"targets.form={name}: choose float32, float16 or top<k>"):
        LogitStore(tmp_path, {}, name)


def test_wrong_targets_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    mistakes = {
        "targets=record targets.form=top10": "keep fewer than the 10 classes of data=digits",
        "targets=record targets.form=top0": "choose float32, float16 or top<k>, as in top10",
        "targets=record targets.form=half": "choose float32, float16 or top<k>, as in top10",
        "targets=replay targets.verify=-1": "give a whole number from 0",
        "targets.mode=once": "choose live, auto, record or replay",
        "targets=once": "no such targets; choose auto, live, record or replay",
    }
    responses = answers([("train", wrong) for wrong in mistakes], cwd=tmp_path)
    for (_, wrong), response in responses.items():
        assert response == (1, "", f"error: {wrong.split()[-1]}: {mistakes[wrong]}\n")
    assert not list(tmp_path.iterdir())


# --- records: tables that many may write ---------------------------------------------------------

ABOUT = {"kind": "steps", "seed": 0}
LOGITS = logits(12)


def record(store: Path, name: str = "float32", **about: object) -> LogitStore:
    return LogitStore(store, {**ABOUT, **about}, name)


def write(into: LogitStore, first: int, last: int, rows: Tensor = LOGITS) -> None:
    into.write(first, into.encode(rows[first:last]))


def stored_rows(of: LogitStore, rows: int = 12) -> str:
    """The rows that are recorded, as in 1101."""
    return "".join("01"[int(stored)] for stored in of.is_stored(slice(0, rows)))


@pytest.mark.parametrize("name", FORMS)
def test_several_writers_write_rows_in_any_order(tmp_path: Path, name: str) -> None:
    one, other = record(tmp_path, name), record(tmp_path, name)
    write(one, 8, 12)
    assert stored_rows(other) == "000000001111"
    write(other, 0, 4)
    assert stored_rows(one) == "111100001111"
    assert one.read(slice(2, 10)) is None
    write(other, 4, 8)
    expected = one.decode(one.encode(LOGITS))
    for reader in (one, other, record(tmp_path, name)):
        assert torch.equal(reader.read(slice(0, 12)), expected)
        assert torch.equal(reader.read(slice(3, 9)), expected[3:9])


@pytest.mark.parametrize("name", FORMS)
def test_reader_sees_rows_written_after_open(tmp_path: Path, name: str) -> None:
    """Two jobs of a sweep start at once; the slower one meets the rows of the faster."""
    early = record(tmp_path, name)
    write(record(tmp_path, name), 0, 12)
    assert torch.equal(early.read(slice(0, 12)), early.decode(early.encode(LOGITS)))


def test_reading_creates_no_record(tmp_path: Path) -> None:
    empty = record(tmp_path / "store")
    assert stored_rows(empty) == "000000000000"
    assert empty.read(slice(0, 12)) is None
    assert not list(tmp_path.iterdir())


def test_record_directory_depends_on_values_and_form(tmp_path: Path) -> None:
    stores = [record(tmp_path), record(tmp_path, seed=1), record(tmp_path, crop="mild")]
    stores += [record(tmp_path, name) for name in FORMS[1:]]
    assert len({store.folder for store in stores}) == len(stores)
    assert record(tmp_path, mild=(160, 128)).folder == record(tmp_path, mild=[160, 128]).folder
    write(stores[0], 0, 12)
    assert [stored_rows(store).count("1") for store in stores] == [12, 0, 0, 0, 0]


@pytest.mark.parametrize("left", [0, 3, 4, 30])
def test_rows_without_checksum_are_missing(tmp_path: Path, left: int) -> None:
    write(record(tmp_path), 0, 12)
    with (record(tmp_path).folder / "sums.bin").open("r+b") as file:
        file.truncate(left)
    whole = left // 4
    assert stored_rows(record(tmp_path)) == "1" * whole + "0" * (12 - whole)
    assert record(tmp_path).read(slice(0, whole + 1)) is None
    assert torch.equal(record(tmp_path).read(slice(0, whole)), LOGITS[:whole])


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_row_is_named_once_and_then_missing(tmp_path: Path, damage) -> None:
    write(record(tmp_path), 0, 12)
    folder = record(tmp_path).folder
    damage(folder / "rows.bin", 9 * 28 + 5)
    assert torch.equal(record(tmp_path).read(slice(0, 8)), LOGITS[:8])
    with pytest.raises(
        ValueError, match=f"^{folder}: . damaged rows, the first is 9; the same command"
    ):
        record(tmp_path).read(slice(8, 12))
    assert record(tmp_path).read(slice(8, 12)) is None
    assert stored_rows(record(tmp_path)).startswith("11111111")
    write(record(tmp_path), 8, 12)
    assert torch.equal(record(tmp_path).read(slice(0, 12)), LOGITS)


def test_damaged_row_leaves_other_rows_readable(tmp_path: Path) -> None:
    write(record(tmp_path), 0, 12)
    flip(record(tmp_path).folder / "rows.bin", 9 * 28 + 5)
    with pytest.raises(ValueError, match="damaged"):
        record(tmp_path).read(slice(0, 12))
    assert stored_rows(record(tmp_path)) == "111111111011"


@pytest.mark.parametrize("name", ["rows.bin", "sums.bin"])
def test_record_with_a_missing_file_is_refilled(tmp_path: Path, name: str) -> None:
    write(record(tmp_path), 0, 12)
    (record(tmp_path).folder / name).unlink()
    write(record(tmp_path), 0, 12)
    assert torch.equal(record(tmp_path).read(slice(0, 12)), LOGITS)


WRITER = """
import itertools, sys, torch
from pathlib import Path
from funmatch.targets.store import LogitStore
record = LogitStore(Path(sys.argv[1]), {"kind": "steps", "seed": 0}, "float32")
for step in itertools.count():
    rows = torch.arange(step * 64, step * 64 + 64)[:, None].expand(64, 500).float()
    record.write(step * 64, record.encode(rows))
    print(step, flush=True)
"""


def test_killed_writer_leaves_only_correct_rows(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path)]
    home = environment(tmp_path, PYTHONPATH=str(ROOT / "src"))
    with subprocess.Popen(arguments, env=home, stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 20:
            pass
        process.send_signal(signal.SIGKILL)
        steps = 21 + len(process.stdout.readlines())
    assert process.returncode == -signal.SIGKILL
    left = record(tmp_path)
    rows = np.flatnonzero(left.is_stored(slice(0, 64 * (steps + 10))))
    assert 64 * steps <= len(rows) <= 64 * (steps + 1)
    for row in rows.tolist():
        assert torch.equal(left.read(slice(row, row + 1)), torch.full((1, 500), float(row)))


# --- toy distillations: recording and replay -----------------------------------------------------


class ToyDistillation:
    """A real distillation of a toy student, after which the teacher's networks can be looked at."""

    def __init__(
        self,
        cfg: DictConfig,
        nets: dict[str, Network],
        source: Any,
        **combination: Any,
    ) -> None:
        validation.check(cfg)
        self.cfg, self.nets, self.source = cfg, nets, source
        experiment = build(cfg)
        self.recipe = datasets.build_recipe(experiment)
        members = {name: Frozen(net) for name, net in nets.items()}
        self.teacher = Teacher(members, means=TASK.means, **combination).at_temperature(
            cfg.objective.temperature
        )
        self.targets, self.needs_teacher = target_policy.training_targets(
            experiment, self.teacher, self.recipe, source, TASK
        )

    def trained_weights(self, side: int = 8) -> Tensor:
        """The weights of the student in the end."""
        objective = FunctionMatching(self.cfg.objective.temperature)
        student = network(side, seed=1)
        learner = Distillation(student, self.targets, {}, objective, learning(self.cfg.steps), TASK)
        sides = {"student": side, **(self.teacher.sides if self.needs_teacher else {})}
        budget = {"steps": self.cfg.steps, "batch_size": self.cfg.batch_size}
        fit(learner, self.source, self.recipe, sides=sides, seed=self.cfg.seed, **budget)
        self.targets.flush()
        return student.net.linear.weight.detach()

    @property
    def images(self) -> list[int]:
        """How many images each network was evaluated on."""
        return [sum(map(len, net.net.seen)) for net in self.nets.values()]


@pytest.fixture
def toy_distillation(compose, tmp_path: Path) -> Callable[..., ToyDistillation]:
    """Prepares a distillation of five steps of six images; all of a test share their logs."""

    def prepare(
        *overrides: str, nets: Any = None, source: Any = None, **more: Any
    ) -> ToyDistillation:
        common = ("steps=5", "batch_size=6", "schedule.warmup_steps=1", "trainer.accelerator=cpu")
        cfg = compose(*common, f"paths.logs={tmp_path}", "objective.temperature=300", *overrides)
        nets = nets or {"teacher": network(10, seed=2)}
        return ToyDistillation(cfg, nets, source or array_source(), **more)

    return prepare


def pair() -> dict[str, Network]:
    return {"teacher.large": network(10, seed=2), "teacher.small": network(6, seed=3)}


RECIPES = ("independent_noise", "consistent", "function_matching")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("nets", [None, pair], ids=["one teacher", "two teachers"])
def test_float32_record_equals_live_targets(toy_distillation, recipe: str, nets) -> None:
    """To the last bit, where the record rounds nothing."""

    def train_toy(targets: str) -> tuple[Tensor, list[int]]:
        made = toy_distillation(
            f"recipe={recipe}",
            f"targets={targets}",
            "targets.form=float32",
            nets=nets and nets(),
            **({"combine": "sum", "weights": (1.0, 3.0)} if nets else {}),
        )
        return made.trained_weights(), made.images

    live, evaluated = train_toy("live")
    assert set(evaluated) == {5 * 6}
    recorded, evaluated_to_record = train_toy("record")
    assert evaluated_to_record == evaluated
    replayed, evaluated_to_replay = train_toy("replay")
    assert set(evaluated_to_replay) == {0}
    assert torch.equal(recorded, live)
    assert torch.equal(replayed, live)


@pytest.mark.parametrize("name", ["float16", "top3"])
def test_targets_are_rounded_with_and_without_record(toy_distillation, name: str) -> None:
    """The first three steps are read, the others computed."""
    rounded = f"targets.form={name}"
    short = toy_distillation("targets=record", "steps=3", rounded)
    short.trained_weights()
    auto = toy_distillation("targets=auto", rounded)
    mixed = auto.trained_weights()
    assert auto.images == [2 * 6]
    assert torch.equal(toy_distillation("targets=replay", rounded).trained_weights(), mixed)
    live = toy_distillation("targets=live").trained_weights()
    assert not torch.equal(mixed, live)
    if name == "float16":
        torch.testing.assert_close(mixed, live, rtol=1e-2, atol=1e-3)


def test_replay_never_evaluates_the_teacher(toy_distillation) -> None:
    recorded = toy_distillation("targets=record").trained_weights()
    replay = toy_distillation("targets=replay")

    def fail(images: Tensor) -> Tensor:
        raise AssertionError("the teacher was evaluated")

    replay.nets["teacher"].net.forward = fail
    assert torch.equal(replay.trained_weights(), recorded)


def test_independent_noise_targets_are_recorded(toy_distillation) -> None:
    toy_distillation(
        "targets=record", "recipe=consistent", "targets.form=float32"
    ).trained_weights()
    independent = toy_distillation(
        "targets=record", "recipe=independent_noise", "targets.form=float32"
    )
    assert independent.needs_teacher  # nothing is taken from the other recipe
    independent.trained_weights()
    assert independent.images == [5 * 6]
    net = independent.nets["teacher"].net
    logits_seen = net.linear(torch.cat(net.seen).flatten(1)).detach()
    (about,) = (p for p in targets_of(independent) if json.loads(p.read_text())["shared"] is False)
    rows = torch.from_numpy(np.fromfile(about.with_name("rows.bin"), np.float32).reshape(30, 7))
    # Of hundreds of pixels; other numbers of rows are summed in another order.
    torch.testing.assert_close(rows, logits_seen, rtol=1e-4, atol=1e-2)


def last_line(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def targets_of(given: ToyDistillation) -> list[Path]:
    return sorted(Path(given.cfg.paths.logs).glob("targets/*/about.json"))


def test_each_member_is_recorded_for_any_combination(toy_distillation) -> None:
    made = toy_distillation("targets=record", nets=pair(), combine="sum")
    made.trained_weights()
    assert made.images == [5 * 6, 5 * 6]
    assert len(targets_of(made)) == 2
    for how in ({"combine": "logit"}, {"combine": "probability", "weights": (2.0, 1.0)}):
        other = toy_distillation("targets=replay", nets=pair(), **how)
        assert not other.needs_teacher
        other.trained_weights()
        assert other.images == [0, 0]
    alone = toy_distillation("targets=replay", nets={"teacher": pair()["teacher.small"]})
    assert not alone.needs_teacher


def test_only_the_member_without_a_record_is_evaluated(toy_distillation, capsys) -> None:
    toy_distillation("targets=record", nets={"teacher": pair()["teacher.large"]}).trained_weights()
    both = toy_distillation("targets=auto", nets=pair())
    assert both.needs_teacher
    assert "0 of 5 steps are in " in last_line(capsys)
    both.trained_weights()
    assert both.images == [0, 5 * 6]
    assert not toy_distillation("targets=replay", nets=pair()).needs_teacher


SAME = [
    ("objective.temperature=2",),
    ("optimizer.lr=0.5",),
    ("optimizer=sgd", "clip_norm=null", "validate_every=7"),
    ("student.net.widths=[8,8]",),
    ("steps=4", "init_seed=7"),
    ("compute.workers=1", "compute.micro_batch=2", "data.cache=none"),
    ("recipe=consistent", "recipe.mixing=true"),
]
OTHER = [
    ("recipe.alpha=0.5",),
    ("recipe=consistent",),
    ("recipe=independent_noise", "recipe.mixing=true"),
    ("data.min_area=0.5",),
    ("data.flip=true",),
    ("seed=1",),
    ("batch_size=5",),
    ("trainer.precision=bf16-mixed",),
    ("targets.form=float32",),
]


def test_record_is_shared_by_other_students(toy_distillation) -> None:
    toy_distillation("targets=record").trained_weights()
    for change in SAME:
        assert not toy_distillation("targets=auto", *change).needs_teacher, change


def of_any_side(side: int) -> Network:
    """A network whose weights do not tell its side."""
    layers = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7)
    for number, parameter in enumerate(layers[-1].parameters()):
        nn.init.constant_(parameter, number)
    return Network(nn.Sequential(*layers), mean=[0.5] * 3, std=[0.5] * 3, side=side, resize=side)


def test_other_views_or_teachers_need_a_new_record(toy_distillation, capsys) -> None:
    made = toy_distillation("targets=record")
    made.trained_weights()
    others = [toy_distillation("targets=auto", *change) for change in OTHER]
    for net in (network(10, seed=3), of_any_side(10), of_any_side(9)):  # weights, then sides
        others.append(toy_distillation("targets=auto", nets={"teacher": net}))
    others.append(toy_distillation("targets=auto", source=array_source(seed=1)))
    reported = re.findall(r"targets: (\d) of 5 steps are in (\S+);", capsys.readouterr().out)
    assert [steps for steps, _ in reported] == ["0"] * (1 + len(others))
    assert len({folder for _, folder in reported}) == len(reported)


@pytest.mark.parametrize(
    "recipe", ["recipe.crop=mild", "recipe=fixed_teacher recipe.teacher_crop=centre"]
)
def test_mild_crops_are_recorded(toy_distillation, recipe: str) -> None:
    first = toy_distillation("targets=record", *recipe.split())
    weights = first.trained_weights()
    again = toy_distillation("targets=record", *recipe.split())
    assert torch.equal(again.trained_weights(), weights)
    assert again.images == [0]
    other = toy_distillation("targets=record", *recipe.split(), "data.mild=[120,100]")
    other.trained_weights()
    assert other.images == first.images


def test_record_depends_on_teacher_normalisation(toy_distillation) -> None:
    toy_distillation("targets=record").trained_weights()
    net = network(10, seed=2)
    shifted = Network(net.net, mean=[0.5] * 3, std=[1 / 255] * 3, side=10, resize=10)
    assert toy_distillation("targets=auto", nets={"teacher": shifted}).needs_teacher


# --- toy distillations: refusals, checks, faults -------------------------------------------------


def test_replay_names_the_key_that_differs_from_the_nearest_record(toy_distillation) -> None:
    """With both values; of several records, that which differs least."""
    with pytest.raises(UserError, match=r"nothing is recorded of .*, there is no record at all; "):
        toy_distillation("targets=replay")
    toy_distillation("targets=record").trained_weights()
    toy_distillation("targets=record", "seed=3", "data.min_area=0.5").trained_weights()
    for change, named in (
        ("seed=1", "seed (recorded: 0, now: 1)"),
        ("batch_size=5", "batch_size (recorded: 6, now: 5)"),
        ("recipe.alpha=0.5", "mixing (recorded: 1.0, now: 0.5)"),
        ("data.min_area=0.4", "min_area (recorded: 0.25, now: 0.4)"),
        ("targets.form=top2", "form (recorded: float16, now: top2)"),
        ("seed=3 data.min_area=0.4", "min_area (recorded: 0.5, now: 0.4)"),
    ):
        with pytest.raises(UserError, match=re.escape(f"the nearest record differs in {named}; ")):
            toy_distillation("targets=replay", *change.split())


def test_verify_recomputes_the_given_number_of_steps(toy_distillation) -> None:
    recorded = toy_distillation("targets=record").trained_weights()
    verified = toy_distillation("targets=replay", "targets.verify=3")
    assert torch.equal(verified.trained_weights(), recorded)
    assert verified.images == [3 * 6]
    all_of_it = toy_distillation("targets=auto", "targets.verify=99")
    assert torch.equal(all_of_it.trained_weights(), recorded)
    assert all_of_it.images == [5 * 6]


@pytest.mark.parametrize("name", FORMS)
def test_verify_rejects_rows_of_another_seed(toy_distillation, name: str) -> None:
    for seed in (0, 1):
        toy_distillation("targets=record", f"targets.form={name}", f"seed={seed}").trained_weights()
    wrong = toy_distillation("targets=replay", f"targets.form={name}", "targets.verify=1")
    folders = {json.loads(p.read_text())["seed"]: p.parent for p in targets_of(wrong)}
    for file in ("rows.bin", "sums.bin"):
        shutil.copy(folders[1] / file, folders[0] / file)
    with pytest.raises(ValueError, match=rf"^targets\.verify: step \d in {folders[0]} differs "):
        wrong.trained_weights()


@pytest.mark.parametrize("mode", ["auto", "replay"])
def test_rows_lost_during_a_run_are_never_taken_from_another_view(
    toy_distillation, mode: str
) -> None:
    """Another run met damage, or someone removed the record, after this one had looked it up."""
    views, same_side = "recipe=independent_noise", {"teacher": network(10, seed=2)}
    recorded = toy_distillation("targets=record", views, nets=same_side).trained_weights(side=10)
    reading = toy_distillation(f"targets={mode}", views)
    (about,) = targets_of(reading)
    about.with_name("sums.bin").write_bytes(b"")
    weights = recorded
    with suppress(ValueError):  # to refuse to continue is right, too
        weights = reading.trained_weights(side=10)
    assert torch.equal(weights, recorded)


# --- disks that are full -------------------------------------------------------------------------

NEED = 5 * 6 * (2 * 10 + 4)  # steps, images, float16 of ten classes with a checksum


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hardware, "free_disk_space", lambda folder: size)


def test_record_without_disk_space_is_refused(
    toy_distillation, monkeypatch, tmp_path: Path
) -> None:
    free(monkeypatch, NEED - 1)
    with pytest.raises(UserError, match=r"^targets=record: needs .* GB in .*/targets, where ") as e:
        toy_distillation("targets=record")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())
    free(monkeypatch, NEED)
    assert toy_distillation("targets=record").needs_teacher


def test_auto_records_only_within_a_quarter_of_the_free_space(
    toy_distillation, monkeypatch, capsys
) -> None:
    free(monkeypatch, 4 * NEED - 1)
    unrecorded = toy_distillation("targets=auto")
    weights = unrecorded.trained_weights()
    assert "are too much for" in (output := capsys.readouterr().out)
    assert output.rstrip().endswith("nothing is recorded")
    assert not targets_of(unrecorded)
    free(monkeypatch, 4 * NEED)
    recorded = toy_distillation("targets=auto")
    assert torch.equal(recorded.trained_weights(), weights)
    assert len(targets_of(recorded)) == 1


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """To write further is an OSError, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("nets", [None, pair], ids=["one teacher", "two teachers"])
def test_full_disk_stops_recording_but_not_the_run(toy_distillation, capsys, nets) -> None:
    settings = ("steps=20", "targets.form=float32")
    filling = toy_distillation("targets=record", *settings, nets=nets and nets())
    with files_of_at_most(2000):  # of the rows: there are 20 * 6 of 28 bytes
        weights = filling.trained_weights()
    output = capsys.readouterr().out
    assert output.count("File too large; the run continues and records no further targets") == 1
    assert torch.equal(
        weights, toy_distillation("targets=live", *settings, nets=nets and nets()).trained_weights()
    )
    again = toy_distillation("targets=auto", *settings, nets=nets and nets())
    assert f": {2000 // 28 // 6} of 20 steps are in" in last_line(capsys)
    assert torch.equal(again.trained_weights(), weights)
    assert set(again.images) <= {
        9 * 6,
        10 * 6,
    }  # two members may have recorded different numbers of steps
    assert torch.equal(
        toy_distillation("targets=replay", *settings, nets=nets and nets()).trained_weights(),
        weights,
    )


# --- a fixed teacher -----------------------------------------------------------------------------


def test_fixed_teacher_store_is_shared_by_all_targets_modes(toy_distillation) -> None:
    first = toy_distillation("targets=live", "recipe=fixed_teacher")
    weights = first.trained_weights()
    assert first.images == [20]
    for mode in ("auto", "record", "replay", "live"):
        again = toy_distillation(f"targets={mode}", "recipe=fixed_teacher")
        assert torch.equal(again.trained_weights(), weights)
        assert again.images == [0]
    assert [json.loads(p.read_text())["kind"] for p in targets_of(again)] == ["fixed"]


KILLED_WHILE_EVALUATING = """
import os, signal, sys
import test_recorded_targets
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
test_recorded_targets.ensemble_of_crops(sys.argv[1], kill)
"""


def ensemble_of_crops(folder: str | Path, fault: Callable[[], None] | None = None) -> Any:
    """Evaluates a toy network on three crops of each of 20 images, five images at a time.

    Returns the targets and the network, and which images were opened; a fault strikes before the
    eighth forward pass, which is of the second crop of the third five.
    """
    net, source, opened = network(8, seed=2), array_source(), []
    images, plain_forward = source.images, net.net.forward
    source.images = lambda rows: (opened.extend(rows.tolist()), images(rows))[1]

    def forward(pixels: Tensor) -> Tensor:
        if fault is not None and len(net.net.seen) == 7:
            fault()
        return plain_forward(pixels)

    net.net.forward = forward
    recipe = Fixed(name="x", teacher_crop="inception_ensemble", ensemble=3, min_area=0.3)
    arguments = {"store": Path(folder), "batch_size": 6, "device": torch.device("cpu")}
    targets = per_image.on_fixed_views(teacher_of(net), source, recipe, TASK, seed=0, **arguments)
    return targets._predictions, len(net.net.seen), opened


def test_killed_per_image_evaluation_resumes_with_missing_images(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_EVALUATING, str(tmp_path / "killed")],
        env=environment(tmp_path, PYTHONPATH=f"{ROOT / 'src'}:{ROOT / 'tests'}"),
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, evaluations, opened = ensemble_of_crops(tmp_path / "killed")
    assert evaluations == 2 * 3
    assert opened == list(range(10, 20))
    whole, evaluations, opened = ensemble_of_crops(tmp_path / "whole")
    assert (evaluations, opened) == (4 * 3, list(range(20)))
    assert torch.equal(resumed, whole)


def test_damaged_evaluation_logits_are_recomputed(
    tmp_path: Path,
) -> None:
    arguments = {"store": tmp_path, "batch_size": 6, "device": torch.device("cpu")}
    net, source = network(8, seed=2), array_source()
    stored = per_image.on_evaluation_views(teacher_of(net), source, TASK, **arguments)
    (rows,) = tmp_path.glob("*/rows.bin")
    flip(rows, 100)
    with pytest.raises(ValueError, match=f"^{rows.parent}: 1 damaged rows, .*; the same command"):
        per_image.on_evaluation_views(teacher_of(net), source, TASK, **arguments)
    again = per_image.on_evaluation_views(teacher_of(net), source, TASK, **arguments)
    assert torch.equal(again._predictions, stored._predictions)


# --- identity ------------------------------------------------------------------------------------


def test_run_id_depends_on_form_but_not_on_targets_mode(compose) -> None:
    def name(*overrides: str) -> str:
        return identity.run_id(compose(*overrides))

    read = {name(f"targets={mode}") for mode in ("auto", "record", "replay")}
    assert len(read) == 1
    assert name("targets=record", "targets.verify=3") in read
    live = name("targets=live")
    assert live == name("targets.form=float32") == name("targets.verify=3")
    forms = {name("targets=auto", f"targets.form={form}") for form in FORMS}
    assert len({*forms, live}) == 4
    assert read < forms


def test_fixed_teacher_run_directory_does_not_depend_on_targets_mode(compose) -> None:
    modes = ("live", "auto", "record", "replay")
    runs = [compose("recipe=fixed_teacher", f"targets={mode}") for mode in modes]
    assert len({identity.run_directory(cfg) for cfg in runs}) == 1


# --- real commands -------------------------------------------------------------------------------

TEACHER = ("data=digits", "data.images_per_class=null", "model=digits_teacher", "steps=60")
TEACHER += ("schedule.warmup_steps=5", "validate_every=30", "optimizer.lr=0.003")
SETTINGS = (
    *QUICK,
    f"teacher.made_by.overrides={json.dumps(TEACHER)}",
    *("steps=60", "schedule.warmup_steps=5", "validate_every=30", "trainer.log_every_n_steps=5"),
    *("optimizer.lr=0.003", "checkpoint_every=30"),
)


def train(home: Path, *overrides: str, script: str = "train") -> tuple[int, str, str]:
    """Exit code, output and errors of a command with the settings of these tests."""
    return command_here(script, *SETTINGS, *overrides, cwd=home)


def trained(home: Path, name: str, *overrides: str) -> tuple[Run, str]:
    """A successful run and its output."""
    code, out, err = train(home, f"name={name}", *overrides)
    assert (code, err) == (0, "")
    return only_run(home, name), out


def same(one: Run, other: Run) -> bool:
    """The same weights and the same metrics, to the last byte."""
    return (one.student.read_bytes(), one.metrics.read_bytes()) == (
        other.student.read_bytes(),
        other.metrics.read_bytes(),
    )


def losses(run: Run) -> list[float]:
    rows = csv.DictReader(run.metrics.read_text().splitlines())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without a record, and the teacher that it made."""
    return trained(tmp_path_factory.mktemp("home"), "live", "targets=live")[0]


@pytest.fixture(scope="module")
def home(live: Run) -> Path:
    return live.directory.parents[2]


@pytest.fixture(scope="module")
def recorded(home: Path) -> Run:
    """A run that recorded all its targets."""
    run, output = trained(home, "recorded", "targets=record")
    assert "  targets: 0 of 60 steps are in logs/targets/" in output
    assert "; 0.144 MB (float16) are recorded\n" in output
    return run


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path) -> Path:
    """A home with the same teacher, and no record."""
    shutil.copytree(home / "logs" / "teachers", tmp_path / "logs" / "teachers")
    return tmp_path


def steps_record(home: Path) -> Path:
    """Of the steps of runs with seed 0, all of which see the same views."""
    for path in (home / "logs" / "targets").glob("*/about.json"):
        about = json.loads(path.read_text())
        if (about["kind"], about.get("seed")) == ("steps", 0):
            return path.parent
    raise AssertionError("there is none")


def test_replay_equals_the_recording_run(home: Path, recorded: Run) -> None:
    replayed, output = trained(home, "replayed", "targets=replay", "targets.verify=5")
    assert "60 of 60 steps are in logs/targets/" in output
    assert ": the teacher computes 5 of them again to verify them\n" in output
    assert same(replayed, recorded)
    assert replayed.directory.name == recorded.directory.name


def test_auto_replays_targets_recorded_by_auto(home: Path, recorded: Run) -> None:
    first, output = trained(home, "first", "targets=auto", "seed=1")
    assert "0 of 60 steps are in logs/targets/" in output
    again, output = trained(home, "again", "targets=auto", "seed=1")
    assert "60 of 60 steps are in logs/targets/" in output
    assert ": the teacher is not needed\n" in output
    assert same(first, again)
    assert losses(first) != losses(recorded)


def test_recorded_targets_equal_live_ones_within_rounding(live: Run, recorded: Run) -> None:
    assert losses(recorded) == pytest.approx(losses(live), rel=2e-3)
    assert losses(recorded) != losses(live)
    assert recorded.directory.name != live.directory.name


@pytest.mark.slow
def test_longer_run_reuses_a_shorter_record(home: Path, recorded: Run, elsewhere: Path) -> None:
    shutil.copytree(home / "logs" / "targets", elsewhere / "logs" / "targets")
    longer, output = trained(elsewhere, "longer", "targets=auto", "steps=90")
    assert "60 of 90 steps are in logs/targets/" in output
    assert "; 0.072 MB (float16) are recorded\n" in output
    shutil.rmtree(elsewhere / "logs" / "targets")
    anew, output = trained(elsewhere, "anew", "targets=record", "steps=90")
    assert "0 of 90 steps are in logs/targets/" in output
    assert same(longer, anew)


def test_record_is_replayed_in_micro_batches(home: Path, recorded: Run) -> None:
    pieces, output = trained(home, "pieces", "targets=replay", "compute.micro_batch=30")
    assert "60 of 60 steps are in logs/targets/" in output
    assert losses(pieces) == pytest.approx(losses(recorded), rel=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps=90", "60 of 90 steps are in logs/targets/"),
        ("seed=2", "the nearest record differs in seed (recorded: "),
        ("batch_size=50", "the nearest record differs in batch_size (recorded: 100, now: 50); "),
        (
            "recipe.mixing=false",
            "the nearest record differs in mixing (recorded: 1.0, now: None); ",
        ),
    ],
)
def test_replay_of_unrecorded_steps_is_refused_in_one_line(
    home: Path, recorded: Run, change: str, message: str
) -> None:
    before = {p: p.read_bytes() for p in (home / "logs" / "targets").rglob("*.*")}
    name = f"refused-{change.partition('=')[0]}"
    code, _, err = train(home, "targets=replay", f"name={name}", change)
    assert code == 1
    assert err.startswith("error: targets=replay: ")
    assert message in err
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in (home / "logs" / "targets").rglob("*.*")} == before
    refused = only_run(home, name)
    assert refused.result["status"] == "failed"
    assert not refused.student.exists()
    assert not refused.checkpoints.all()


def test_damaged_row_ends_a_replay_and_is_recomputed_by_auto(
    home: Path, elsewhere: Path, recorded: Run
) -> None:
    shutil.copytree(home / "logs" / "targets", elsewhere / "logs" / "targets")
    flip(steps_record(elsewhere) / "rows.bin", 47 * 100 * 20 + 3)
    where = steps_record(elsewhere).relative_to(elsewhere)
    code, _, err = train(elsewhere, "name=damaged", "targets=replay")
    message = (
        "1 damaged rows, the first is 4700; the same command computes them again "
        "(targets=auto in place of replay)"
    )
    assert (code, err) == (1, f"error: {where}: {message}\n")
    code, _, err = train(elsewhere, "name=damaged", "targets=replay")
    assert code == 1
    assert f"targets=replay: 59 of 60 steps are in {where}; targets=auto computes the others" in err
    healed, output = trained(elsewhere, "damaged", "targets=auto")
    assert f"59 of 60 steps are in {where}; " in output
    assert same(healed, recorded)
    healed_rows, rows = (folder / where / "rows.bin" for folder in (elsewhere, home))
    assert healed_rows.read_bytes() == rows.read_bytes()


@pytest.mark.slow
def test_run_killed_while_recording_resumes_exactly(elsewhere: Path, recorded: Run) -> None:
    settings = ("name=killed", "targets=record")
    fault = inject("SignalAt", step=37)
    killed = command("train", *SETTINGS, *settings, *fault, cwd=elsewhere)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, output = trained(elsewhere, "killed", "targets=record")
    assert "37 of 60 steps are in logs/targets/" in output
    assert "resuming from step 30 of 60" in output
    assert same(resumed, recorded)
    assert (steps_record(elsewhere) / "rows.bin").stat().st_size == 60 * 100 * 20


@pytest.mark.slow
def test_one_rank_replays_the_record_of_two(elsewhere: Path, recorded: Run) -> None:
    two = ("name=two", "targets=record", "trainer.devices=2", "trainer.strategy=ddp")
    done = command("train", *SETTINGS, *two, cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("0 of 60 steps are in logs/targets/") == 1  # one rank reports it
    replayed, output = trained(elsewhere, "one", "targets=replay")
    assert "60 of 60 steps are in logs/targets/" in output
    weights = [
        safetensors.torch.load_file(run.student)
        for run in (replayed, only_run(elsewhere, "two"), recorded)
    ]
    for name, weight in weights[0].items():  # but for the order in which gradients are summed
        for other in weights[1:]:
            torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-4)
