"""torchdistill 1.1.5, used as in its own examples.

Its distillation box is built from a configuration like its samples: `KDLoss` on the outputs of both
networks, its data loader over a torchvision-style data set, its optimiser, clipping and schedule.
The loop is that of `examples/torchvision/image_classification.py`, with the box's processes and its
`MetricLogger`, without the validation after each epoch and the check for NaN. Networks, images and
schedule are those of funmatch. Differences from funmatch:

- It computes less: no weight decay, and no mixing, which it lacks for distillation; with
  `recipe=consistent` funmatch does not mix either.
- It reads the loss back at every step, and restarts its log and its data loader with every epoch.
- Images are cropped, mirrored and normalised one by one, on the host, by transforms that draw from
  a global generator. Resizing is antialiased.
- Its examples train in float32, as `trainer.precision=32-true` does; for another precision its
  forward process runs under `torch.autocast`.

Its samples also use the last, smaller batch of an epoch and start new workers for each epoch.

    STEP_SERVER=... python benchmarks/torchdistill_kd.py recipe=consistent data=...
"""

import itertools
import sys
from typing import Any

import torch
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import DistillationBox, get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchvision import transforms

from contender_inputs import Images, networks, normalisation
from step_server import StepServer
from workload import Workload, workload


def configuration(work: Workload) -> dict[str, Any]:
    """The section `train` of a YAML of torchdistill."""
    temperature = getattr(work.objective, "temperature", 1.0)
    loss = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": temperature,
        "alpha": 0.0,  # of the labels; then KDLoss leaves out T², too
    }
    kd = {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": temperature**2}
    return {
        "num_epochs": 1,  # the box only keeps it
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {
                "batch_size": work.batch_size,
                "num_workers": work.workers,
                "persistent_workers": work.workers > 0,
                "pin_memory": work.device.type == "cuda",
                "drop_last": True,
            },
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {
            "key": "Adam",
            "kwargs": {"lr": work.optimizer(work.student).defaults["lr"]},
            "max_grad_norm": work.clip_norm,
        },
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": work.schedule},
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
    }


def images(work: Workload) -> Images:
    """The training images with the transforms of torchdistill's samples, on our terms."""
    student, teacher = networks(work)
    mean, std = normalisation(student)
    if (mean, std) != normalisation(teacher):
        raise ValueError("teacher.mean, teacher.std: one normalisation serves both networks")
    steps = [
        transforms.RandomResizedCrop(student.side, scale=(work.recipe.min_area, 1.0)),
        *([transforms.RandomHorizontalFlip()] if work.recipe.flip else []),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize(mean, std),
    ]
    return Images(work.data.train, transforms.Compose(steps))


def train_one_epoch(box: DistillationBox, work: Workload, server: StepServer, epoch: int) -> None:
    """The loop of its examples."""
    log = MetricLogger(delimiter="  ")
    log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    for views, labels, extra in log.log_every(box.train_data_loader, 1000, f"Epoch: [{epoch}]"):
        server.wait_for_step()
        views, labels = views.to(work.device), labels.to(work.device)
        with torch.autocast(work.device.type, torch.bfloat16, enabled=work.autocast):
            loss = box.forward_process(views, labels, extra)
        box.post_forward_process(loss=loss)
        log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])


def main() -> None:
    """Trains until the benchmark closes the pipe."""
    work = workload(sys.argv[1:])
    server = StepServer()
    student, teacher = networks(work)
    data = {"train": images(work)}
    box = get_distillation_box(
        teacher.net, student.net, data, configuration(work), work.device, None, False, 1
    )
    torch.backends.cudnn.benchmark = True  # as its examples do
    for epoch in itertools.count():
        box.pre_epoch_process(epoch=epoch)
        train_one_epoch(box, work, server, epoch)
        box.post_epoch_process()


if __name__ == "__main__":
    main()
