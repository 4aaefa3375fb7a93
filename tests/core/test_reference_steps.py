"""Six training steps of function matching against the released code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from funmatch.core.losses import kl_divergence
from funmatch.core.mixing import mix
from funmatch.models import bit
from funmatch.optim.adam import adam
from funmatch.optim.schedules import warmup_cosine

WEIGHTS = Path(__file__).parent / "reference"


def imported(name: str) -> nn.Module:
    model = bit.build((2, 1), width=0.5, num_classes=10)
    bit.load_npz(model, WEIGHTS / name)
    return model


def test_six_training_steps_equal_the_released_code(reference: Callable) -> None:
    stored = reference("function_matching_steps.npz")
    batches = torch.from_numpy(stored["images"]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    lengths = {key: int(stored[key]) for key in ("total_steps", "warmup_steps")}
    lr, wd, temperature = (float(stored[key]) for key in ("lr", "wd", "temperature"))

    teacher, student = imported("bit_tiny_teacher.npz").eval(), imported("bit_tiny_student.npz")
    optimizer = adam(student, lr=lr, wd=wd)
    for step, (images, coefficient) in enumerate(
        zip(batches, stored["mixup_coefficient"], strict=True)
    ):
        views = mix(images, float(coefficient))  # one mixture, which both networks see
        loss = kl_divergence(student(views), teacher(views), temperature=temperature).mean()
        assert loss.item() == pytest.approx(stored["loss"][step], rel=1e-4)

        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), float(stored["clip_norm"]))
        assert norm.item() == pytest.approx(stored["grad_norm"][step], rel=1e-3)

        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, **lengths)
        optimizer.step()

    assert all(p.grad is None for p in teacher.parameters())
    expected = torch.from_numpy(stored["student_logits_batch0_after"])
    torch.testing.assert_close(student(batches[0]).detach(), expected, rtol=0, atol=2e-3)
