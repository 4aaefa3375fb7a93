"""Adam and SGD with schedule-coupled weight decay."""

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from timm.layers.std_conv import StdConv2d
from torch import nn

from funmatch.optim.adam import adam
from funmatch.optim.schedules import warmup_cosine
from funmatch.optim.sgd import sgd

momentum_dtypes = pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16])


def updates(
    module: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[list[np.ndarray]]
) -> Iterator[list[torch.Tensor]]:
    """One step per list of gradients; yields copies of the parameters after it."""
    for step in gradients:
        for parameter, gradient in zip(module.parameters(), step, strict=True):
            parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype).clone()
        optimizer.step()
        yield [parameter.detach().clone() for parameter in module.parameters()]


def noise(module: nn.Module, steps: int, seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=p.shape) for p in module.parameters()] for _ in range(steps)]


# --- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum_dtype", "kernel_key", "tolerance"),
    [(None, "kernel", 2e-6), (torch.bfloat16, "kernel_bf16_momentum", 2e-3)],
)
def test_adam_equals_the_released_code(
    reference: Callable, momentum_dtype: torch.dtype | None, kernel_key: str, tolerance: float
) -> None:
    stored = reference("adam_trajectory.npz")
    lr, wd = float(stored["lr"]), float(stored["wd"])
    # Adam works element by element, so the kernel need not be transposed.
    module = nn.Sequential(nn.Linear(5, 4, bias=False), nn.LayerNorm(5))
    names = ("kernel", "scale", "bias")
    with torch.no_grad():
        for parameter, name in zip(module.parameters(), names, strict=True):
            parameter.copy_(torch.from_numpy(stored[f"{name}0"]))
    optimizer = adam(module, lr=lr, wd=wd, momentum_dtype=momentum_dtype)

    lengths = {key: int(stored[key]) for key in ("total_steps", "warmup_steps")}
    for step in range(lengths["total_steps"]):
        for parameter, name in zip(module.parameters(), names, strict=True):
            parameter.grad = torch.from_numpy(stored[f"grad_{name}"][step]).clone()
        nn.utils.clip_grad_norm_(module.parameters(), float(stored["clip_norm"]))
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, **lengths)
        optimizer.step()
        for parameter, key in zip(module.parameters(), (kernel_key, *names[1:]), strict=True):
            expected = torch.from_numpy(stored[key][step])
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=tolerance)


# --- the formula ---------------------------------------------------------------------------------


