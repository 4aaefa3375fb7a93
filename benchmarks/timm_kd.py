"""timm's own logit distillation, with its data pipeline, optimiser and clipping.

This is what a user of timm writes with `timm.task`; the loop of its `train.py` is not part of the
package. Networks, images and schedule are those of funmatch. Differences from funmatch:

- Images are cropped, mirrored and mixed one by one, by transforms and a collate function that draw
  from global generators; the loader normalises whole batches. Resizing is antialiased.
- The task also computes the cross-entropy to a label. Here every label is 0 and the weight of the
  term is 0, which leaves funmatch's objective and the small cost of the term.
- `adam` of timm's factory, without weight decay.
- Nothing is logged, measured or saved.

    STEP_SERVER=... python benchmarks/timm_kd.py recipe=function_matching data=...
"""

import sys

import torch
from timm.data import FastCollateMixup, create_loader
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher, LogitDistillationTask
from timm.utils import dispatch_clip_grad

from contender_inputs import Images, networks, normalisation
from step_server import StepServer
from workload import workload


def main() -> None:
    """Trains until the benchmark closes the pipe."""
    work = workload(sys.argv[1:])
    server, device, recipe = StepServer(), work.device, work.recipe
    student, teacher = networks(work)
    (mean, std), shape = normalisation(student), (len(student.scale), student.side, student.side)
    for network in (student, teacher):
        network.net.pretrained_cfg = dict(zip(("mean", "std"), normalisation(network), strict=True))
    classes = teacher.net(torch.zeros(1, *shape)).shape[-1]
    mixup = FastCollateMixup(recipe.alpha, label_smoothing=0.0, num_classes=classes)
    loader = create_loader(
        Images(work.data.train),
        input_size=shape,
        batch_size=work.batch_size,
        is_training=True,
        scale=(recipe.min_area, 1.0),
        hflip=0.5 if recipe.flip else 0.0,
        color_jitter=None,
        mean=mean,
        std=std,
        num_workers=work.workers,
        collate_fn=mixup if recipe.mixing else None,
        pin_memory=device.type == "cuda",
        device=device,
    )
    task = LogitDistillationTask(
        student.net,
        DistillationTeacher(teacher.net),
        criterion_kwargs={"soft_targets": recipe.mixing},
        distill_loss_weight=1.0,
        task_loss_weight=0.0,
        temperature=getattr(work.objective, "temperature", 1.0),
    )
    task = task.to(device).train()
    lr = work.optimizer(student).defaults["lr"]
    optimizer = create_optimizer_v2(student.net, opt="adam", lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, work.schedule)
    torch.backends.cudnn.benchmark = True  # as in train.py
    while True:
        for views, labels in loader:
            server.wait_for_step()
            with torch.autocast(device.type, torch.bfloat16, enabled=work.autocast):
                loss = task(views, labels)["loss"]
            optimizer.zero_grad()
            loss.backward()
            if work.clip_norm is not None:
                dispatch_clip_grad(task.get_clip_parameters(), work.clip_norm)
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
