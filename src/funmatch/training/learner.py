"""Base of the LightningModules: a student, its optimisation, and its evaluation on val and test.

Some parts of a training step are done here instead of by Lightning, each for a reason given beside
it: optimisation is manual, since the gradient of a step may come from several backward passes;
gradients are clipped and non-finite steps skipped before the optimiser step; the generators of
noise are seeded by the step; metrics are passed to the loggers at once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from funmatch.core import geometry
from funmatch.data.batch import Batch
from funmatch.models.network import Network
from funmatch.tasks.base import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learning:
    """Settings of the optimisation.

    Attributes:
        optimizer: makes the optimiser of a module; called with `lr_factors` if there are any.
        schedule: multiplier of the learning rate at a step.
        log_every: steps between two rows of training metrics.
        seed: of the noise in the student, such as dropout.
        clip_norm: largest norm of the gradient, or None.
        max_skipped: largest number of consecutive steps that are skipped since their loss or
            gradient is not finite.
        micro_batch: rows in memory at a time, or None for the whole batch.
        fused: update all weights in one kernel, if the optimiser supports it.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[int], float]
    log_every: int
    seed: int = 0
    clip_norm: float | None = None
    max_skipped: int = 0
    micro_batch: int | None = None
    fused: bool = False


class Learner(LightningModule):
    """A student that is trained step by step and measured on the val and test splits.

    Args:
        student: the only network that is trained.
        learning: settings of its optimisation.
        task: the meaning of a prediction: its metrics and its table of predictions.
    """

    def __init__(self, student: Network, learning: Learning, task: Task) -> None:
        super().__init__()
        self.student, self._learning, self.task = student, learning, task
        self.metrics, self.predictions = task.metrics(), task.predictions()
        self.skipped, self._in_a_row = 0, 0  # steps
        self._stepped = False  # whether the optimiser has changed weights in this step
        # Manual, so that the gradient of a step may come from several backward passes.
        self.automatic_optimization = False

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of a piece of a batch in the loss of its step, and named parts for the log.

        All are scalars, means over the counts of the global batch (see `Batch.mean`), so that
        those of all pieces add up.
        """
        raise NotImplementedError

    def prior(self, step: int) -> tuple[Tensor, dict[str, Tensor]] | None:
        """A loss on the weights, once per step, and its parts for the log; or None."""
        return None

    def after_step(self) -> None:
        """Called after each optimiser step that was not skipped."""

    def lr_factors(self) -> dict[str, float]:
        """Factors of the learning rate of submodules, by name."""
        return {}

    def reference(self, batch: Batch, split: str) -> Tensor | None:
        """The teacher's prediction on a batch of "val" or "test", if there is a teacher."""
        return None

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        factors = self.lr_factors()
        optimizer = self._learning.optimizer(self, **({"lr_factors": factors} if factors else {}))
        for group in optimizer.param_groups if self._learning.fused else ():
            # Not by the constructor: then the gradient would not be scaled back before it is
            # clipped, in float16.
            group.update({"fused": True} if "fused" in group else {})
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._statistics = [b for b in self.buffers() if b.is_floating_point()]
        self._backup = [torch.empty_like(buffer) for buffer in self._statistics]
        scheduler = LambdaLR(optimizer, self._learning.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Sets the learning rate of this run's schedule, also after loading another run's state."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LRScheduler)
        groups = schedule.optimizer.param_groups
        for group, base in zip(groups, schedule.base_lrs, strict=True):
            group["lr"] = base * self._learning.schedule(schedule.last_epoch)

    def training_step(self, batch: Batch, number: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, LRScheduler)
        self._seed_noise(batch.step)
        if self._backup:
            torch._foreach_copy_(self._backup, self._statistics)
        logged: dict[str, Tensor] = {}
        logs = (batch.step + 1) % self._learning.log_every == 0

        def gradient() -> None:
            optimizer.zero_grad()
            for number, piece in enumerate(batch.pieces(self._learning.micro_batch)):
                loss, parts = self.loss(piece)
                # In one backward pass with the first piece: in one of its own, DDP would wait for
                # the gradient of weights that it does not reach.
                if number == 0 and (prior := self.prior(batch.step)) is not None:
                    loss, parts = loss + prior[0], {**parts, **prior[1]}
                # A NaN or infinite loss makes the gradient NaN too, and so that of all ranks.
                self.manual_backward(loss * (1 + 0 * loss.detach()))
                for name, value in {"loss": loss, **parts}.items() if logs else ():
                    name = f"train/{name}"
                    logged[name] = logged.get(name, 0) + value.detach()

        optimizer.step(gradient)
        schedule.step()
        if self._stepped:
            self.after_step()
        if logs:
            mean = self.trainer.strategy.reduce  # over the ranks
            self._log({name: mean(value) for name, value in logged.items()}, batch.step + 1)

    def _seed_noise(self, step: int) -> None:
        """Seeds the noise of networks (dropout) by the step, as views are.

        So it is the same after a resume, whatever else draws random numbers in this process.
        """
        seed = geometry.noise_seed(self._learning.seed, step, self.trainer.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.25 ms
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, where mixed precision has scaled it back.

        If it is not finite, the step is skipped: no weight, moment or statistic changes. All ranks
        have the same gradient, so they agree.
        """
        norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        self._stepped = bool(norm.isfinite())
        if not self._stepped:
            optimizer.zero_grad(set_to_none=True)
            if self._backup:  # the forward pass has spoilt those of BatchNorm
                torch._foreach_copy_(self._statistics, self._backup)
            if not self._scaled_too_high():
                self._skip()
            return
        self._in_a_row = 0
        if self._learning.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self._learning.clip_norm, norm)

    def _scaled_too_high(self) -> bool:
        """Whether the loss scale may have made float16 overflow; the scaler then lowers it."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and scaler.get_scale() > 1

    def _skip(self) -> None:
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        step, most = self.trainer.global_step + 1, self._learning.max_skipped
        if self._in_a_row > most:
            raise ValueError(
                f"max_skipped={most}: at step {step} loss or gradient is not finite, as in the "
                f"{self._in_a_row - 1} steps before; lower optimizer.lr, or look at the images; "
                "these steps changed no weight"
            )
        if self.trainer.is_global_zero:
            skipped = "loss or gradient is not finite; skipped"
            _log.warning("  step %d: %s (%d)", step, skipped, self.skipped)
        self._log({"train/skipped": torch.tensor(float(self.skipped))}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = [self.skipped, self._in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = checkpoint["skipped"]

    def validation_step(self, batch: Batch, number: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: Batch, number: int) -> None:
        self._measure(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")
        self.predicted = self.predictions.compute()
        self.predictions.reset()

    def _measure(self, batch: Batch, split: str) -> None:
        student = self.student(batch.view("student")).prediction
        teacher = self.reference(batch, split)
        self.metrics.update(student, teacher, batch.label)
        if split == "test":
            self.predictions.update(batch.index, student, teacher, batch.label)

    def _report(self, split: str) -> None:
        named = {f"{split}/{name}": value for name, value in self.metrics.compute().items()}
        step = self.trainer.global_step
        for name, value in named.items():
            if not torch.isfinite(value):
                diverged = "the student diverged; lower optimizer.lr"
                raise ValueError(f"{name} is {float(value)} at step {step}: {diverged}")
        self._log(named, step)
        self.metrics.reset()

    def _log(self, values: dict[str, Tensor], step: int) -> None:
        """Logs metrics under the number of steps done, at once.

        Lightning would do it after the checkpoint of the step: a kill between the two would lose
        the row.
        """
        self.log_dict(values, logger=False)
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step)
