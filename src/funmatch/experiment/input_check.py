"""What does not fit is found before training: every network of strangers is shown a few images."""

import math
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor

from funmatch.config.errors import UserError
from funmatch.data.sources import Source
from funmatch.experiment import build
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.tasks.base import Task
from funmatch.views.evaluation_views import EvaluationViews, evenly_spaced

_Network = Frozen | Network
_FEW = 2  # images: enough to see what fits
_CLEAR = 3.0  # standard errors by which another normalisation must be better
_NORMALISATIONS = {
    "[0.485,0.456,0.406] std=[0.229,0.224,0.225]": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "[0.5,0.5,0.5] std=[0.5,0.5,0.5]": ([0.5] * 3, [0.5] * 3),
    "[0,0,0] std=[1,1,1]": ([0.0] * 3, [1.0] * 3),
    "[0,0,0] std=[0.00392157,0.00392157,0.00392157]": ([0.0] * 3, [1 / 255] * 3),
}


def check_network(
    cfg: DictConfig, key: str, part: DictConfig, network: _Network, source: Source, task: Task
) -> None:
    """Shows a network evaluation views of a source, if it asks for it by `trial_images`.

    Args:
        cfg: of the run.
        key: of the network, as in teacher or teacher.members.a.
        part: its configuration.
        network: itself.
        source: images, labelled or not.
        task: what a prediction means.

    Raises:
        UserError: it does not take the views, or its predictions are not those of the task.
    """
    if "trial_images" not in part:
        return
    wanted = max(_FEW, part.trial_images)
    index = evenly_spaced(source, wanted)
    views = EvaluationViews(source, network.resize, network.side)
    pixels = torch.stack(list(views.images(index[:_FEW]))).to(build.device(cfg))
    _check(cfg, key, part, _said(key, network, pixels), len(pixels), task)
    label = views.labels(index)
    if part.trial_images <= 0 or label is None or len(network.mean) != 3:
        return
    pixels = torch.stack(list(views.images(index))).to(pixels.device)
    if found := _suggest_normalization(network, pixels, label.to(pixels.device), task):
        build.say(f"{key}: {found}")


def _asked(network: _Network, pixels: Tensor) -> Tensor:
    if isinstance(network, Frozen):
        return network(pixels).prediction
    place = next(network.parameters()).device  # one that learns is not on the device yet
    with torch.no_grad():
        said = network.eval()(pixels.to(place)).prediction
    network.train()
    return said.to(pixels.device)


def _said(key: str, network: _Network, pixels: Tensor) -> Tensor:
    try:
        return _asked(network, pixels)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever it computes with
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{key}: does not take images of {' x '.join(map(str, pixels.shape[1:]))} ({reason}); "
            f"give the {key}.side that it was made for, and as many channels as data has"
        ) from error


def _check(
    cfg: DictConfig, key: str, part: DictConfig, prediction: Tensor, images: int, task: Task
) -> None:
    wanted = task.prediction_shape
    if prediction.dim() != 1 + len(wanted) or len(prediction) != images:
        shape = ", ".join(map(str, (images, "classes" if len(wanted) == 1 else wanted)))
        raise UserError(
            f"{key}: gives {list(prediction.shape)} for {images} images; an "
            f"{task.description.model} gives [{shape}]"
        )
    if len(wanted) == 1 and prediction.shape[1] != part.classes:
        raise UserError(
            f"{key}.classes={part.classes}: the network gives {prediction.shape[1]} for each "
            f"image; data={cfg.data.name} has {cfg.data.classes} classes"
            + _remedy(key, cfg, prediction.shape[1])
        )
    if not prediction.isfinite().all():
        raise UserError(f"{key}: gives no finite numbers; look at its weights, mean and std")
    if found := task.misfit(prediction):
        what, _, remedy = found.partition("; ")
        if "output" in part:  # of an exported model, which may give either
            remedy = f"give {key}.output=probabilities"
        raise UserError(f"{key}: {what}; {remedy}")


def _remedy(key: str, cfg: DictConfig, classes: int) -> str:
    if key.startswith("teacher") and cfg.data.name == "folder":
        return f"; without labels {key}.classes={classes} teaches all that the teacher knows"
    return "; fine-tune it on this data, or choose another"


def _suggest_normalization(network: _Network, pixels: Tensor, label: Tensor, task: Task) -> str:
    """Whether the network knows clearly more under another normalisation than under its own."""

    def right(mean: Sequence[float], std: Sequence[float]) -> Tensor | None:
        """As if the network normalised by these: what it undoes is done before."""
        ours, theirs = (
            [torch.tensor(list(v), device=pixels.device)[:, None, None] for v in pair]
            for pair in ((network.mean, network.std), (mean, std))
        )
        shown = ((pixels / 255 - theirs[0]) / theirs[1] * ours[1] + ours[0]) * 255
        predictions = [_asked(network, piece) for piece in torch.split(shown, 16)]
        return task.is_correct(torch.cat(predictions), label)

    own = right(network.mean, network.std)
    if own is None:
        return ""
    others = {
        name: found for name, v in _NORMALISATIONS.items() if (found := right(*v)) is not None
    }
    name = max(others, key=lambda each: int(others[each].sum()))
    gained, lost = int((others[name] & ~own).sum()), int((own & ~others[name]).sum())
    if gained - lost <= _CLEAR * math.sqrt(gained + lost):
        return ""
    return (
        f"right on {int(own.sum())} of {len(own)} val images, and on {int(others[name].sum())} "
        f"with mean={name}; is it normalised as it was trained?"
    )
