"""Checks before training that a network of the user's takes the images and fits the task."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from funmatch.config.errors import UserError
from funmatch.data.sources import Source
from funmatch.experiment.device import device
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.specs import Data, NetworkSpec
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.runtime import log
from funmatch.tasks.base import Task
from funmatch.views.evaluation_views import EvaluationViews, evenly_spaced

_log = logging.getLogger(__name__)

_Network = Frozen | Network
_MIN_IMAGES = 2
_MIN_STANDARD_ERRORS = 3.0  # standard errors by which another normalisation must be better
_NORMALISATIONS = {
    "[0.485,0.456,0.406] std=[0.229,0.224,0.225]": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "[0.5,0.5,0.5] std=[0.5,0.5,0.5]": ([0.5] * 3, [0.5] * 3),
    "[0,0,0] std=[1,1,1]": ([0.0] * 3, [1.0] * 3),
    "[0,0,0] std=[0.00392157,0.00392157,0.00392157]": ([0.0] * 3, [1 / 255] * 3),
}


def check_network(
    experiment: Experiment, spec: NetworkSpec, network: _Network, source: Source, task: Task
) -> None:
    """Passes evaluation views of a source through a network, if its `trial_images` says so.

    Args:
        experiment: gives the device and describes the data.
        spec: its key is the one that errors name.
        network: frozen or trainable, on any device.
        source: images, labelled or not.
        task: what a prediction means.

    Raises:
        UserError: it does not take the views, or its predictions are not those of the task.
    """
    if spec.check_images is None:
        return
    index = evenly_spaced(source, max(_MIN_IMAGES, spec.check_images))
    views = EvaluationViews(source, network.resize, network.side, task.truth_in_view)
    pixels = torch.stack(list(views.images(index[:_MIN_IMAGES]))).to(device(experiment))
    _check(experiment, spec, _prediction(spec.key, network, pixels), len(pixels), task)
    label = views.labels(index)
    if spec.check_images <= 0 or label is None or len(network.mean) != 3:
        return
    pixels = torch.stack(list(views.images(index))).to(pixels.device)
    if hint := _suggest_normalisation(network, pixels, label.to(pixels.device), task):
        log.rank_zero_info(_log, f"{spec.key}: {hint}")


def _predict(network: _Network, pixels: Tensor) -> Tensor:
    if isinstance(network, Frozen):
        return network(pixels).prediction
    own = next(network.parameters()).device  # one that learns is not on the device yet
    with torch.no_grad():
        prediction = network.eval()(pixels.to(own)).prediction
    network.train()
    return prediction.to(pixels.device)


def _prediction(key: str, network: _Network, pixels: Tensor) -> Tensor:
    try:
        return _predict(network, pixels)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # user networks may raise anything
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{key}: does not take images of {' x '.join(map(str, pixels.shape[1:]))} ({reason}); "
            f"give the {key}.side that it was made for, and as many channels as data has"
        ) from error


def _check(
    experiment: Experiment, spec: NetworkSpec, prediction: Tensor, images: int, task: Task
) -> None:
    key, data, expected = spec.key, experiment.data, task.prediction_shape
    if prediction.dim() != 1 + len(expected) or len(prediction) != images:
        shape = ", ".join(map(str, (images, "classes" if len(expected) == 1 else expected)))
        raise UserError(
            f"{key}: gives {list(prediction.shape)} for {images} images; an "
            f"{task.description.model} gives [{shape}]"
        )
    if len(expected) == 1 and prediction.shape[1] != spec.classes:
        raise UserError(
            f"{key}.classes={spec.classes}: the network gives {prediction.shape[1]} for each "
            f"image; data={data.name} has {data.classes} classes"
            + _remedy(spec, data, prediction.shape[1])
        )
    if not prediction.isfinite().all():
        raise UserError(f"{key}: gives no finite numbers; look at its weights, mean and std")
    if misfit := task.misfit(prediction):
        what, _, remedy = misfit.partition("; ")
        if spec.has_output_key:  # of an exported model, which may give either
            remedy = f"give {key}.output=probabilities"
        raise UserError(f"{key}: {what}; {remedy}")


def _remedy(spec: NetworkSpec, data: Data, classes: int) -> str:
    if spec.is_teacher and data.name == "folder":
        return f"; without labels {spec.key}.classes={classes} teaches all that the teacher knows"
    return "; fine-tune it on this data, or choose another"


def _suggest_normalisation(network: _Network, pixels: Tensor, label: Tensor, task: Task) -> str:
    """Suggests another input normalisation if it is significantly more accurate."""

    def right(mean: Sequence[float], std: Sequence[float]) -> Tensor | None:
        """As if the network normalised by these: what it undoes is done before."""
        ours, theirs = (
            [torch.tensor(list(v), device=pixels.device)[:, None, None] for v in pair]
            for pair in ((network.mean, network.std), (mean, std))
        )
        shown = ((pixels / 255 - theirs[0]) / theirs[1] * ours[1] + ours[0]) * 255
        predictions = [_predict(network, piece) for piece in torch.split(shown, 16)]
        return task.is_correct(torch.cat(predictions), label)

    own = right(network.mean, network.std)
    if own is None:
        return ""
    others = {
        name: correct for name, v in _NORMALISATIONS.items() if (correct := right(*v)) is not None
    }
    name = max(others, key=lambda each: int(others[each].sum()))
    gained, lost = int((others[name] & ~own).sum()), int((own & ~others[name]).sum())
    if gained - lost <= _MIN_STANDARD_ERRORS * math.sqrt(gained + lost):
        return ""
    return (
        f"right on {int(own.sum())} of {len(own)} val images, and on {int(others[name].sum())} "
        f"with mean={name}; is it normalised as it was trained?"
    )
