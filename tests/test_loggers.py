"""Metric loggers: CSV, W&B, TensorBoard and MLflow."""

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as pb

from commands import command, command_here, environment, new_process
from faults import inject
from funmatch.training.loggers.csv import CsvLogger

SHORT = (
    "steps=4",
    "schedule.warmup_steps=1",
    "compute.threads=1",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
)


def test_csv_logger_truncates_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": step / 10}, step)
    logger.log_metrics({"val/student_top1": 0.5}, 30)  # a new column, known rows stay
    assert path.read_text().splitlines() == [
        "step,train/loss,val/student_top1",
        "10,1.0,",
        "20,2.0,",
        "30,3.0,0.5",
    ]
    resumed = CsvLogger(path, step=20)
    resumed.log_metrics({"train/loss": 9.0}, 30)
    assert path.read_text().splitlines()[1:] == ["10,1.0,", "20,2.0,", "30,9.0,"]
    resumed.log_metrics({"val/student_top1": 0.25}, 30)
    inode = path.stat().st_ino
    resumed.log_metrics({"val/student_top1": 0.5}, 30)  # validated again after a kill
    assert path.read_text().splitlines()[1:] == ["10,1.0,", "20,2.0,", "30,9.0,0.5"]
    assert path.stat().st_ino == inode  # not all of a long file is written again
    assert CsvLogger(path).name == "csv"  # a run that starts anew starts with an empty file
    assert path.read_text().splitlines() == ["step"]


def records(path: Path) -> list[pb.Record]:
    """What an offline W&B run holds: protobuf records in LevelDB's log format."""
    data, offset, parsed, part = path.read_bytes(), 7, [], b""
    assert data.startswith(b":W&B")
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:  # a record never begins in the last bytes of a block
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        part += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed.append(pb.Record.FromString(part))
            part = b""
    return parsed


