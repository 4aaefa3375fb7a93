"""What every way of teaching shares: a student, its optimiser, and how it is measured."""

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
    """How a learner learns.

    Attributes:
        optimizer: makes the optimiser of a module; given `lr_factors`, where there are any.
        schedule: multiplier of the learning rate at a step.
        log_every: steps between two rows of training metrics.
        seed: of the noise in the student, such as dropout.
        clip_norm: largest norm of the gradient, or None.
        max_skipped: steps in a row without a finite loss and gradient that are left out.
        micro_batch: images that are in memory at a time, or None for the whole batch.
        fused: update all weights in one kernel, where the optimiser knows how.
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
        student: the only network that learns.
        learning: its optimiser, schedule and log.
        task: what a prediction means: how it is scored, and shown.
    """

    def __init__(self, student: Network, learning: Learning, task: Task) -> None:
        super().__init__()
        self.student, self._learning, self.task = student, learning, task
        self.metrics, self.predictions = task.metrics(), task.predictions()
        self.skipped, self._in_a_row = 0, 0  # steps
        # Ours, so that the gradient of a step may come from several backward passes.
        self.automatic_optimization = False

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of a piece in the loss of its step, and named parts of it for the log.

        All are means over the counts of the global batch, see `Batch.mean`: those of the pieces
        add up.
        """
        raise NotImplementedError

    def prior(self, step: int) -> tuple[Tensor, dict[str, Tensor]] | None:
        """A loss on the weights, once per step, and its parts for the log; None: there is none."""
        return None

    def after_step(self) -> None:
        """Called after each optimiser step that was taken."""

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
        self._kept = [torch.empty_like(buffer) for buffer in self._statistics]
        scheduler = LambdaLR(optimizer, self._learning.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Sets the learning rate, which a state of another run has as of its own schedule."""
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
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)
        shown: dict[str, Tensor] = {}
        logs = (batch.step + 1) % self._learning.log_every == 0

        def gradient() -> None:
            optimizer.zero_grad()
            for number, piece in enumerate(batch.pieces(self._learning.micro_batch)):
                loss, parts = self.loss(piece)
                # In one backward pass with the first piece: in one of its own, DDP would wait for
                # the gradient of weights that it does not reach.
                if number == 0 and (prior := self.prior(batch.step)) is not None:
                    loss, parts = loss + prior[0], {**parts, **prior[1]}
                # A loss that is no number gives such a gradient too, and so to all ranks.
                self.manual_backward(loss * (1 + 0 * loss.detach()))
                for name, value in {"loss": loss, **parts}.items() if logs else ():
                    name = f"train/{name}"
                    shown[name] = shown.get(name, 0) + value.detach()

        optimizer.step(gradient)
        schedule.step()
        if not self._in_a_row:
            self.after_step()
        if logs:
            mean = self.trainer.strategy.reduce  # over the ranks
            self._log({name: mean(value) for name, value in shown.items()}, batch.step + 1)

    def _seed_noise(self, step: int) -> None:
        """Makes what networks draw in a step a function of the step, as views are.

        So it is the same after a resume, and whoever else draws random numbers in this process.
        """
        seed = geometry.noise_seed(self._learning.seed, step, self.trainer.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.25 ms
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, where that of mixed precision is to scale again.

        Without a finite gradient no weight, moment or statistic is touched; ranks have the same
        gradient, so they agree.
        """
        norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        if not norm.isfinite():
            optimizer.zero_grad(set_to_none=True)
            if self._kept:  # which BatchNorm has spoilt on the way
                torch._foreach_copy_(self._statistics, self._kept)
            if not self._scaled_too_high():
                self._skip()
            return
        self._in_a_row = 0
        if self._learning.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self._learning.clip_norm, norm)

    def _scaled_too_high(self) -> bool:
        """Whether float16 may have overflown by the scale, which then becomes smaller."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and scaler.get_scale() > 1

    def _skip(self) -> None:
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        step, most = self.trainer.global_step + 1, self._learning.max_skipped
        if self._in_a_row > most:
            raise ValueError(
                f"max_skipped={most}: at step {step} loss or gradient are not finite, as in the "
                f"{self._in_a_row - 1} steps before; lower optimizer.lr, or look at the images; "
                "no weight has followed them"
            )
        if self.trainer.is_global_zero:
            left_out = "loss or gradient are not finite; left out"
            _log.warning("  step %d: %s (%d)", step, left_out, self.skipped)
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
        """Logs under the number of steps done, at once.

        Lightning would do it after the checkpoint of the step: a kill between the two would lose
        the row.
        """
        self.log_dict(values, logger=False)
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step)
