"""Descriptions of the parts of an experiment: plain values, from which the parts are built later.

Nothing here imports torch: what an experiment is, is known before anything is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from funmatch.runtime import allowlist


@dataclass(frozen=True)
class Factory:
    """A part that is built when it is needed.

    Attributes:
        key: where it stands in the configuration.
        node: its `_target_` and arguments, as Hydra writes them, resolved.
    """

    key: str
    node: Mapping[str, Any]

    def __call__(self, **arguments: Any) -> Any:
        """Builds the part, with further or other arguments; see `allowlist.instantiate`."""
        return allowlist.instantiate(dict(self.node), self.key, **arguments)

    def having(self, **arguments: Any) -> "Factory":
        """The same with other values of arguments that it has already."""
        known = {key: value for key, value in arguments.items() if key in self.node}
        return replace(self, node={**self.node, **known})


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        key: where it stands in the configuration, as in "data" or "transfer.pets".
        name: as in `data=name`.
        classes: number of classes, or of values that a network predicts.
        train_size: number of training examples that steps are computed from.
        splits: builds the `Splits`.
        task: builds the `Task`; None for classification.
        corrupt_images: what to do with images that cannot be decoded.
        cache: where decoded images are cached: none, disk, device or auto.
        decode: where images are decoded: host or device.
        min_area: smallest share of an image in an aggressive crop.
        mild: sides in pixels of a mild crop: resized to the first, cut to the second.
        flip: whether views are mirrored at random.
    """

    key: str
    name: str
    classes: int
    train_size: int
    splits: Factory
    task: Factory | None
    corrupt_images: str
    cache: str
    decode: str
    min_area: float
    mild: tuple[int, int]
    flip: bool

    def without_download(self) -> "Data":
        """The same data, of which nothing is fetched."""
        return replace(self, splits=self.splits.having(download=False))


@dataclass(frozen=True)
class MadeBy:
    """The run that makes a teacher: a command with overrides."""

    command: Literal["train", "finetune"]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class NetworkSpec:
    """A network: the architecture, what its input is like, and where its weights are from.

    Attributes:
        key: where it stands in the configuration, as in "student" or "teacher.members.a".
        net: builds the module.
        mean: per channel, of pixels in [0, 1]; None: as the architecture or its weights define it.
        std: per channel, of pixels in [0, 1]; None: as for `mean`.
        side: side of its input, pixels; None: as for `mean`.
        resize: shorter side of an image before its centre is cut out, pixels; None: as for `mean`.
        classes: number of classes, or of values that it predicts.
        weights: see `load_weights.load`; None for fresh ones, or those of `made_by`.
        head: "keep" or "zero", see `load_weights.load`.
        check_images: images on which the network is tried before training; None: not at all.
        has_output_key: whether `KEY.output` states what the network gives: logits or probabilities.
        made_by: the run that makes it, if it is a teacher.
        settings: all its keys as they are written to model.json.
    """

    key: str
    net: Factory
    mean: Sequence[float] | None
    std: Sequence[float] | None
    side: int | None
    resize: int | None
    classes: int
    weights: str | None
    head: str
    check_images: int | None
    has_output_key: bool
    made_by: MadeBy | None
    settings: Mapping[str, Any]

    @property
    def is_teacher(self) -> bool:
        return self.key.partition(".")[0] == "teacher"

    @property
    def label(self) -> str:
        """Its name, or that of the file or function that makes it, without folders."""
        name = self.settings.get("name") or self.settings.get("path") or self.net.node["_target_"]
        return Path(str(name)).name


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher, or several that are combined.

    Attributes:
        members: by name, sorted; a single teacher is called "teacher".
        combine: how predictions of several members are combined; None for a single teacher.
        shares: weights of the members by name; None: equal.
    """

    members: Mapping[str, NetworkSpec]
    combine: str | None = None
    shares: Mapping[str, float] | None = None

    @property
    def label(self) -> str:
        return " + ".join(member.label for member in self.members.values())


@dataclass(frozen=True)
class Compute:
    """How a process computes a step; no part of a run's identity.

    Attributes:
        workers: processes that render views; 0: the main process.
        threads: CPU threads of torch; None: torch decides.
        micro_batch: images that pass through the networks at a time; None: all.
        channels_last: memory layout of the activations; "auto": for networks without GroupNorm.
        compile: which networks torch.compile compiles: none, teacher, student or both.
        fused: update all weights in one kernel; "auto": on a GPU.
    """

    workers: int
    threads: int | None
    micro_batch: int | None
    channels_last: bool | Literal["auto"]
    compile: str
    fused: bool | Literal["auto"]


@dataclass(frozen=True)
class Targets:
    """Where the teacher's predictions on training batches come from.

    Attributes:
        mode: live, auto, record or replay.
        form: storage format of recorded predictions: float32, float16 or top<k>.
        verify: recorded steps that are computed again and compared.
    """

    mode: str
    form: str
    verify: int


@dataclass(frozen=True)
class Paths:
    """Where files are: runs, data that is downloaded, decoded images."""

    logs: Path
    data: Path
    cache: Path
