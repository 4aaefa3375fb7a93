"""Error messages: an exception as one line with key, value and remedy."""

import errno
import os
import re
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import hydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from funmatch.config import errors, trainer_arguments
from funmatch.config.compose import compose_context, config_groups, group_options
from funmatch.data.file_list import DataNotFoundError

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
_MAX_LISTED_OPTIONS = 16  # options that a line has room for


def print_error(error: Exception, config_name: str) -> None:
    """One `error:` line, after the traceback if it is asked for."""
    print_traceback(error)
    print(f"error: {explain(error, config_name)}", file=sys.stderr, flush=True)


def print_traceback(error: Exception) -> None:
    """The traceback, if it is asked for."""
    if WANTS_TRACEBACK:
        traceback.print_exception(error)


def explain(error: Exception, config_name: str) -> str:
    """An error in one line: the key, the value and the remedy, as far as they are known."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, config_name)
    text = str(error)
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = group_options(group) if error.options is None else error.options
        return f"{group}={name}: no such {group}; {_advice(name, options)}"
    if isinstance(error, ConfigCompositionException) and isinstance(
        error.__cause__, ConfigAttributeError | ConfigKeyError
    ):
        return _no_such_key(str(error.__cause__.full_key), text, config_name)
    if match := re.search(r"'(\w+)/(\S+)' is validated against ConfigStore schema", text):
        return (  # Hydra 1.3; in 1.4 the file is taken
            f"{match[1]}={match[2]}: a file of yours has the name of an option of ours; rename it"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: give it a value: {error.full_key}=..."
    if isinstance(error, InterpolationToMissingValueError):  # of a key that only the text names
        key = text.splitlines()[0].split()[-1]
        return f"{key}=???: give it a value: {key}=..."
    raised = _raised_by_resolver(error)
    if raised is not error and type(raised) in (ValueError, errors.UserError):
        return str(raised)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{error.__cause__.full_key}: {error.__cause__.msg}".splitlines()[0]
    if isinstance(error, BrokenPipeError) and _stdout_closed():
        return "the output: its reader has gone; the same command goes on, with > FILE for instance"
    if isinstance(error, EOFError | ConnectionError) or text.startswith("DataLoader "):
        # The latter is what torch says if it notices before the pipe of a dead worker breaks.
        text = text if text.startswith("DataLoader ") else f"a worker has ended ({text})"
        remedy = "most often memory ran out: lower compute.workers; the same command goes on"
        return f"compute.workers: {' '.join(text.split()).rstrip('. ')}; {remedy}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'the disk'}: {error.strerror}; the same command goes on"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error) in (ValueError, errors.UserError, DataNotFoundError):
        # In a worker of a loader it was given the traceback of its process in front.
        told = text.rpartition(f"\n{DataNotFoundError.__module__}.{DataNotFoundError.__name__}: ")[
            2
        ]
        return " ".join(told.split())
    return " ".join(
        f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)".split()
    )


def _no_such_key(key: str, text: str, config_name: str) -> str:
    """Of a key that is not there; Hydra's text alone holds all that was typed."""
    typed = re.search(rf"\+({re.escape(key)}[^=\s]*)=(.*)", text)
    key, value = typed.groups() if typed else (key, "...")
    if key.startswith("trainer."):
        return trainer_arguments.refusal(key.removeprefix("trainer."), value)
    known = _keys(config_name) if "." in key else [*config_groups(), *_keys(config_name)]
    near = [name for name in get_close_matches(key, known) if name != key]
    hint = f"did you mean {near[0]}?" if near else f"see --cfg job, or add it as +{key}={value}"
    return f"{key}={value}: no such key; {hint}"


def _raised_by_resolver(error: BaseException | None) -> BaseException | None:
    """What lies behind an interpolation that failed; any other error itself."""
    while isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error


def _stdout_closed() -> bool:
    """Whether nobody reads what is printed; it is let go then, lest Python complain at the end."""
    output = 1
    look = select.poll()
    look.register(output, 0)  # of errors it tells unasked
    if gone := bool(look.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _advice(name: str, options: Sequence[str]) -> str:
    """Which option was meant, if it is near one; of a long list only those."""
    near = get_close_matches(name, options, cutoff=0.7)
    if len(options) > _MAX_LISTED_OPTIONS:
        meant = f"did you mean {errors.either(near)}? " if near else ""
        return f"{meant}--help shows all {len(options)}"
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}choose {errors.either(options or ['null'])}"


def _keys(config_name: str) -> list[str]:
    """All keys of the default configuration, in dotted form."""

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                yield from walk(child, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    with compose_context():
        return list(walk(hydra.compose(config_name), ""))
