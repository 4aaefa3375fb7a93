"""Composing configurations, inside and outside of a Hydra job."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

_PACKAGE = Path(__file__).resolve().parents[1]


def config_directory() -> Path:
    """The configurations: beside `src/` in a checkout, inside the package once installed."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "conf"


@contextmanager
def compose_context() -> Iterator[None]:
    """Where configurations can be composed though no job runs."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        yield
