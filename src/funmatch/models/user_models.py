"""Networks that a function of the user's makes."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from funmatch.runtime import allowlist


def from_path(path: str, *, num_classes: int, **settings: Any) -> nn.Module:
    """The network that a function returns.

    Args:
        path: `package.module:function`; modules are looked for in the current directory too.
        num_classes: given to the function if it takes it.
        settings: given to it as they are.

    Raises:
        ValueError: there is no such function, it fails, or it returns no `torch.nn.Module`.
    """
    function = _found(path)
    taken = inspect.signature(function).parameters
    if "num_classes" in taken:
        settings = {"num_classes": num_classes, **settings}
    try:
        made = function(**settings)
    except Exception as error:  # of whatever it does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"path={path}: the function has failed ({reason})") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"path={path}: gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _found(path: str) -> Callable[..., Any]:
    if not allowlist.FUNCTION.fullmatch(path):  # `trust` has looked at nothing else
        raise ValueError(f"path={path}: give package.module:function")
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as for `python -m`; last, so that it hides nothing
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"path={path}: {' '.join(str(error).split())}; give package.module:function"
        ) from error
    if not callable(function):
        raise ValueError(f"path={path}: is a {type(function).__name__}, not a function")
    return function
