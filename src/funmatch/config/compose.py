"""Composing configurations, inside and outside of a Hydra job."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

from funmatch.runtime.hydra_versions import VERSION_BASE

_PACKAGE = Path(__file__).resolve().parents[1]


def config_directory() -> Path:
    """The configurations: beside `src/` in a checkout, inside the package once installed."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "conf"


@contextmanager
def compose_context() -> Iterator[None]:
    """Context in which `hydra.compose` works outside a job, or beside one."""
    outer = GlobalHydra.instance().hydra  # of a job that is running
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(config_directory()), **VERSION_BASE):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def config_groups() -> list[str]:
    """Names of the Hydra config groups, of which one option each is chosen."""
    with compose_context():
        found = GlobalHydra.instance().config_loader().list_groups("")
    return [group for group in found if group != "hydra"]


def group_options(group: str) -> list[str]:
    """Names of the options of a config group."""
    with compose_context():
        return GlobalHydra.instance().config_loader().get_group_options(group)
