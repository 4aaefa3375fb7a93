"""Starts a command under Hydra, and prints an error in one line."""

import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from funmatch.config import errors, resolvers, schema, validation
from funmatch.config.compose import config_directory
from funmatch.config.explain import WANTS_TRACEBACK, print_error
from funmatch.experiment import warm_start
from funmatch.experiment.build import build
from funmatch.runtime import allowlist, distributed, env_file, hydra_versions
from funmatch.runtime.preemption import STOP, Interrupted

_CALLED = (f"{__name__}.*",)  # by Hydra itself


def launch(
    config_name: str,
    task: Callable[[DictConfig], float | None],
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Runs a task under Hydra, once or for each job of a sweep; ends the process on an error.

    A job that fails does not stop the others; the exit code is 1 then. A command that is stopped by
    a signal or by `max_time` ends with 75, or 130 for Ctrl-C: it can be resumed.

    Args:
        config_name: of the primary configuration.
        task: gets the composed configuration; what it returns is for a sweeper that searches.
        finish: called once after all jobs, also if some failed.
    """
    with allowlist.environment_as_it_is():
        _warn_of_ignored(env_file.load(Path(".env")))
        _launch(config_name, task, finish)


def _warn_of_ignored(names: Sequence[str]) -> None:
    if names and distributed.rank() == 0:
        print(
            f"warning: .env: {', '.join(names)} ignored; set what you trust in the environment",
            file=sys.stderr,
        )


def _launch(
    config_name: str, task: Callable[[DictConfig], float | None], finish: Callable[[], None]
) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print and exit
    resolvers.register()
    _select_multirun(sys.argv)
    ValidateJobs.jobs = 1
    failed, again = False, "the same command"

    def guarded(cfg: DictConfig) -> float | None:
        nonlocal failed, again
        if not WANTS_TRACEBACK:
            del os.environ["HYDRA_FULL_ERROR"]  # the ranks that a task starts inherit it
        try:
            if cfg.get("max_time") is not None:
                STOP.set_deadline(schema.seconds(cfg.max_time))
            if cfg.get("resume") == "never":
                again = "the same command with resume=auto"
            return task(cfg)
        except Exception as error:  # Hydra would print lines of its own, and stop the sweep
            failed = True
            print_error(error, config_name)
            return None
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    main = hydra.main(
        config_path=str(config_directory()),
        config_name=config_name,
        **hydra_versions.VERSION_BASE,
        **hydra_versions.whitelist("execution_whitelist", [*_CALLED, *allowlist.targets()]),
    )
    try:
        with STOP.install_handlers():
            main(guarded)()
            try:
                finish()
            except OSError:
                if not failed:  # by a full disk for instance, which was reported
                    raise
    except Interrupted as stop:
        STOP.ignore_further(stop.code)
        if distributed.rank() == 0:
            state = stop.message or "what was saved is kept"
            print(
                f"interrupted by {stop.reason}: {state}; {again} resumes (exit code {stop.code})",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(stop.code) from None
    except Exception as error:
        failed = True
        print_error(error, config_name)
    if failed:
        raise SystemExit(1)


def _select_multirun(arguments: list[str]) -> None:
    """Makes `sweep=NAME` a sweep without -m: Hydra 1.4 wants to know before it composes."""
    for number, argument in enumerate(arguments):
        if argument.startswith("sweep=") and argument not in ("sweep=", "sweep=null"):
            arguments.insert(number, "hydra.mode=MULTIRUN")
            return


class RemoveScratch(Callback):
    """Removes what Hydra writes for a sweep of a command that leaves no runs."""

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        if Path(config.hydra.sweep.dir) == resolvers.scratch():
            shutil.rmtree(resolvers.scratch(), ignore_errors=True)


class ValidateJobs(RemoveScratch):
    """Checks every job before the first one starts, and before any directory is made."""

    jobs = 1

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        self._guard(lambda: _check(config), config)

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        def check() -> None:
            # When a job failed on one of them, the others would be a job behind.
            if distributed.is_rank():
                raise errors.UserError(
                    "-m: a sweep starts the ranks of each job itself; start it once, not by rank"
                )
            if "n_trials" in config.hydra.sweeper:  # a search draws its jobs one by one
                ValidateJobs.jobs = config.hydra.sweeper.n_trials
                _check(config)
                if config.dry_run:
                    raise errors.UserError("dry_run=true: a search needs results; leave out sweep")
                logging.getLogger("optuna").setLevel(logging.WARNING)
                return
            jobs = sweep(config)
            ValidateJobs.jobs = len(jobs)
            saved = set[str]()
            for overrides in jobs:
                cfg = hydra.compose(config.hydra.job.config_name, overrides)
                _check(cfg)
                if (name := cfg.get("save_as")) is not None:
                    if name in saved:
                        raise errors.UserError(
                            f"save_as={name}: several jobs of the sweep; give each a name, as in "
                            f"save_as={name}_${{seed}}"
                        )
                    saved.add(name)

        self._guard(check, config)

    def _guard(self, check: Callable[[], None], config: DictConfig) -> None:
        try:
            check()
        except Exception as error:  # raised, it would become a warning of Hydra's
            print_error(error, config.hydra.job.config_name)
            raise SystemExit(1) from None


def _check(cfg: DictConfig) -> None:
    """Refuses a configuration that cannot work."""
    validation.check(cfg)
    if cfg.get("origin") is not None:
        warm_start.warm_start_source(build(cfg))


def sweep(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them."""
    params = config.hydra.sweeper.get("params") or {}
    arguments = [*(f"{key!s}={value}" for key, value in params.items())]
    arguments.extend(config.hydra.overrides.task)
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(arguments):
        several = override.is_sweep_override()
        if several and not override.is_discrete_sweep():
            raise errors.UserError(
                f"{override.input_line}: this sweeper takes no interval; list values"
            )
        key = override.get_key_element()
        texts = (
            override.sweep_string_iterator() if several else [override.get_value_element_as_str()]
        )
        values[key] = [f"{key}={text}" for text in texts]
    return [list(job) for job in itertools.product(*values.values())]
