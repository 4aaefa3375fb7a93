"""The card of an exported student: what it is, how it was made, how good it is, how to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from funmatch.tasks.description import TaskDescription

_UNSTATED = "not stated"
_IMAGE = """\
image = Image.open("image.jpg").convert("{mode}")
scale = {resize} / min(image.size)
image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
left, top = ((side - {side}) // 2 for side in image.size)
pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})), dtype=np.float32)
pixels = pixels.reshape({side}, {side}, {channels}).transpose(2, 0, 1)[None]
"""
_RUN = {
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
_NEEDS = {"onnx": "onnxruntime", "torch_export": "torch", "safetensors": "timm\nimport torch"}


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        title: of the model.
        task: names its figures.
        kind: safetensors, onnx, torch_export or int8.
        file: its name.
        made: how it was made, as lines of a table.
        measured: figures of the run, by name.
        verification: how the file compares with the student.
        classes: names of the classes.
        input: mean, std, side, resize.
        licenses: of student, teacher and data; None where nobody has said it.
        timm: whether `timm.create_model` makes it.
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
    """The card, as Markdown with the front matter of the Hugging Face hub."""
    way = "distilled" if "teacher" in facts.made else "trained"
    parts = (
        _front(facts),
        f"# {facts.title}\n",
        f"An {facts.task.model} that was {way} with funmatch.\n",
        _table("How it was made", "", "", facts.made),
        _table("Figures of the run", "", "", _shown(facts.measured)),
        _table(
            "The file", "compared with the student", "", _compared(facts.verification, facts.task)
        ),
        _speed(facts.verification),
        _use(facts),
        _table(
            "Licences", "of", "", {name: said or _UNSTATED for name, said in facts.licenses.items()}
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


def _shown(figures: Mapping[str, float]) -> dict[str, str]:
    return {f"`{name}`": f"{value:.4f}" for name, value in figures.items()}


def _compared(found: Mapping[str, Any], task: TaskDescription) -> dict[str, str]:
    agreement, score = task.agreement, task.score
    rows = {
        "images": f"{found['images']} of {found['split']}",
        "largest difference of a prediction": f"{found['max_logit_difference']:.2g}",
        "largest prediction": f"{found['largest_logit']:.3g}",
        agreement.title.replace("the teacher", "the student"): f"{found[agreement.metric]:.4f}",
    }
    if (own := found[score.metric]) is not None:
        exported = found[score.metric.replace("student_", "exported_", 1)]
        rows[f"{score.title}, student"] = f"{own:.4f}"
        rows[f"{score.title}, this file"] = f"{exported:.4f}"
    return rows


def _speed(found: Mapping[str, Any]) -> str:
    lines = [
        "## Speed and size\n",
        f"On {found['device']}, {found['threads']} threads, float32 but for int8; median of "
        "turns that the networks took one after the other.\n",
        "| | ms for one image | images / s, 32 at a time | MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in found["speed"].items():
        lines.append(
            f"| {name} | {row['latency_ms']:.2f} | {row['images_per_second']:,.0f} "
            f"| {row['bytes'] / 1e6:,.1f} |"
        )
    return "\n".join([*lines, ""])


def _use(facts: Facts) -> str:
    kind = {"int8": "onnx"}.get(facts.kind, facts.kind)
    if kind == "safetensors" and not facts.timm:
        return (
            "## Use\n\ntimm has no name for this network: `teacher=saved teacher.name=RUN` of "
            "funmatch, or `format=onnx`, makes it.\n"
        )
    channels = len(facts.input["mean"])
    values = {**facts.input, "channels": channels, "mode": "RGB" if channels == 3 else "L"}
    values["file"] = facts.file
    code = f"import numpy as np\nimport {_NEEDS[kind]}\nfrom PIL import Image\n\n"
    code += (_IMAGE + _RUN[kind]).format(**values) + "print(logits.argmax(1))\n"
    return (
        f"## Use\n\nThe shorter side of an image becomes {values['resize']} pixels; its centre of "
        f"{values['side']} x {values['side']} pixels is looked at.\n\n```python\n{code}```\n"
    )
