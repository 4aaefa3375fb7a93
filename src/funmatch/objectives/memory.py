"""A memory bank: a tensor that is saved with its objective, and is neither weight nor buffer."""

from collections.abc import Callable

from torch import Tensor, nn


class Memory(nn.Module):
    """A tensor that checkpoints hold and restore exactly.

    A buffer would be broadcast by DDP before each step, and copied at each step by the learner,
    which undoes a step without a finite gradient: for banks of gigabytes that is too much. This one
    moves to a device with its module, and nothing else touches it.

    Args:
        value: initial value.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value.detach()

    def get_extra_state(self) -> Tensor:
        """The tensor, for `state_dict`."""
        return self.value

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the tensor.

        Raises:
            ValueError: it has another shape.
        """
        if state.shape != self.value.shape:
            raise ValueError(
                f"a memory of shape {list(self.value.shape)} cannot be restored from one of "
                f"{list(state.shape)}"
            )
        self.value.copy_(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Memory":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.value = fn(self.value)
        return self
