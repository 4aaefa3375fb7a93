"""Model card of an exported student: training, metrics, verification, speed and usage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from funmatch.tasks.description import TaskDescription

_UNSTATED = "not stated"
_PREPROCESSING_CODE = """\
image = Image.open("image.jpg").convert("{mode}")
scale = {resize} / min(image.size)
image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
left, top = ((side - {side}) // 2 for side in image.size)
pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})), dtype=np.float32)
pixels = pixels.reshape({side}, {side}, {channels}).transpose(2, 0, 1)[None]
"""
_INFERENCE_CODE = {
    "onnx": """\
session = onnxruntime.InferenceSession("{file}")
(logits,) = session.run(None, {{"pixels": pixels}})
""",
    "torch_export": """\
program = torch.export.load("{file}").module()
logits = program(torch.from_numpy(pixels)).detach().numpy()
""",
    "safetensors": """\
model = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in ({mean}, {std}))
with torch.no_grad():
    logits = model(torch.from_numpy((pixels / 255 - mean) / std)).numpy()
""",
}
_IMPORTS = {"onnx": "onnxruntime", "torch_export": "torch", "safetensors": "timm\nimport torch"}


@dataclass(frozen=True)
class Facts:
    """Content of a model card.

    Attributes:
        title: title of the card.
        task: the task of the model, which names its metrics.
        kind: format of the file: safetensors, onnx, torch_export or int8.
        file: name of the file.
        made: how the student was trained, as rows of a table.
        measured: metrics of the run, by name.
        verification: comparison of the file with the student, as in verification.json.
        classes: class names; empty for a task without classes.
        input: input specification: mean, std, side and resize (pixels).
        licenses: licences of student, teacher and data; None if not stated.
        timm: True if `timm.create_model` can build the network.
    """

    title: str
    task: TaskDescription
    kind: str
    file: str
    made: Mapping[str, str]
    measured: Mapping[str, float]
    verification: Mapping[str, Any]
    classes: Sequence[str]
    input: Mapping[str, Any]
    licenses: Mapping[str, str | None]
    timm: bool


def card(facts: Facts) -> str:
    """The model card in Markdown, with the front matter of the Hugging Face hub."""
    method = "distilled" if "teacher" in facts.made else "trained"
    parts = (
        _front(facts),
        f"# {facts.title}\n",
        f"An {facts.task.model} that was {method} with funmatch.\n",
        _table("Training", "", "", facts.made),
        _table("Metrics of the run", "", "", _formatted(facts.measured)),
        _table(
            "Verification",
            "compared with the student",
            "",
            _compared(facts.verification, facts.task),
        ),
        _speed(facts.verification),
        _use(facts),
        _table(
            "Licences", "of", "", {name: text or _UNSTATED for name, text in facts.licenses.items()}
        ),
        f"## Classes\n\n{', '.join(facts.classes)}\n" if facts.classes else "",
    )
    return "\n".join(parts)


def _front(facts: Facts) -> str:
    lines = ["---"]
    if facts.task.pipeline_tag is not None:
        lines.append(f"pipeline_tag: {facts.task.pipeline_tag}")
    if own := facts.licenses.get("student"):
        lines.append(f"license: {own}")
    if facts.timm:
        lines.append("library_name: timm")
    if "teacher" in facts.made:
        lines += ["tags:", "- knowledge-distillation", "- function-matching"]
    return "\n".join([*lines, "---", ""])


def _table(title: str, left: str, right: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([f"## {title}\n", f"| {left} | {right} |", "| --- | --- |", *lines, ""])


def _formatted(metrics: Mapping[str, float]) -> dict[str, str]:
    return {f"`{name}`": f"{value:.4f}" for name, value in metrics.items()}


def _compared(verification: Mapping[str, Any], task: TaskDescription) -> dict[str, str]:
    agreement, score = task.agreement, task.score
    rows = {
        "images": f"{verification['images']} of {verification['split']}",
        "largest difference of a prediction": f"{verification['max_logit_difference']:.2g}",
        "largest prediction": f"{verification['largest_logit']:.3g}",
        agreement.title.replace(
            "the teacher", "the student"
        ): f"{verification[agreement.metric]:.4f}",
    }
    if (own := verification[score.metric]) is not None:
        exported = verification[score.metric.replace("student_", "exported_", 1)]
        rows[f"{score.title}, student"] = f"{own:.4f}"
        rows[f"{score.title}, this file"] = f"{exported:.4f}"
    return rows


def _speed(verification: Mapping[str, Any]) -> str:
    lines = [
        "## Speed and size\n",
        f"On {verification['device']}, {verification['threads']} threads, float32 except for int8; "
        "median of interleaved timings.\n",
        "| | ms for one image | images / s, batches of 32 | MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in verification["speed"].items():
        lines.append(
            f"| {name} | {row['latency_ms']:.2f} | {row['images_per_second']:,.0f} "
            f"| {row['bytes'] / 1e6:,.1f} |"
        )
    return "\n".join([*lines, ""])


def _use(facts: Facts) -> str:
    kind = {"int8": "onnx"}.get(facts.kind, facts.kind)
    if kind == "safetensors" and not facts.timm:
        return (
            "## Use\n\ntimm cannot build this network. Load it with `teacher=saved "
            "teacher.name=RUN` of funmatch, or export it with `format=onnx`.\n"
        )
    channels = len(facts.input["mean"])
    values = {**facts.input, "channels": channels, "mode": "RGB" if channels == 3 else "L"}
    values["file"] = facts.file
    code = f"import numpy as np\nimport {_IMPORTS[kind]}\nfrom PIL import Image\n\n"
    code += (_PREPROCESSING_CODE + _INFERENCE_CODE[kind]).format(**values)
    code += "print(logits.argmax(1))\n" if facts.classes else "print(logits)\n"
    return (
        f"## Use\n\nResize the shorter side of an image to {values['resize']} pixels and take the "
        f"centre crop of {values['side']} x {values['side']} pixels.\n\n```python\n{code}```\n"
    )
