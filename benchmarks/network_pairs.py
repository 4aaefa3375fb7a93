"""Pairs of networks with data, as overrides of `src/train.py`."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image

ENDLESS = 10**9
_CLASSES = 16


def digits(root: Path, folder: Path) -> list[str]:
    """Steps of a few milliseconds."""
    return ["data=digits"]


def photographs(root: Path, folder: Path) -> list[str]:
    """Small batches at 128 px; the teacher is about 80 % of a step."""
    teacher = _teacher("mobilenetv3_large_100", root, folder)
    return [*_data(root, 8), *teacher, "student=timm", "student.name=mobilenetv3_small_050"]


def large(root: Path, folder: Path) -> list[str]:
    """Steps of more than 50 ms."""
    return [*_data(root, 8), *_teacher("resnetv2_50x1_bit", root, folder), "student=bit_tiny"]


def heavy(root: Path, folder: Path) -> list[str]:
    """The teacher is more than 75 % of a step, as in the paper."""
    return [*large(root, folder), "student.side=64", "student.resize=64"]


def paper(root: Path, folder: Path, side: int, batch_size: int) -> list[str]:
    """The paper's pair, with the fastest settings for one GPU."""
    return [
        *_data(root, batch_size, side),
        *_teacher("resnetv2_152x2_bit", root, folder, side),
        "student=bit_r50",
        "trainer.precision=bf16-mixed",
        "compute.compile=both",
        "data.cache=device",
    ]


def endless(overrides: Iterable[str], name: str) -> list[str]:
    """An endless run that writes no checkpoints."""
    return [
        *overrides,
        f"name={name}",
        "resume=never",
        "logger=none",
        f"steps={ENDLESS}",
        "schedule.warmup_steps=10",
        f"validate_every={ENDLESS}",
        f"checkpoint_every={ENDLESS}",
    ]


def random_photographs(folder: Path, count: int = 256) -> Path:
    """A folder of random photographs, 160 px at the shorter side, in classes."""
    root = folder / "photographs"
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / f"{number % _CLASSES:02d}" / f"{number:04d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((208, 160), Image.Resampling.BICUBIC).save(path)
    return root


def _data(root: Path, batch_size: int, side: int = 128) -> list[str]:
    return ["data=folder", f"data.root={root}", f"data.side={side}", f"batch_size={batch_size}"]


def _teacher(name: str, root: Path, folder: Path, side: int = 128) -> list[str]:
    """A network with random weights, which is as fast as a trained one."""
    classes = sum(path.is_dir() for path in root.iterdir())
    file = folder / f"{name}.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=classes)
        state = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
        safetensors.torch.save_file(state, file)
    return [
        "teacher=timm",
        f"teacher.name={name}",
        f"teacher.weights={file.resolve()}",
        "teacher.head=keep",
        f"teacher.side={side}",
        f"teacher.resize={side}",
    ]


# By name: function that gives the overrides, and target speed relative to the bare loop.
PAIRS: dict[str, tuple[Callable[[Path, Path], list[str]], float]] = {
    "digits": (digits, 0.90),
    "mobilenet": (photographs, 0.95),
    "bit": (large, 0.98),
}
