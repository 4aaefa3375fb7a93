"""Error messages: turns an exception into one line with key, value and remedy."""

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
_MAX_LISTED_OPTIONS = 16


_ONE_LINE = (ValueError, errors.UserError, errors.RunIsBusyError, DataNotFoundError)


def print_error(error: Exception, config_name: str) -> None:
    """Prints one `error:` line, after the traceback if HYDRA_FULL_ERROR=1."""
    print_traceback(error)
    print(f"error: {explain(error, config_name)}", file=sys.stderr, flush=True)


def print_traceback(error: Exception) -> None:
    """Prints the traceback if HYDRA_FULL_ERROR=1."""
    if WANTS_TRACEBACK:
        traceback.print_exception(error)


def explain(error: Exception, config_name: str) -> str:
    """The error as one line with key, value and remedy, as far as they are known."""
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
        return (  # Hydra 1.3; Hydra 1.4 reads the file
            f"{match[1]}={match[2]}: your file has the name of an option of funmatch; rename it"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: give it a value: {error.full_key}=..."
    if isinstance(error, InterpolationToMissingValueError):  # only the text names the key
        key = text.splitlines()[0].split()[-1]
        return f"{key}=???: give it a value: {key}=..."
    raised = _raised_by_resolver(error)
    if raised is not error and type(raised) in (ValueError, errors.UserError):
        return str(raised)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{error.__cause__.full_key}: {error.__cause__.msg}".splitlines()[0]
    if isinstance(error, BrokenPipeError) and _stdout_closed():
        return "stdout: the reader has closed the pipe; the same command resumes, as with > FILE"
    if isinstance(error, EOFError | ConnectionError) or text.startswith("DataLoader "):
        # torch raises the latter if it notices a dead worker before the pipe breaks.
        if "timed out" in text:
            remedy = "look at the disk that it reads from, or give compute.workers=0"
            return f"compute.workers: {' '.join(text.split()).rstrip('. ')}; {remedy}"
        text = text if text.startswith("DataLoader ") else f"a worker has ended ({text})"
        remedy = (
            "most often memory ran out: lower compute.workers; the same command resumes the run"
        )
        return f"compute.workers: {' '.join(text.split()).rstrip('. ')}; {remedy}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the disk"
        return f"{where}: {error.strerror}; make room, then the same command resumes the run"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error) in _ONE_LINE:
        # An error of a DataLoader worker is preceded by the traceback of its process.
        message = text.rpartition(
            f"\n{DataNotFoundError.__module__}.{DataNotFoundError.__name__}: "
        )[2]
        return " ".join(message.split())
    return " ".join(
        f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)".split()
    )


def _no_such_key(key: str, text: str, config_name: str) -> str:
    """Message about an unknown key; the value is known from the text of Hydra's error only."""
    typed = re.search(rf"\+({re.escape(key)}[^=\s]*)=(.*)", text)
    key, value = typed.groups() if typed else (key, "...")
    if key.startswith("trainer."):
        return trainer_arguments.refusal(key.removeprefix("trainer."), value)
    known = _keys(config_name) if "." in key else [*config_groups(), *_keys(config_name)]
    near = [name for name in get_close_matches(key, known) if name != key]
    hint = f"did you mean {near[0]}?" if near else f"see --cfg job, or add it as +{key}={value}"
    return f"{key}={value}: no such key; {hint}"


def _raised_by_resolver(error: BaseException | None) -> BaseException | None:
    """The exception that a resolver raised, for a failed interpolation; else the error itself."""
    while isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error


def _stdout_closed() -> bool:
    """Returns True if the reader of stdout has closed the pipe; then redirects stdout to /dev/null.

    Without that, Python would report the broken pipe again at exit.
    """
    stdout = 1
    poll = select.poll()
    poll.register(stdout, 0)  # errors are always reported
    if closed := bool(poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed


def _advice(name: str, options: Sequence[str]) -> str:
    """Suggests options with a similar name, and lists all options unless they are many."""
    near = get_close_matches(name, options, cutoff=0.7)
    if len(options) > _MAX_LISTED_OPTIONS:
        hint = f"did you mean {errors.join_or(near)}? " if near else ""
        return f"{hint}--help shows all {len(options)}"
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choose {errors.join_or(options or ['null'])}"


def _keys(config_name: str) -> list[str]:
    """All keys of the default configuration, with dots."""

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                yield from walk(child, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    with compose_context():
        return list(walk(hydra.compose(config_name), ""))
