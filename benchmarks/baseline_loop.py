"""Baseline: distillation as a hand-written loop for one device, without a framework.

The same networks, views, arithmetic and order of steps as `src/train.py` with the same overrides;
no trainer, no callbacks, no log, no checkpoint.

    STEP_SERVER=... python benchmarks/baseline_loop.py recipe=function_matching data=...
"""

import sys

import torch

from step_server import StepServer
from workload import workload


def main() -> None:
    """Trains until the benchmark closes the pipe."""
    work = workload(sys.argv[1:])
    server, device = StepServer(), work.device
    student, teacher = work.student.to(device).train(), work.teacher
    parameters = list(student.parameters())
    optimizer = work.optimizer(student)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, work.schedule)
    for batch in work.batches():
        server.wait_for_step()
        batch = batch.to(device, non_blocking=True).mixed()
        with torch.autocast(device.type, torch.bfloat16, enabled=work.autocast):
            target = teacher(batch.view)
            loss = work.objective(student(batch.view("student")), target, batch).total
        optimizer.zero_grad()
        loss.backward()
        if work.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, work.clip_norm)
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    main()
