"""The teacher: one frozen network, or several that speak as one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from funmatch.core import ensembling
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output

NAME = "teacher"
_MEANS: dict[str, Callable[..., Tensor]] = {
    "probability": ensembling.probability_mean,
    "logit": ensembling.logit_mean,
    # To sum the divergences from each teacher is, up to a constant, to match the mean of their
    # probabilities; what is shown and measured is that mean.
    "sum": ensembling.probability_mean,
}


@dataclass(frozen=True)
class Teacher:
    """What the student is to match.

    Attributes:
        members: by the name of the view that each sees: "teacher" for a single one,
            "teacher.<name>" for several.
        combine: several members by the mean of their probabilities or of their logits, or by the
            sum of the distances to each: probability, logit or sum.
        weights: of the members, in their order; None for equal ones.
        temperature: at which probabilities are averaged.

    Raises:
        ValueError: the combination is unknown, or the weights are not a positive number each.
    """

    members: Mapping[str, Frozen]
    combine: str = "probability"
    weights: tuple[float, ...] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.combine not in _MEANS:
            raise ValueError(
                f"teacher.combine must be one of {', '.join(_MEANS)}, got {self.combine!r}"
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

    def softened(self, temperature: float) -> "Teacher":
        """The same teacher with its probabilities averaged at another temperature."""
        return replace(self, temperature=temperature)

    def __call__(self, view: Callable[[str], Tensor]) -> Output:
        """What the teacher says of the views [B, channels, S, S] that `view` gives by name."""
        return self.heard([member(view(name)) for name, member in self.members.items()])

    def heard(self, outputs: Sequence[Output]) -> Output:
        """What the members say, in their order, as the word of one teacher."""
        if len(outputs) == 1:
            return outputs[0]
        return self.combined(torch.stack([output.logits for output in outputs]))

    def combined(self, logits: Tensor) -> Output:
        """The members' logits [K, B, C] as those of one teacher."""
        if len(logits) == 1:
            return Output(logits[0])
        mean = _MEANS[self.combine](
            logits, torch.tensor(self._weights), temperature=self.temperature
        )
        if self.combine != "sum":
            return Output(mean)
        return Output(mean, terms=tuple(zip(self._weights, logits, strict=True)))

    def fingerprint(self) -> str:
        """A digest of all members and of how they are combined."""
        prints = [member.fingerprint() for member in self.members.values()]
        if len(prints) == 1:
            return prints[0]
        text = " ".join((*prints, self.combine, *map(str, self._weights)))
        return hashlib.sha256(text.encode()).hexdigest()
