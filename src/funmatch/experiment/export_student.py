"""Export of a student: written, read again, compared with the student, timed, and described."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from funmatch.config.errors import UserError
from funmatch.data.sources import Source, Splits
from funmatch.experiment import datasets, networks, teachers
from funmatch.experiment.device import configure_torch, device
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.interleaved_timing import TimedNetwork, time_in_turns
from funmatch.experiment.train_here import train_here
from funmatch.export import card, inference_model, timm_safetensors
from funmatch.export.formats import FORMATS
from funmatch.models import timm_models
from funmatch.models.exported import ExportedModel
from funmatch.models.network import Network
from funmatch.runtime import atomic_files, hardware
from funmatch.tasks.base import Task
from funmatch.tasks.description import TaskDescription
from funmatch.views.evaluation_views import EvaluationViews, evenly_spaced

_BATCH_IMAGES = 32
_MAX_RELATIVE_DIFFERENCE = 1e-3  # of predictions, relative to the largest; int8 may differ by more
_VERIFICATION_FILE = "verification.json"


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and how it is verified.

    Attributes:
        format: a name in `export.formats.FORMATS`.
        directory: where it is written.
        split: of the data, on which the file is compared with the student.
        images: of that split, at most.
        calibration: training images by which int8 scales activations, at most.
        seconds: of timing for each network.
        licenses: of student, teacher and data, as SPDX names for the card; None: not stated.
    """

    format: str
    directory: Path
    split: str
    images: int
    calibration: int
    seconds: float
    licenses: Mapping[str, str | None]


def export(experiment: Experiment, options: ExportOptions) -> None:
    """Writes the student of a run as a file, if its predictions are those of the student."""
    configure_torch(experiment)
    data = datasets.load_evaluation_splits(experiment)
    student = networks.load_student(experiment).eval()
    out = options.directory
    _refuse_to_replace(out, options.format)
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        facts = _write_verified(experiment, options, student, data, draft)
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _report(facts, out, TaskDescription.of(experiment.run.result))


