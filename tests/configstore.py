"""Hydra's store of configurations, of which every composition would make a copy."""

from hydra.core.config_store import ConfigStore


def share() -> None:
    """Lets compositions of this process read one store, which none of them writes to.

    To copy it is a third of the time of a composition, and nearly all of that of `--help`.
    """
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
