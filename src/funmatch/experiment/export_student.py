"""Students for others: written, read again, compared with the student, timed, and described."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from funmatch.config import schema, validation
from funmatch.config.errors import UserError
from funmatch.data.sources import Source, Splits
from funmatch.experiment import build, fitting, load_run, teachers
from funmatch.export import card, inference_model, int8, onnx, torch_export
from funmatch.export import timm_safetensors as safetensors
from funmatch.models import timm_models
from funmatch.models.exported import ExportedModel
from funmatch.models.network import Network
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, hardware
from funmatch.tasks.base import Task
from funmatch.tasks.description import TaskDescription
from funmatch.views.evaluation_views import EvaluationViews, evenly_spaced

_BATCH = 32
_LIMIT = 1e-3  # of the largest logit: by so much a file may differ that is no approximation
_LEAST = 3  # turns
_FACTS = "verification.json"
_FORMATS = {
    "safetensors": safetensors,
    "onnx": onnx,
    "torch_export": torch_export,
    "int8": int8,
}
_Contender = tuple[Callable[[int], object], int]  # passes so many images through; bytes


def export(cfg: DictConfig) -> None:
    """Writes `RUN/export/FORMAT`, if what is there says what the student says."""
    validation.check_export(cfg, _FORMATS)
    run, there = load_run.open_run(cfg.run, cfg.trainer.accelerator, cfg.get("data"))
    there.compute.threads = cfg.compute.threads
    there.trainer.precision = "32-true"  # to compare what is alike
    fitting.prepare(there)
    data = build.evaluation(there)
    student = build.left(there, run).eval()
    out = Path(cfg.out) if cfg.out is not None else run.directory / "export" / cfg.format
    _refuse_to_replace(out, cfg.format)
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        facts = _written(cfg, there, run, student, data, draft)
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _report(facts, out, TaskDescription.of(run.result))


def _refuse_to_replace(out: Path, kind: str) -> None:
    """Keeps what is no earlier export of the same format from being removed."""
    try:
        held = str(json.loads((out / _FACTS).read_text())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        held = "other files"
    if out.exists() and held != kind and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: holds {held}; choose another folder, which is made")


def _written(
    cfg: DictConfig, there: DictConfig, run: Run, student: Network, data: Splits, folder: Path
) -> dict[str, Any]:
    """Writes the file, reads it again, compares it, and describes it; what was found."""
    kind = _FORMATS[cfg.format]
    classes = list(data.train.classes or map(str, range(there.data.classes)))
    calibration = _batches(data.train, student, cfg.calibration)
    try:
        kind.write(student, folder, inference_model.metadata(student, classes), calibration)
        size = sum(path.stat().st_size for path in folder.iterdir())
        found: nn.Module
        if kind is safetensors:
            found = safetensors.load(folder, build.blank(schema.student(there)))
        else:
            found = ExportedModel(folder / kind.FILE)
    except ImportError as error:
        remedy = "pip install 'funmatch[export]'"
        raise UserError(f"format={cfg.format}: {error.name} is not there; {remedy}") from error
    place = build.device(there)
    if isinstance(found, ExportedModel) and not found.takes(place):
        place = torch.device("cpu")  # for all, lest a file be compared with another device
    task = build.task(there)
    compared = _compared(cfg, data.part(cfg.split), student.to(place), found.to(place), task)
    contenders = {
        "this file": _contender(found, student, size, place),
        "student": _contender(
            inference_model.InferenceModel(student).to(place),
            student,
            run.student.stat().st_size,
            place,
        ),
    }
    if "teacher" in there and teachers.is_available(there):
        with suppress(ValueError, OSError, ImportError):  # what it was made of may have gone
            contenders["teacher"] = _teacher(there, place)
    facts = {
        "format": cfg.format,
        "file": kind.FILE,
        **compared,
        "speed": _speed(contenders, cfg.seconds),
        "device": torch.cuda.get_device_name()
        if place.type == "cuda"
        else hardware.processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    atomic_files.write(folder / _FACTS, json.dumps(facts, indent=2) + "\n")
    atomic_files.write(folder / "model.json", run.model.read_bytes())
    atomic_files.write(
        folder / "README.md", card.card(_facts(cfg, there, run, student, classes, facts))
    )
    return facts


def _batches(source: Source, student: Network, most: int) -> Iterator[Tensor]:
    """Evaluation views of images of a source, evenly from all of it: float32 in [0, 255]."""
    index = evenly_spaced(source, most)
    views = EvaluationViews(source, student.resize, student.side)
    for start in range(0, len(index), _BATCH):
        yield torch.stack(list(views.images(index[start : start + _BATCH]))).float()


@torch.no_grad()
def _compared(
    cfg: DictConfig, source: Source, student: Network, found: nn.Module, task: Task
) -> dict[str, Any]:
    place = student.scale.device
    pairs = []
    for pixels in _batches(source, student, cfg.images):
        given = pixels.to(place)
        pairs.append((student(given).prediction.cpu(), found(given).cpu()))
    own, theirs = (torch.cat(list(predicted)) for predicted in zip(*pairs, strict=True))
    difference, largest = float((own - theirs).abs().max()), float(own.abs().max())
    if cfg.format != "int8" and not difference <= _LIMIT * max(1.0, largest):
        raise UserError(
            f"format={cfg.format}: the file differs from the student by {difference:.2g} in its "
            f"predictions, of at most {largest:.2g}; it is not kept"
        )
    index = evenly_spaced(source, cfg.images)
    views = EvaluationViews(source, student.resize, student.side, task.truth_in_view)
    metrics, named = task.metrics(), task.description
    metrics.update(theirs, own, views.labels(index))  # the file against the student, as its teacher
    figures = {name: float(value) for name, value in metrics.compute().items()}
    score = named.score.metric
    return {
        "split": cfg.split,
        "images": len(own),
        "max_logit_difference": difference,
        "largest_logit": largest,
        named.agreement.metric: figures[named.agreement.metric],
        score: figures.get(score.replace("student_", "teacher_", 1)),
        score.replace("student_", "exported_", 1): figures.get(score),
    }


def _contender(net: nn.Module, student: Network, size: int, place: torch.device) -> _Contender:
    pixels = torch.rand(_BATCH, len(student.mean), student.side, student.side, device=place) * 255

    def run(rows: int) -> None:
        with torch.no_grad():
            net(pixels[:rows]).cpu()  # waits for it

    return run, size


def _teacher(there: DictConfig, place: torch.device) -> _Contender:
    teacher = teachers.load_teacher(there)
    views = {
        name: torch.rand(_BATCH, len(member.mean), member.side, member.side, device=place) * 255
        for name, member in teacher.members.items()
    }

    def run(rows: int) -> None:
        teacher(lambda name: views[name][:rows]).prediction.cpu()

    return run, sum(member.size for member in teacher.members.values())


def _speed(contenders: dict[str, _Contender], seconds: float) -> dict[str, dict[str, float]]:
    """Latency of one image and throughput of many, of networks that take turns."""
    times: dict[str, dict[int, list[float]]] = {name: {1: [], _BATCH: []} for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    for name, (run, _) in contenders.items():
        for rows in times[name]:
            run(rows)  # what is done once
    for turn in range(1000):
        left = [name for name in contenders if turn < _LEAST or spent[name] < seconds]
        for name in left:
            for rows, found in times[name].items():
                began = time.perf_counter()
                contenders[name][0](rows)
                found.append(time.perf_counter() - began)
                spent[name] += found[-1]
        if not left:
            break
    return {
        name: {
            "latency_ms": 1000 * median(found[1]),
            "images_per_second": _BATCH / median(found[_BATCH]),
            "bytes": contenders[name][1],
        }
        for name, found in times.items()
    }


def _facts(
    cfg: DictConfig,
    there: DictConfig,
    run: Run,
    student: Network,
    classes: list[str],
    verification: dict[str, Any],
) -> card.Facts:
    result = run.result
    teacher = result.get("teacher_fingerprint")
    made = {
        "run": f"`{run.directory.name}`",
        "recipe": f"`{there.recipe.name}`",
        "data": f"{there.data.name}: {schema.train_size(there):,} training images",
        "length": f"{result['steps']:,} steps of {there.batch_size} images",
        **({"teacher": f"{_called(there.teacher)}, fingerprint `{teacher}`"} if teacher else {}),
        "student": f"{_called(schema.student(there))}, "
        f"{sum(p.numel() for p in student.net.parameters()):,} weights",
    }
    task = TaskDescription.of(result)
    measured = {name: result[name] for name in task.columns if result.get(name) is not None}
    return card.Facts(
        title=f"{_called(schema.student(there))} for {there.data.name}",
        task=task,
        kind=cfg.format,
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
        licenses={
            "student": cfg.license,
            "teacher": cfg.teacher_license,
            "data": cfg.data_license,
        },
        timm=cfg.format == "safetensors" and timm_models.timm_equivalent(student.net) is not None,
    )


def _called(part: DictConfig) -> str:
    """A network by its name, or by what makes it."""
    if part.get("members"):
        return " + ".join(_called(member) for member in part.members.values())
    name = part.get("name") or part.get("path") or part.net["_target_"]
    return Path(str(name)).name  # where it lies is nobody's business


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
