"""Logging of runs to the console and to run.log, and the callbacks of a run."""

import io
import logging
import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import RichModelSummary

from commands import QUICK, command, command_here
from faults import inject
from funmatch.config import validation
from funmatch.config.errors import UserError
from funmatch.runtime import log
from funmatch.runtime.preemption import Interrupted
from small import only_run

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) +funmatch[\w.]*: ")
SHORT = (*QUICK, "steps=6", "schedule.warmup_steps=1", "validate_every=3", "checkpoint_every=2")


def test_console_prints_bare_messages_and_errors_to_stderr(capsys) -> None:
    logger = logging.getLogger("funmatch.somewhere")
    logger.info("  two %s", "words")
    logger.warning("a warning")
    logger.error("an error")
    logger.info("for the file", extra=log.FILE_ONLY)
    logger.debug("for nobody")
    output = capsys.readouterr()
    assert output.out == "  two words\na warning\n"
    assert output.err == "an error\n"


def test_closed_stdout_raises_broken_pipe_as_print_does(monkeypatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        logging.getLogger("funmatch.somewhere").info("x")


def test_log_file_gets_each_line_once_and_is_appended_to(tmp_path: Path, capsys) -> None:
    logger = logging.getLogger("funmatch.somewhere")
    for text in ("one", "two"):
        with log.to_file(tmp_path), log.to_file(tmp_path):
            logger.info("  %s", text)
    with log.to_file(tmp_path, rank=1):
        logger.info("other", extra=log.FILE_ONLY)
    logger.info("outside")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(STAMP.match(line) for line in lines)
    assert [STAMP.sub("", line) for line in lines] == ["one", "two"]
    assert (tmp_path / "run.rank1.log").read_text().endswith(": other\n")
    assert capsys.readouterr().out == "  one\n  two\noutside\n"


@pytest.mark.filterwarnings("error")
def test_unwritable_log_file_does_not_end_the_run(tmp_path: Path, capsys) -> None:
    with log.to_file(tmp_path / "nowhere"):
        logging.getLogger("funmatch.somewhere").info("on the console")
    full = Path("/dev/full")
    if full.exists():
        (tmp_path / "run.log").symlink_to(full)
        with log.to_file(tmp_path):
            logging.getLogger("funmatch.somewhere").info("too")
    output = capsys.readouterr()
    assert output.out.startswith("on the console\n")
    assert output.err == ""


def test_log_file_contains_tracebacks_and_interruptions(tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match="broken"), log.to_file(tmp_path):
        raise ValueError("broken")
    with pytest.raises(Interrupted), log.to_file(tmp_path):
        raise Interrupted("SIGTERM", 75, "saved after step 3 of 9")
    text = (tmp_path / "run.log").read_text()
    assert "Traceback (most recent call last):" in text
    assert "ValueError: broken" in text
    assert "WARNING funmatch: interrupted by SIGTERM: saved after step 3 of 9" in text
    assert capsys.readouterr() == ("", "")


def test_callbacks_that_change_steps_or_weights_are_refused(compose) -> None:
    for kind, reason in {
        "EarlyStopping": "give epochs= or steps=",
        "Timer": "give max_time=",
        "StochasticWeightAveraging": "no part of a run's identity",
    }.items():
        given = f"+callbacks.mine._target_=lightning.pytorch.callbacks.{kind}"
        with pytest.raises(UserError, match=reason):
            validation.check(compose(given))
    with pytest.raises(UserError, match=r"callbacks\.mine=3: give callbacks\.mine\._target_"):
        validation.check(compose("+callbacks.mine=3"))
    validation.check(compose("callbacks.progress_bar=null"))
    assert set(compose("~callbacks.progress_bar").callbacks) == {"progress_log"}
    both = compose("callbacks=[default,model_summary]").callbacks
    assert set(both) == {"progress_bar", "progress_log", "model_summary"}
    assert both.model_summary._target_.endswith(RichModelSummary.__name__)


# --- real commands -------------------------------------------------------------------------------


def test_resumed_run_appends_to_its_log(workplace: Path) -> None:
    progress = "callbacks.progress_log.every_s=0"
    stop = inject("SignalAt", step=4, number=15)
    done = command("train", *SHORT, "name=logged", progress, *stop, cwd=workplace)
    assert done.returncode == 75
    assert re.search(r"\n  step 4 of 6, [\d,]+ img/s, val 0\.\d+, 0:00:0\d left\n", done.stdout)
    run = only_run(workplace, "logged")
    first = (run.directory / "run.log").read_text()
    assert "interrupted by SIGTERM: saved after step 4 of 6" in first
    code, out, err = command_here("train", *SHORT, "name=logged", progress, cwd=workplace)
    assert (code, err) == (0, "")
    text = (run.directory / "run.log").read_text()
    assert text.startswith(first)
    lines = text.splitlines()
    assert all(STAMP.match(line) for line in lines)
    assert text.count("command: ") == 2
    resumed = "resuming from step 4 of 6"
    assert f"  {resumed}\n" in out
    assert text.count(resumed) == 1
    assert sum(": step " in line for line in lines) == 6
    assert lines[-1].partition("measured: ")[2].startswith('{"student_val_top1": ')
    assert not list(run.directory.glob("*.log.*")) + list(run.directory.glob("train.log"))

    size = len(text)
    assert command_here("train", *SHORT, "name=logged", cwd=workplace)[0] == 0  # finished before
    assert command_here("evaluate", f"run={run.directory}", "split=val", cwd=workplace)[0] == 0
    assert len((run.directory / "run.log").read_text()) == size


def test_failure_is_one_console_line_and_a_logged_traceback(workplace: Path) -> None:
    given = (*SHORT, "name=logged-failure", *inject("FailAt", seed=0))
    code, _, err = command_here("train", *given, cwd=workplace)
    assert code == 1
    assert err.startswith("error: RuntimeError: a fault was injected (HYDRA_FULL_ERROR=1 shows")
    assert err.count("\n") == 1
    text = (only_run(workplace, "logged-failure").directory / "run.log").read_text()
    assert "ERROR   funmatch: failed\nTraceback (most recent call last):" in text
    assert 'raise RuntimeError("a fault was injected")' in text


def test_dry_run_writes_no_log(workplace: Path) -> None:
    assert command_here("train", *SHORT, "name=dry", "dry_run=true", cwd=workplace)[0] == 0
    assert not (workplace / "logs" / "dry").exists()
    assert not list(workplace.glob("*.log"))


@pytest.mark.slow
def test_each_rank_has_its_own_log(workplace: Path) -> None:
    given = (*SHORT, "name=ranked", "trainer.devices=2", *inject("FailAt", seed=0, rank=1))
    done = command("train", *given, cwd=workplace)
    assert done.returncode == 1
    folder = only_run(workplace, "ranked").directory
    assert "RuntimeError: a fault was injected" in (folder / "run.rank1.log").read_text()
    first = (folder / "run.log").read_text()
    assert "command: " in first
    assert "UserError: rank 1: RuntimeError: a fault was injected" in first
