"""The teacher: one frozen network, or an ensemble of several."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from funmatch.models.frozen import Frozen
from funmatch.models.network import Output

NAME = "teacher"
SUM = "sum"
# Of predictions [K, B, ...] and weights [K], at a temperature: [B, ...].
Mean = Callable[..., Tensor]


@dataclass(frozen=True)
class Teacher:
    """One frozen network, or an ensemble, whose outputs the student matches.

    Attributes:
        members: by the name of the view that each sees: "teacher" for a single one,
            "teacher.<name>" for several.
        combine: how several members are combined: the name of a mean of their predictions, or
            "sum" for the sum of the distances to each; metrics then use the first of the means.
        weights: of the members, in their order; None for equal ones.
        temperature: temperature at which probabilities are averaged.
        means: the means that the task defines, by name.

    Raises:
        ValueError: the combination is unknown, or the weights are not a positive number each.
    """

    members: Mapping[str, Frozen]
    combine: str = "probability"
    weights: tuple[float, ...] | None = None
    temperature: float = 1.0
    means: Mapping[str, Mean] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = (*self.means, SUM)
        if len(self.members) > 1 and self.combine not in known:
            raise ValueError(
                f"teacher.combine must be one of {', '.join(known)}, got {self.combine!r}"
            )
        if len(self._weights) != len(self.members) or not all(w > 0 for w in self._weights):
            raise ValueError(
                f"teacher.shares must be {len(self.members)} positive numbers, got {self._weights}"
            )

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.members)

    @property
    def sides(self) -> dict[str, int]:
        """Side of the view of each member, pixels."""
        return {name: member.side for name, member in self.members.items()}

    def at_temperature(self, temperature: float) -> "Teacher":
        """The same teacher with its probabilities averaged at another temperature."""
        return replace(self, temperature=temperature)

    def __call__(self, view: Callable[[str], Tensor]) -> Output:
        """The teacher's output for the views [B, channels, S, S] that `view` gives by name."""
        outputs = [member(view(name)) for name, member in self.members.items()]
        if len(outputs) == 1:
            return outputs[0]
        return self.combine_predictions(torch.stack([output.prediction for output in outputs]))

    def combine_predictions(self, predictions: Tensor) -> Output:
        """Combines the members' predictions [K, B, ...], in their order: `prediction` [B, ...]."""
        if len(predictions) == 1:
            return Output(predictions[0])
        summed = self.combine == SUM
        mean = next(iter(self.means.values())) if summed else self.means[self.combine]
        weights = torch.tensor(self._weights)
        combined = mean(predictions, weights, temperature=self.temperature)
        if not summed:
            return Output(combined)
        return Output(combined, members=tuple(zip(self._weights, predictions, strict=True)))

    def copy_weights(self) -> dict[str, Tensor]:
        """Copies of all weights, by member and name; before the teacher is used, see `Frozen`."""
        return {
            f"{name}.{weight}": value
            for name, member in self.members.items()
            for weight, value in member.weights().items()
        }

    def fingerprint(self) -> str:
        """SHA-256 digest of all members and of how they are combined, in hex."""
        prints = [member.fingerprint() for member in self.members.values()]
        if len(prints) == 1:
            return prints[0]
        text = " ".join((*prints, self.combine, *map(str, self._weights)))
        return hashlib.sha256(text.encode()).hexdigest()
