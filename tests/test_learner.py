"""Learner: training steps with a non-finite loss or gradient."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from faults import NoNumber
from funmatch.data.sources import Splits
from funmatch.models.network import Network
from funmatch.training.datamodule import DataModule
from funmatch.training.supervised import Supervision
from funmatch.views.image_views import ImageViews
from funmatch.views.recipes import Shared
from toys import CLASSES, TASK, array_source, learning, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")


def student() -> Network:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)
    )
    network = Network(net, mean=[0.5] * 3, std=[0.5] * 3, side=8, resize=8)
    network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    net[1].reset_running_stats()
    return network


def taught(
    steps: int, *, broken: list[int], most: int = 1, plugins: tuple[MixedPrecision, ...] = ()
) -> Supervision:
    """A student that had a loss that is no number at some steps, counted from 1."""
    source = array_source()
    data = DataModule(
        Splits(source, source, source),
        ImageViews(source, Shared(name="labels", crop="inception"), sides={"student": 8}),
        batch_size=4,
        steps=steps,
        seed=0,
    )
    learner = Supervision(student(), replace(learning(100), max_skipped=most), TASK)
    trainer(steps, callbacks=[NoNumber(broken)], plugins=plugins).fit(learner, data)
    return learner


def state(learner: Supervision) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.student.net.state_dict().items()}


def test_nonfinite_step_leaves_weights_and_statistics_unchanged() -> None:
    before, after = taught(2, broken=[]), taught(3, broken=[3])
    assert after.skipped == 1
    for name, value in state(before).items():
        if name != "1.num_batches_tracked":
            assert torch.equal(value, state(after)[name]), name
    assert not torch.equal(state(taught(3, broken=[]))["0.weight"], state(before)["0.weight"])


def scaled(scale: float) -> MixedPrecision:
    """Training in float16, as on a GPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_float16_overflow_lowers_the_scale_and_is_not_counted(capsys) -> None:
    precision = scaled(2.0**40)
    learner = taught(60, broken=[], most=0, plugins=(precision,))
    assert 1 < precision.scaler.get_scale() < 2.0**40  # it came down until all was finite
    assert learner.skipped == 0
    assert "not finite" not in capsys.readouterr().out
    assert all(value.isfinite().all() for value in state(learner).values())
    assert not torch.equal(state(learner)["0.weight"], student().net[0].weight)


def test_float16_nonfinite_loss_at_minimal_scale_is_counted() -> None:
    precision = scaled(8.0)
    with pytest.raises(ValueError, match=r"max_skipped=0: at step 4 loss or gradient is not"):
        taught(9, broken=[1, 2, 3, 4, 5], most=0, plugins=(precision,))
    assert precision.scaler.get_scale() == 1
