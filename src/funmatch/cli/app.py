"""Starts a command under Hydra and speaks to the user in one line per error."""

import errno
import logging
import os
import re
import select
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import hydra
from dotenv import load_dotenv
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from funmatch import origins, resolvers, rules, runs, schema
from funmatch.data.listing import MissingData
from funmatch.interruption import WISH, Interrupted

_WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
_MANY = 12  # options that a line has room for
_PACKAGE = Path(__file__).resolve().parents[1]


def conf() -> Path:
    """The configurations: beside `src/` in a checkout, inside the package once installed."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "conf"


def launch(
    config_name: str,
    task: Callable[[DictConfig], float | None],
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Runs a task under Hydra, once or for each job of a sweep; ends the process on an error.

    A job that fails does not stop the others; the exit code is 1 then. A command that is asked to
    stop, by a signal or by `max_time`, ends with 75, or 130 for Ctrl-C: it can go on later.

    Args:
        config_name: of the primary configuration.
        task: gets the composed configuration; what it returns is for a sweeper that searches.
        finish: called once after all jobs, also if some failed.
    """
    load_dotenv(Path(".env"))  # keys; what the environment already holds wins
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print and exit
    resolvers.register()
    Door.jobs = 1
    failed, again = False, "the same command"

    def guarded(cfg: DictConfig) -> float | None:
        nonlocal failed, again
        if not _WANTS_TRACEBACK:
            del os.environ["HYDRA_FULL_ERROR"]  # the ranks that a task starts inherit it
        try:
            if cfg.get("max_time") is not None:
                WISH.within(schema.seconds(cfg.max_time))
            if cfg.get("resume") == "never":
                again = "the same command with resume=auto"
            return task(cfg)
        except Exception as error:  # Hydra would print lines of its own, and stop the sweep
            failed = True
            say(error, config_name)
            return None
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    main = hydra.main(version_base="1.3", config_path=str(conf()), config_name=config_name)
    try:
        with WISH.heard():
            main(guarded)()
            try:
                finish()
            except OSError:
                if not failed:  # by a full disk, say: then that was said
                    raise
    except Interrupted as stop:
        WISH.fulfilled(stop.code)
        told = stop.told or "what was saved is kept"
        if runs.rank() == 0:
            said = f"{told}; {again} goes on (exit code {stop.code})"
            print(f"interrupted by {stop.reason}: {said}", file=sys.stderr, flush=True)
        raise SystemExit(stop.code) from None
    except Exception as error:
        failed = True
        say(error, config_name)
    if failed:
        raise SystemExit(1)


def say(error: Exception, config_name: str) -> None:
    """One `error:` line, after the traceback if it is asked for."""
    trace(error)
    print(f"error: {explain(error, config_name)}", file=sys.stderr, flush=True)


def trace(error: Exception) -> None:
    """The traceback, if it is asked for."""
    if _WANTS_TRACEBACK:
        traceback.print_exception(error)


class Tidy(Callback):
    """Removes what Hydra has written of a sweep that keeps nothing."""

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        if Path(config.hydra.sweep.dir) == resolvers.scratch():
            shutil.rmtree(resolvers.scratch(), ignore_errors=True)


class Door(Tidy):
    """Checks every job before the first one starts, and before any directory is made."""

    jobs = 1

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        self._guard(lambda: _check(config), config)

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        def check() -> None:
            if runs.is_rank():  # when a job failed on one of them, the others would be a job behind
                raise schema.UserError(
                    "-m: a sweep starts the ranks of each job itself; start it once, not by rank"
                )
            if "n_trials" in config.hydra.sweeper:  # a search draws its jobs one by one
                Door.jobs = config.hydra.sweeper.n_trials
                _check(config)
                if config.dry_run:
                    raise schema.UserError("dry_run=true: a search needs results; leave out sweep")
                logging.getLogger("optuna").setLevel(logging.WARNING)
                return
            jobs = sweep(config)
            Door.jobs = len(jobs)
            saved = set[str]()
            for overrides in jobs:
                cfg = hydra.compose(config.hydra.job.config_name, overrides)
                _check(cfg)
                if (name := cfg.get("save_as")) is not None:
                    if name in saved:
                        raise schema.UserError(
                            f"save_as={name}: several jobs of the sweep; give each a name, as in "
                            f"save_as={name}_${{seed}}"
                        )
                    saved.add(name)

        self._guard(check, config)

    def _guard(self, check: Callable[[], None], config: DictConfig) -> None:
        try:
            check()
        except Exception as error:  # raised, it would become a warning of Hydra's
            say(error, config.hydra.job.config_name)
            raise SystemExit(1) from None


