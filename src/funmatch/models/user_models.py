"""Networks that a user's Python function returns."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from funmatch.runtime import allowlist


def from_path(path: str, *, num_classes: int, **settings: Any) -> nn.Module:
    """Calls a function and returns the network that it builds.

    Args:
        path: `package.module:function`; modules are imported from the current directory too.
        num_classes: passed to the function if it has such a parameter.
        settings: further keyword arguments of the function.

    Raises:
        ValueError: the function does not exist, raises an exception, or does not return a
            `torch.nn.Module`.
    """
    function = _imported(path)
    parameters = inspect.signature(function).parameters
    if "num_classes" in parameters:
        settings = {"num_classes": num_classes, **settings}
    try:
        net = function(**settings)
    except Exception as error:  # user code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"path={path}: the function failed ({reason})") from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"path={path}: returns a {type(net).__name__}, not a torch.nn.Module")
    return net


def _imported(path: str) -> Callable[..., Any]:
    if not allowlist.FUNCTION.fullmatch(path):  # the allowlist checks only this form
        raise ValueError(f"path={path}: give package.module:function")
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as for `python -m`; last, so that it shadows no installed package
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"path={path}: {' '.join(str(error).split())}; give package.module:function"
        ) from error
    if not callable(function):
        raise ValueError(f"path={path}: is a {type(function).__name__}, not a function")
    return function