def test_adam_equals_the_formula() -> None:
    """w <- w - s (lr adam(g) + wd w), one weight, plain numbers, none of them at its default."""
    lr, wd, beta1, beta2, eps = 0.03, 0.02, 0.8, 0.95, 1e-3
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = adam(module, lr=lr, wd=wd, betas=(beta1, beta2), eps=eps)
    w, m, v = module.weight.item(), 0.0, 0.0
    for t, (g, s) in enumerate([(0.5, 0.0), (-2.0, 0.5), (0.1, 1.0), (0.0, 0.7)], start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        direction = (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        w -= s * (lr * direction + wd * w)
        optimizer.param_groups[0]["lr"] = s * lr
        [[weight]] = updates(module, optimizer, [[np.array([[g]])]])
        assert weight.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("lr", [1e-4, 0.003, 1.0])
@momentum_dtypes
def test_adam_decay_follows_the_schedule_and_not_lr(
    lr: float, momentum_dtype: torch.dtype | None
) -> None:
    """With a zero gradient a step takes off wd * lr_now / lr_start, whatever lr is."""
    module = nn.Linear(3, 2, bias=False).double()
    optimizer = adam(module, lr=lr, wd=0.1, momentum_dtype=momentum_dtype)
    expected = module.weight.detach().clone()
    for multiplier in (0.0, 0.5, 1.0, 0.25):
        optimizer.param_groups[0]["lr"] = lr * multiplier
        [[weight]] = updates(module, optimizer, [[np.zeros((2, 3))]])
        expected = expected * (1 - 0.1 * multiplier)
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("module", "decayed"),
    [
        (nn.Linear(3, 2), {"weight"}),
        (nn.Conv1d(2, 2, 1), {"weight"}),
        (nn.Conv2d(2, 2, 1), {"weight"}),
        (nn.Conv3d(2, 2, 1), {"weight"}),
        (nn.ConvTranspose2d(2, 2, 1), {"weight"}),
        (StdConv2d(2, 2, 1), {"weight"}),
        (nn.GroupNorm(1, 4), set()),
        (nn.BatchNorm2d(4), set()),
        (nn.LayerNorm((3, 4)), set()),  # two dimensions do not make a weight decay
        (nn.Embedding(3, 2), set()),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), {"0.weight"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_adam_decays_only_convolution_and_linear_weights(
    module: nn.Module, decayed: set[str]
) -> None:
    before = {name: p.detach().clone().fill_(2.0) for name, p in module.named_parameters()}
    module.load_state_dict(before, strict=False)
    optimizer = adam(module, lr=0.01, wd=0.5)
    list(updates(module, optimizer, [[np.zeros(p.shape) for p in module.parameters()]]))
    for name, parameter in module.named_parameters():
        assert torch.all(parameter == (1.0 if name in decayed else 2.0)), name


# --- which parameters, which numbers -------------------------------------------------------------


def test_adam_omits_frozen_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    module[0].requires_grad_(False)
    groups = adam(module, lr=0.1, wd=0.1).param_groups
    assert len(groups) == 1  # nothing that decays is left
    held = groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in module[1].parameters()}


def test_adam_updates_a_shared_weight_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    held = [p for group in adam(module, lr=0.1, wd=0.1).param_groups for p in group["params"]]
    assert len(held) == 1


@pytest.mark.parametrize("lr", [0, 0.0, -0.1, math.nan])
def test_adam_lr_must_be_positive(lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr must be positive, got {lr}"):
        adam(nn.Linear(1, 1), lr=lr, wd=0.1)


@pytest.mark.parametrize("wd", [-1e-4, math.nan])
def test_adam_wd_must_not_be_negative(wd: float) -> None:
    with pytest.raises(ValueError, match=f"wd must not be negative, got {wd}"):
        adam(nn.Linear(1, 1), lr=0.1, wd=wd)


# --- state ---------------------------------------------------------------------------------------


def test_adam_stores_only_the_first_moment_in_bfloat16() -> None:
    module = nn.Linear(3, 2)
    optimizer = adam(module, lr=0.1, wd=0.1, momentum_dtype=torch.bfloat16)
    list(updates(module, optimizer, noise(module, 2)))
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].dtype == torch.bfloat16
        assert state["exp_avg_sq"].dtype == parameter.dtype == torch.float32


def assert_continues(build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """Through a file, as a checkpoint; to the last bit, as a resumed run must not differ."""
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build(module)
    list(updates(module, optimizer, noise(module, 3)))
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)

    resumed = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    resumed.load_state_dict(stored["module"])
    resumed_optimizer = build(resumed)
    resumed_optimizer.load_state_dict(stored["optimizer"])
    gradients = noise(module, 3, seed=1)
    pairs = zip(
        updates(module, optimizer, gradients),
        updates(resumed, resumed_optimizer, gradients),
        strict=True,
    )
    for straight, after_resume in pairs:
        assert all(map(torch.equal, straight, after_resume))


@momentum_dtypes
def test_adam_restored_state_continues_identically(momentum_dtype: torch.dtype | None) -> None:
    assert_continues(lambda m: adam(m, lr=0.1, wd=0.1, momentum_dtype=momentum_dtype))


@momentum_dtypes
def test_adam_step_evaluates_the_closure(momentum_dtype: torch.dtype | None) -> None:
    """Lightning takes its steps through a closure."""
    module = nn.Linear(1, 1, bias=False)
    before = module.weight.item()
    optimizer = adam(module, lr=0.1, wd=0.0, momentum_dtype=momentum_dtype)

    def closure() -> torch.Tensor:
        loss = module(torch.ones(1, 1)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(before)
    assert module.weight.item() == pytest.approx(before - 0.1)  # Adam's first step has length lr


# --- SGD -----------------------------------------------------------------------------------------

nesterovs = pytest.mark.parametrize("nesterov", [False, True])


@nesterovs
def test_sgd_equals_the_formula(nesterov: bool) -> None:
    """w <- w - s (lr u + wd w), where u is the momentum, or the look ahead of it."""
    lr, wd, mu = 0.03, 0.02, 0.8
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = sgd(module, lr=lr, wd=wd, momentum=mu, nesterov=nesterov)
    w, m = module.weight.item(), 0.0
    for g, s in [(0.5, 0.0), (-2.0, 0.5), (0.1, 1.0), (0.0, 0.7)]:
        m = mu * m + g  # the decay is no part of it
        u = g + mu * m if nesterov else m
        w -= s * (lr * u + wd * w)
        optimizer.param_groups[0]["lr"] = s * lr
        [[weight]] = updates(module, optimizer, [[np.array([[g]])]])
        assert weight.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("lr", [1e-4, 0.003, 1.0])
def test_sgd_decay_follows_the_schedule_and_not_lr(lr: float) -> None:
    module = nn.Linear(3, 2, bias=False).double()
    optimizer = sgd(module, lr=lr, wd=0.1)
    expected = module.weight.detach().clone()
    for multiplier in (0.0, 0.5, 1.0, 0.25):
        optimizer.param_groups[0]["lr"] = lr * multiplier
        [[weight]] = updates(module, optimizer, [[np.zeros((2, 3))]])
        expected = expected * (1 - 0.1 * multiplier)
        torch.testing.assert_close(weight, expected)


def test_sgd_does_not_decay_norms_and_biases() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.GroupNorm(1, 3), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(2.0)
    optimizer = sgd(module, lr=0.01, wd=0.5)
    list(updates(module, optimizer, [[np.zeros(p.shape) for p in module.parameters()]]))
    for name, parameter in module.named_parameters():
        assert torch.all(parameter == (1.0 if name in ("0.weight", "2.weight") else 2.0)), name


def test_sgd_decays_after_the_closure_computed_the_gradient() -> None:
    """Lightning computes the gradient in a closure: at the weights as they were, also at first."""
    lr, wd, mu = 0.1, 0.05, 0.9
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = sgd(module, lr=lr, wd=wd, momentum=mu)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module.weight.square().sum()
        loss.backward()
        return loss

    w, m = module.weight.item(), 0.0
    for _ in range(3):
        m = mu * m + 2 * w
        before, w = w, w - (lr * m + wd * w)
        assert optimizer.step(closure).item() == pytest.approx(before**2, rel=1e-12)
        assert module.weight.item() == pytest.approx(w, rel=1e-12)


@nesterovs
def test_sgd_restored_state_continues_identically(nesterov: bool) -> None:
    assert_continues(lambda m: sgd(m, lr=0.1, wd=0.1, momentum=0.7, nesterov=nesterov))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": math.nan}, "lr must be positive, got nan"),
        ({"lr": 0.1, "wd": -0.1}, "wd must not be negative, got -0.1"),
    ],
)
def test_sgd_refuses_wrong_lr_and_wd(settings: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        sgd(nn.Linear(1, 1), **settings)