def _refuse_to_replace(out: Path, kind: str) -> None:
    """Keeps what is no earlier export of the same format from being removed."""
    try:
        held = str(json.loads((out / _VERIFICATION_FILE).read_text())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        held = "other files"
    if out.exists() and held != kind and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: holds {held}; choose another folder, which is made")


def _write_verified(
    experiment: Experiment, options: ExportOptions, student: Network, data: Splits, folder: Path
) -> dict[str, Any]:
    """Writes the file, reads it again, compares it and describes it; returns the verification."""
    kind, run = FORMATS[options.format], experiment.run
    task, source = datasets.build_task(experiment.data), data.part(options.split)
    names = data.train.classes or map(str, range(experiment.data.classes))
    classes = list(names) if task.is_distribution else []
    calibration = _batches(data.train, student, options.calibration)
    try:
        kind.write(student, folder, inference_model.metadata(student, classes), calibration)
        size = sum(path.stat().st_size for path in folder.iterdir())
        exported: nn.Module
        if kind is timm_safetensors:
            exported = timm_safetensors.load(folder, networks.build_network(experiment.student))
        else:
            exported = ExportedModel(folder / kind.FILE)
    except ImportError as error:
        remedy = "pip install 'funmatch[export]'"
        raise UserError(
            f"format={options.format}: {error.name} is not installed; {remedy}"
        ) from error
    current = device(experiment)
    if isinstance(exported, ExportedModel) and not exported.takes(current):
        current = torch.device("cpu")  # for all, lest a file be compared with another device
    compared = _compare(options, source, student.to(current), exported.to(current), task)
    inference = inference_model.InferenceModel(student).to(current)
    views = task.example(student, _BATCH_IMAGES).to(current)
    timed = {
        "this file": _timed(exported, views, size),
        "student": _timed(inference, views, run.student.stat().st_size),
    }
    if experiment.teacher is not None and teachers.is_available(experiment):
        with suppress(ValueError, OSError, ImportError):  # what it was made of may have gone
            timed["teacher"] = _timed_teacher(experiment, task, current)
    facts = {
        "format": options.format,
        "file": kind.FILE,
        **compared,
        "speed": time_in_turns(timed, rows=_BATCH_IMAGES, seconds=options.seconds),
        "device": torch.cuda.get_device_name()
        if current.type == "cuda"
        else hardware.processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    atomic_files.write(folder / _VERIFICATION_FILE, json.dumps(facts, indent=2) + "\n")
    atomic_files.write(folder / "model.json", run.model.read_bytes())
    atomic_files.write(
        folder / "README.md", card.card(_card_facts(experiment, options, student, classes, facts))
    )
    return facts


def _batches(source: Source, student: Network, most: int) -> Iterator[Tensor]:
    """Evaluation views of images of a source, evenly from all of it: float32 in [0, 255]."""
    index = evenly_spaced(source, most)
    views = EvaluationViews(source, student.resize, student.side)
    for start in range(0, len(index), _BATCH_IMAGES):
        yield torch.stack(list(views.images(index[start : start + _BATCH_IMAGES]))).float()


@torch.no_grad()
def _compare(
    options: ExportOptions, source: Source, student: Network, exported: nn.Module, task: Task
) -> dict[str, Any]:
    """How the predictions of the file differ from those of the student."""
    pairs = []
    for pixels in _batches(source, student, options.images):
        inputs = pixels.to(student.scale.device)
        pairs.append((student(inputs).prediction.cpu(), exported(inputs).cpu()))
    own, theirs = (torch.cat(list(predicted)) for predicted in zip(*pairs, strict=True))
    difference, largest = float((own - theirs).abs().max()), float(own.abs().max())
    if options.format != "int8" and not difference <= _MAX_RELATIVE_DIFFERENCE * max(1.0, largest):
        raise UserError(
            f"format={options.format}: the file differs from the student by {difference:.2g} in "
            f"its predictions, of at most {largest:.2g}; it is removed"
        )
    index = evenly_spaced(source, options.images)
    views = EvaluationViews(source, student.resize, student.side, task.truth_in_view)
    metrics, named = task.metrics(), task.description
    metrics.update(theirs, own, views.labels(index))  # the file against the student, as its teacher
    figures = {name: float(value) for name, value in metrics.compute().items()}
    score = named.score.metric
    return {
        "split": options.split,
        "images": len(own),
        "max_logit_difference": difference,
        "largest_logit": largest,
        named.agreement.metric: figures[named.agreement.metric],
        score: figures.get(score.replace("student_", "teacher_", 1)),
        score.replace("student_", "exported_", 1): figures.get(score),
    }


def _timed(net: nn.Module, views: Tensor, size: int) -> TimedNetwork:

    def run(rows: int) -> None:
        with torch.no_grad():
            net(views[:rows]).cpu()  # waits for it

    return TimedNetwork(run, size)


def _timed_teacher(experiment: Experiment, task: Task, device: torch.device) -> TimedNetwork:
    teacher = teachers.load_teacher(experiment, task, train_here)
    views = {
        name: task.example(member, _BATCH_IMAGES).to(device)
        for name, member in teacher.members.items()
    }

    def run(rows: int) -> None:
        teacher(lambda name: views[name][:rows]).prediction.cpu()

    return TimedNetwork(run, sum(member.size for member in teacher.members.values()))


def _card_facts(
    experiment: Experiment,
    options: ExportOptions,
    student: Network,
    classes: list[str],
    verification: dict[str, Any],
) -> card.Facts:
    run, spec, data = experiment.run, experiment.student, experiment.data
    result = run.result
    fingerprint = result.get("teacher_fingerprint")
    teacher = experiment.teacher if fingerprint else None
    made = {
        "run": f"`{run.directory.name}`",
        "recipe": f"`{experiment.recipe_name}`",
        "data": f"{data.name}: {experiment.train_size:,} training images",
        "length": f"{result['steps']:,} steps of {experiment.batch_size} images",
        **({"teacher": f"{teacher.label}, fingerprint `{fingerprint}`"} if teacher else {}),
        "student": f"{spec.label}, {sum(p.numel() for p in student.net.parameters()):,} weights",
    }
    task = TaskDescription.of(result)
    measured = {name: result[name] for name in task.columns if result.get(name) is not None}
    return card.Facts(
        title=f"{spec.label} for {data.name}",
        task=task,
        kind=options.format,
        file=verification["file"],
        made=made,
        measured=measured,
        verification=verification,
        classes=classes,
        input={
            "mean": list(student.mean),
            "std": list(student.std),
            "side": student.side,
            "resize": student.resize,
        },
        licenses=dict(options.licenses),
        timm=options.format == "safetensors"
        and timm_models.timm_equivalent(student.net) is not None,
    )


def _report(facts: dict[str, Any], out: Path, task: TaskDescription) -> None:
    kind, largest = facts["format"], facts["largest_logit"]
    agreement, score = task.agreement.metric, task.score
    print(
        f"{kind}: {facts['images']} images of {facts['split']}: predictions differ by at most "
        f"{facts['max_logit_difference']:.2g} (of {largest:.3g}), {agreement} "
        f"{facts[agreement]:.4f}"
    )
    if (own := facts[score.metric]) is not None:
        exported = facts[score.metric.replace("student_", "exported_", 1)]
        print(f"  {score.title} {exported:.4f}, of the student {own:.4f}")
    for name, row in facts["speed"].items():
        print(
            f"  {name:10} {row['latency_ms']:9.2f} ms an image {row['images_per_second']:10,.1f} "
            f"images/s {row['bytes'] / 1e6:9,.2f} MB"
        )
    print(f"{out}/{facts['file']}, README.md, verification.json")