@pytest.mark.fault(15)
def test_wandb_without_key_logs_offline_and_reports_it_once(workplace: Path) -> None:
    arguments = ("-m", "recipe=consistent,function_matching", *SHORT, "name=keyless")
    done = command("train", *arguments, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("W&B logs offline (no API key)") == 1
    assert "wandb sync logs/keyless/*/wandb/offline-run-*" in done.stdout

    files = sorted((workplace / "logs" / "keyless").glob("*/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    ids = set()
    for file in files:  # each job in a run of its own
        logged = records(file)
        (run,) = [r.run for r in logged if r.HasField("run")]
        ids.add(run.run_id)
        assert run.run_group == "keyless"
        assert run.job_type in ("consistent", "function_matching")
        assert list(run.tags) == [run.job_type, "data=digits", "teacher=digits", "student=digits"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["recipe"]["name"] == run.job_type
        history = [r.history for r in logged if r.HasField("history")]
        keys = {item.key or item.nested_key[0] for h in history for item in h.item}
        assert {"train/loss", "val/student_top1", "test/student_top1"} <= keys
        shown = {"views", "test/predictions"}
        shown |= {f"test/student_against_{other}_table" for other in ("label", "teacher")}
        assert shown <= keys, keys
        media = {path.name.partition("_")[0] for path in file.parent.rglob("*.png")}
        assert media == {"views"}
        assert any(r.HasField("exit") and r.exit.exit_code == 0 for r in logged)
    assert len(ids) == 2


@pytest.mark.slow
def test_resumed_run_continues_the_same_wandb_run(workplace: Path) -> None:
    given = (*SHORT, "name=twice", "checkpoint_every=1", "logger.wandb.artifact=true")
    stop = inject("SignalAt", step=2, number=15)
    assert command("train", *given, *stop, cwd=workplace).returncode == 75
    assert command("train", *given, cwd=workplace).returncode == 0
    folders = sorted((workplace / "logs" / "twice").glob("*/wandb/offline-run-*"))
    assert len(folders) == 2
    steps, ids, views, artifacts = [], set(), 0, []
    for folder in folders:
        logged = records(next(folder.glob("*.wandb")))
        ids |= {r.run.run_id for r in logged if r.HasField("run")}
        for record in logged:
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            views += "views" in items
            if "train/loss" in items:
                steps.append(int(items["trainer/global_step"]))
        artifacts += [r.request for r in logged if r.HasField("request")]
    assert len(ids) == 1
    assert steps == [2, 4]
    assert views == 1  # of the first step, which was taken once
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--yes", "--dry-run", *map(str, folders)],
        cwd=workplace,
        env=environment(workplace, WANDB_API_KEY="0" * 40),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert output.count("offline-run-") == 2, output


def test_tensorboard_logs_each_step_once_after_a_kill(workplace: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    given = (*SHORT, "logger=tensorboard", "name=board", "checkpoint_every=1")
    stop = inject("SignalAt", step=3, number=9)
    assert command("train", *given, *stop, cwd=workplace).returncode == -9
    code, _, err = command_here("train", *given, cwd=workplace)
    assert (code, err) == (0, "")
    (folder,) = (workplace / "logs" / "board").glob("*/tensorboard")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert "test/student_top1" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["views"]


def test_missing_mlflow_is_one_line_with_pip_command(workplace: Path, monkeypatch) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    given = (*SHORT, "logger=mlflow", "name=no_mlflow")
    code, _, err = command_here("train", *given, cwd=workplace)
    assert code == 1
    assert err == "error: logger=mlflow: mlflow is not installed; pip install 'funmatch[mlflow]'\n"


def test_resumed_run_continues_the_same_mlflow_run(workplace: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs funmatch[mlflow]")
    given = (*SHORT, "logger=mlflow", "name=flow", "checkpoint_every=1")
    stop = inject("SignalAt", step=2, number=15)
    done = command("train", *given, *stop, cwd=workplace)
    assert done.returncode == 75, done.stderr
    client = tracking.MlflowClient((workplace / "logs" / "mlflow").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "flow"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    code, _, err = command_here("train", *given, "compute.workers=1", cwd=workplace)
    assert (code, err) == (0, "")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [2, 4]
    assert run.data.tags["data"] == "digits"
    assert run.data.tags["recipe"] == run.data.params["recipe/name"] == "function_matching"
    result = json.loads(next((workplace / "logs" / "flow").glob("*/summary.json")).read_text())
    score = run.data.metrics["summary/student_test_top1"]
    assert score == pytest.approx(result["student_test_top1"])
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"views.png", "predictions.csv"}
    assert not (workplace / "mlruns").exists()


def test_unusable_mlflow_uri_is_one_line(workplace: Path) -> None:
    pytest.importorskip("mlflow", reason="needs funmatch[mlflow]")
    (workplace / "a_file").touch()
    uri = "logger.mlflow.tracking_uri=file:a_file"
    given = (*SHORT, "logger=mlflow", "name=no_store", uri)
    code, _, err = command_here("train", *given, cwd=workplace)
    assert code == 1
    assert err.startswith("error: logger.mlflow.tracking_uri=file:///")
    assert err.count("\n") == 1


def test_lost_mlflow_store_does_not_end_the_run(workplace: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="needs funmatch[mlflow]")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger.log_metrics", fail)
    code, out, err = command_here("train", *SHORT, "logger=mlflow", "name=lost", cwd=workplace)
    assert (code, err) == (0, "")
    assert out.count("MLflow: logging stopped (no route); metrics.csv continues") == 1


def test_old_and_new_logger_names_are_equivalent(compose) -> None:
    assert compose("logger=csv").logger == compose("logger=none").logger == {}
    assert set(compose("logger=many").logger) == {"wandb", "tensorboard"}
    assert compose("logger=both").logger == compose("logger=many").logger


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.slow
@pytest.mark.fault(15)
def test_unreachable_wandb_server_is_tried_once_per_sweep(
    workplace: Path, deaf_server: str
) -> None:
    done = command(
        "train",
        *("-m", "recipe=consistent,function_matching", *SHORT, "name=deaf"),
        "logger.wandb.timeout=2",
        cwd=workplace,
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL=deaf_server,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B logs offline (the server did not answer within 2 s)") == 1
    assert len(list((workplace / "logs" / "deaf").glob("*/wandb/offline-run-*/*.wandb"))) == 2


@pytest.mark.slow
def test_failed_job_ends_its_wandb_run_with_exit_code_1(workplace: Path) -> None:
    fault = inject("FailAt", seed=0)
    arguments = ("-m", "seed=0,1", *SHORT, "name=half", *fault)
    done = command("train", *arguments, cwd=workplace)
    assert done.returncode == 1
    codes = {}
    for file in (workplace / "logs" / "half").glob("*/wandb/offline-run-*/*.wandb"):
        logged = records(file)
        (run,) = [r.run for r in logged if r.HasField("run")]
        codes[run.display_name.split("-")[1]] = [
            r.exit.exit_code for r in logged if r.HasField("exit")
        ]
    assert codes == {"s0": [1], "s1": [0]}


@pytest.mark.slow
def test_wandb_key_is_read_from_env_file_and_never_written(
    workplace: Path, deaf_server: str
) -> None:
    (workplace / ".env").write_text(f"WANDB_API_KEY={'1' * 40}\nWANDB_BASE_URL={deaf_server}\n")
    try:
        arguments = (*SHORT, "name=dotenv", "logger.wandb.timeout=2")
        done = new_process("train", *arguments, cwd=workplace)  # read before wandb is imported
    finally:
        (workplace / ".env").unlink()
    assert done.returncode == 0, done.stderr
    assert "the server did not answer" in done.stdout  # so there was a key
    for path in (workplace / "logs" / "dotenv").rglob("*"):
        if path.is_file():
            assert b"1" * 40 not in path.read_bytes(), path