def _check(cfg: DictConfig) -> None:
    """Refuses what cannot work."""
    rules.check(cfg)
    if cfg.get("origin") is not None:
        origins.source(cfg)


def sweep(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = config.hydra.sweeper.get("params") or {}
    arguments = [f"{key!s}={value}" for key, value in params.items()]
    arguments += config.hydra.overrides.task
    parsed = OverridesParser.create().parse_overrides(arguments)
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for job in jobs]


def explain(error: Exception, config_name: str) -> str:
    """An error in one line: the key, the value and the remedy, as far as they are known."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, config_name)
    text = str(error)
    if match := re.match(r"In '.*': Could not find '(.*)/(.*?)'", text):
        group, name = match.groups()
        options = re.findall(r"\n\t([\w.-]+)(?=\n|$)", text)
        return f"{group}={name}: no such {group}; {_advice(name, options)}"
    if match := re.search(r"To append to your config use \+([^=]*)=(.*)", text):
        key, value = match.groups()
        known = _keys(config_name) if "." in key else [*_groups(), *_keys(config_name)]
        near = [name for name in get_close_matches(key, known) if name != key]
        hint = f"did you mean {near[0]}?" if near else f"see --cfg job, or add it as +{key}={value}"
        return f"{key}={value}: no such key; {hint}"
    if match := re.search(r"Could not load '(.*)/(.*?)'", text):  # one of a list of options
        group, name = match.groups()
        options = sorted(path.stem for path in (conf() / group).glob("*.yaml"))
        return f"{group}={name}: no such {group}; {_advice(name, options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: give it a value: {error.full_key}=..."
    if match := re.search(r"Missing mandatory value: ([\w.]+)", text):  # asked for by another key
        return f"{match[1]}=???: give it a value: {match[1]}=..."
    if match := re.match(r"(\w+) raised while resolving interpolation: (.*)", text):
        kind, told = match.groups()
        if kind in ("UserError", "ValueError"):
            return told
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{error.__cause__.full_key}: {error.__cause__.msg}".splitlines()[0]
    if isinstance(error, BrokenPipeError) and _unread():
        return "the output: its reader has gone; the same command goes on, with > FILE for instance"
    if isinstance(error, EOFError | ConnectionError) or text.startswith("DataLoader "):
        # The latter is what torch says if it notices before the pipe of a dead worker breaks.
        text = text if text.startswith("DataLoader ") else f"a worker has ended ({text})"
        remedy = "most often memory ran out: lower trainer.workers; the same command goes on"
        return f"trainer.workers: {' '.join(text.split()).rstrip('. ')}; {remedy}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'the disk'}: {error.strerror}; the same command goes on"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error) in (ValueError, schema.UserError, MissingData):
        # In a worker of a loader it was given the traceback of its process in front.
        told = text.rpartition(f"\n{MissingData.__module__}.{MissingData.__name__}: ")[2]
        return " ".join(told.split())
    return " ".join(
        f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)".split()
    )


def _unread() -> bool:
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
    if len(options) > _MANY:
        meant = f"did you mean {rules.either(near)}? " if near else ""
        return f"{meant}--help shows all {len(options)}"
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}choose {rules.either(options or ['null'])}"


def _groups() -> list[str]:
    """Those of which one option is chosen, as in recipe=consistent."""
    return sorted(path.name for path in conf().iterdir() if path.is_dir())


def _keys(config_name: str) -> list[str]:
    """All keys of the default configuration, in dotted form."""

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                yield from walk(child, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    with composing():
        return list(walk(hydra.compose(config_name), ""))


@contextmanager
def composing() -> Iterator[None]:
    """Where configurations can be composed though no job runs."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf()), version_base="1.3"):
        yield
