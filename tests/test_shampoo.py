"""Shampoo: weight decay, blocks and restored state."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from commands import QUICK, ROOT, environment

pytest.importorskip("pytorch_optimizer")

from funmatch.optim.shampoo import shampoo

BLOCK = 4


def layers() -> nn.Module:
    """Larger than a block, smaller than one, and without any: linear, convolution, norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6 * 2 * 2, 9)
    )


def optimizer(module: nn.Module, **settings: float) -> torch.optim.Optimizer:
    return shampoo(module, **{"lr": 0.02, "wd": 0.01, "block_size": BLOCK, **settings})


def go(module: nn.Module, learner: torch.optim.Optimizer, steps: range) -> None:
    """Steps on random images, in a closure, as Lightning takes them; under a schedule."""
    for step in steps:
        images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))

        def closure(images: torch.Tensor = images) -> torch.Tensor:
            learner.zero_grad()
            loss = module(images).square().sum(dim=-1).mean()
            loss.backward()
            return loss

        for group in learner.param_groups:
            group["lr"] = 0.02 * (1 - step / 10)
        learner.step(closure)


def stored(*parts: dict) -> tuple[dict, ...]:
    """Through a file, as a checkpoint is read: tensors and plain values alone."""
    file = io.BytesIO()
    torch.save(parts, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_shampoo_minimises_an_ill_conditioned_quadratic() -> None:
    """Of an ill-conditioned matrix equation, whose curvatures lie 400 apart."""
    torch.manual_seed(0)
    module = nn.Linear(6, 6, bias=False)
    scales = torch.linspace(1, 20, 6)
    goal = torch.randn(6, 6)
    learner = optimizer(module, lr=0.01, wd=0.0)

    def loss() -> torch.Tensor:
        return (scales * (module.weight - goal)).square().mean()

    first = loss().item()
    for step in range(200):
        learner.zero_grad()
        loss().backward()
        for group in learner.param_groups:
            group["lr"] = 0.01 * min(1, step / 20) * (1 - step / 200) ** 2
        learner.step()
    assert loss().item() < 1e-2 * first


@pytest.mark.parametrize("lr", [1e-3, 0.03])
def test_shampoo_decay_follows_the_schedule_and_not_lr(lr: float) -> None:
    """With a zero gradient a step at s takes off s wd of a weight; norms and biases stay."""
    module = layers()
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    learner = optimizer(module, lr=lr, wd=0.1)
    for s in (0.0, 0.5, 1.0):
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in learner.param_groups:
            group["lr"] = s * lr
        learner.step()
        for name in ("0.weight", "3.weight"):
            expected[name] *= 1 - 0.1 * s
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_shampoo_restored_state_continues_identically() -> None:
    """3 steps, a file, 3 steps more are 6 steps, to the last bit."""
    straight = layers()
    go(straight, optimizer(straight), range(6))

    module = layers()
    learner = optimizer(module)
    go(module, learner, range(3))
    weights, state = stored(module.state_dict(), learner.state_dict())
    resumed = layers()
    resumed.load_state_dict(weights)
    resumed_learner = optimizer(resumed)
    resumed_learner.load_state_dict(state)
    go(resumed, resumed_learner, range(3, 6))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_shampoo_without_restored_state_continues_differently() -> None:
    """Else the test above could not fail: the first steps alone do not decide the last ones."""
    straight = layers()
    go(straight, optimizer(straight), range(6))
    module = layers()
    go(module, optimizer(module), range(3))
    go(module, optimizer(module), range(3, 6))
    pairs = zip(straight.parameters(), module.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_shampoo_loaded_state_is_a_copy() -> None:
    module = layers()
    learner = optimizer(module)
    go(module, learner, range(2))
    other = layers()
    other.load_state_dict(module.state_dict())
    other_learner = optimizer(other)
    other_learner.load_state_dict(learner.state_dict())
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    go(module, learner, range(2, 5))  # must leave the other alone
    (other_state,) = stored(other_learner.state_dict())
    again = layers()
    again.load_state_dict(before)
    again_learner = optimizer(again)
    again_learner.load_state_dict(other_state)
    go(again, again_learner, range(2, 5))
    for one, same in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, same)


def test_shampoo_splits_layers_into_blocks() -> None:
    """No preconditioner is larger than a block: a root of 2048 x 2048 at each step costs hours."""
    module = layers()
    learner = optimizer(module)
    go(module, learner, range(1))
    tensors = [
        tensor
        for state in learner.state_dict()["state"].values()
        for tensor in state["pre_conditioner.pre_conditioners"]
    ]
    assert max(max(tensor.shape) for tensor in tensors) == BLOCK


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"lr": 0.0}, "lr must be positive, got 0.0"), ({"wd": -1.0}, "wd must not be negative")],
)
def test_shampoo_refuses_wrong_lr_and_wd(settings: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        optimizer(nn.Linear(2, 2), **settings)


def test_configuration_builds_shampoo(compose: Callable) -> None:
    from funmatch.experiment import fitting
    from funmatch.experiment.build import build

    cfg = compose("optimizer=shampoo", "schedule=warmup_quadratic", "optimizer.block_size=16")
    learning = fitting.build_learning(build(cfg))
    built = learning.optimizer(nn.Linear(3, 3))
    assert type(built).__name__ == "Shampoo"
    assert built.block_size == 16
    assert learning.schedule(900) == 0.5  # of the warm-up of 1800 steps


@pytest.mark.slow
def test_missing_shampoo_package_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['pytorch_optimizer'] = None\n"  # what Python itself takes for not there
        "from funmatch.cli.main import finetune\n"
        f"sys.argv = ['finetune.py', 'optimizer=shampoo', *{QUICK}]\n"
        "finetune()\n"
    )
    env = environment(tmp_path, PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "optimizer=shampoo: needs a package that is not installed" in done.stderr
    assert "pip install pytorch-optimizer" in done.stderr
