"""Allowlist of what a configuration may call, key by key.

A configuration is data: it may come from an untrusted source, with a run or an experiment. It may
name what is listed here for its key, and nothing else. Names of other packages are checked once
more when they are imported: a class must be one of the package itself, not one that it imports.
"""

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import util
from pathlib import Path
from typing import Any

from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from funmatch.runtime import hydra_versions
from funmatch.runtime.allowed_names import BY_PATH, LAYERS, RULES

FUNCTION = re.compile(r"[\w.]+:\w+")
_ADD = "FUNMATCH_ALLOW"  # the environment variable that adds packages
_RETURNED = ("timm", "lightning.pytorch.trainer")  # packages whose objects ours return


_added: tuple[str, ...] | None = None  # packages, while `environment_as_it_is` holds them


def check(cfg: DictConfig) -> None:
    """Refuses a configuration that names what it may not call.

    The environment variable FUNMATCH_ALLOW adds packages, separated by commas.

    Raises:
        ValueError: names the key and the remedy.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    for key, value in _leaves(plain, ""):
        if key.rpartition(".")[2] == "_target_" and "${" in str(value):
            raise ValueError(f"{key}={value}: refers to another value; write out what is called")
    _check({key: value for key, value in _resolved(cfg).items() if key != "hydra"}, "")


def instantiate(node: Any, key: str = "", **arguments: Any) -> Any:
    """Instantiates a node of a configuration by Hydra.

    Args:
        node: plain values or a DictConfig.
        key: of the node in its configuration; "" if the code wrote it.
        arguments: further or other arguments.

    Raises:
        ValueError: the node names what it may not call.
        Exception: the exception of the function or class that was called; Hydra 1.3 wraps it.
    """
    if key:
        for target in _check(_resolved(node), key):
            _check_imported(target)
    allowed = hydra_versions.whitelist("_execution_whitelist_", targets())
    try:
        return utils.instantiate(node, **arguments, **allowed)
    except InstantiationException as error:
        failed = error.__cause__
        if not isinstance(failed, Exception):
            reason = " ".join(str(error).split())
            remedy = f"; {_ADD} in the environment names what you trust" if allowed else ""
            failed = ValueError(f"{reason}{remedy}")
    raise failed


def targets() -> list[str]:
    """The allowlist as patterns for Hydra 1.4, which also checks the modules of returned objects.

    These patterns allow more than `check`, which is called first.
    """
    names = [name for rule in RULES for name in rule.names]
    packages = {part for rule in RULES for part in (*rule.classes, *rule.functions)}
    modules = sorted({"funmatch.models", *packages, *_RETURNED, *added_packages()})
    return [*names, *(f"{module}.*" for module in modules)]


def added_packages() -> tuple[str, ...]:
    """The packages that the user trusts: those in FUNMATCH_ALLOW."""
    if _added is not None:
        return _added
    names = os.environ.get(_ADD, "").split(",")
    return tuple(name.strip() for name in names if name.strip())


@contextmanager
def environment_as_it_is() -> Iterator[None]:
    """Within the block FUNMATCH_ALLOW is what it was at the beginning.

    So neither `.env` nor an environment variable that a configuration sets adds to it.
    """
    global _added
    before, _added = _added, None
    _added = added_packages()
    try:
        yield
    finally:
        _added = before


def _resolved(node: Any) -> Any:
    """Plain values of a node, without those that do not resolve."""
    if not OmegaConf.is_config(node):
        return node
    plain: dict[Any, Any] = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        with suppress(OmegaConfBaseException):
            plain[key] = _resolved(node[key])
    return plain


def _check(plain: Any, key: str) -> list[str]:
    """Checks all that a node calls; returns the names."""
    names: list[str] = []
    for path, value in _leaves(plain, key):
        parent, _, last = path.rpartition(".")
        if last == "_target_":
            if not _is_allowed(parent, str(value)):
                raise _refusal(path, str(value))
            names.append(str(value))
    for path, node in _nodes(plain, key):
        if "_args_" in node:
            raise ValueError(f"{path}._args_: arguments need names; leave out _args_")
        if node.get("_target_") == BY_PATH and node.get("path") is not None:
            function = str(node["path"])
            module, _, name = function.replace(":", ".").rpartition(".")
            if not (_is_added(function.replace(":", ".")) or _is_function(module, name)):
                raise _refusal(f"{path}.path", function)
    return names


def _is_allowed(key: str, target: str) -> bool:
    if _is_added(target):
        return True
    module, _, name = target.rpartition(".")
    if any(part.startswith("_") for part in target.split(".")):
        return False
    for rule in RULES:
        if re.fullmatch(rule.key, key) and (
            target in rule.names
            or (name[:1].isupper() and _within(module, rule.classes))
            or module in rule.functions
        ):
            return True
    below = any(re.match(rf"({rule.key})\.", key) for rule in RULES)  # an argument of something
    return below and name[:1].isupper() and _within(module, (LAYERS,)) and _is_module(module)


def _is_function(module: str, name: str) -> bool:
    rules = (rule for rule in RULES if module in rule.functions)
    return any(rules) and not name.startswith("_")


def _is_added(target: str) -> bool:
    return target.startswith(tuple(f"{package}." for package in added_packages()))


def _check_imported(target: str) -> None:
    """Refuses a name of another package that it has imported itself.

    Raises:
        ValueError: it has, or there is no such name.
    """
    if target.startswith("funmatch.") or _is_added(target):
        return
    module, _, name = target.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_={target}: {' '.join(str(error).split())}") from error
    origin = str(getattr(value, "__module__", ""))
    if not callable(value) or origin.partition(".")[0] != module.partition(".")[0]:
        raise ValueError(f"_target_={target}: is {origin}.{name}; a configuration may not call it")
    if inspect.isfunction(value) and module not in {m for rule in RULES for m in rule.functions}:
        raise ValueError(f"_target_={target}: is a function; a configuration may not call it")


def _refusal(key: str, value: str) -> ValueError:
    module = value.replace(":", ".").rpartition(".")[0]
    if module.startswith("funmatch.") and not _is_module(module):
        remedy = (
            f"this version has no module {module}: read a run of an earlier version with that "
            "version, or train it again"
        )
    else:
        remedy = f"if you trust it, put {_ADD}={module or value} into the environment"
    what = "a configuration may call here only what funmatch lists for this key"
    return ValueError(f"{key}={value}: {what}; {remedy}")


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))


def _is_module(name: str) -> bool:
    """Returns True if a module or package of this name exists; imports no submodule."""
    top, *parts = name.split(".")
    spec = util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return False
    path = Path(spec.submodule_search_locations[0], *parts)
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _leaves(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All values that are no dictionaries or lists, with their dotted keys."""
    items: Any = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
    for name, value in items:
        path = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping | list):
            yield from _leaves(value, path)
        else:
            yield path, value


def _nodes(plain: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dictionaries, with their dotted keys."""
    if isinstance(plain, Mapping):
        yield key, plain
    items: Any = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
    for name, value in items:
        if isinstance(value, Mapping | list):
            yield from _nodes(value, f"{key}.{name}" if key else str(name))
