"""The dashboard command: a W&B view whose panels show logged metrics."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands import command, command_here
from test_loggers import SHORT, records

pytest.importorskip("wandb_workspaces")
import wandb

pytestmark = pytest.mark.filterwarnings("ignore")  # of its client, about itself

KEY = "0123456789" * 4
VIEWER = {"id": "1", "username": "me", "entity": "team", "email": "", "flags": "{}", "teams": None}


class Server(ThreadingHTTPServer):
    """Says who is asking, and keeps the views that it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuses, self.views, self.runs = False, [], []  # type: ignore[var-annotated]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/graphql" or self.server.refuses:
            return self.answer(401 if self.server.refuses else 200, {})
        query = json.loads(body)
        if "allViews" in query["query"]:
            (view,) = self.server.views
            edges = [{"node": {**view, "id": "Vm"}}]
            return self.answer(200, {"data": {"project": {"allViews": {"edges": edges}}}})
        if "query Runs(" in query["query"]:
            return self.answer(200, {"data": {"project": runs_page(self.server.runs, query)}})
        if "upsertView" not in query["query"]:
            return self.answer(200, {"data": {"viewer": VIEWER}})
        self.server.views.append(query["variables"])
        view = {"id": "Vm", "name": query["variables"]["name"]}
        return self.answer(200, {"data": {"upsertView": {"view": view, "inserted": True}}})

    def answer(self, code: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


def runs_page(configs: list[dict[str, Any]], query: dict[str, Any]) -> dict[str, Any]:
    """The answer to a query for runs, the newest first."""
    assert query["variables"]["order"] == "-created_at"
    nodes = [
        {
            "name": f"run{number}",
            "config": json.dumps({key: {"value": value} for key, value in config.items()}),
            "summaryMetrics": "{}",
        }
        for number, config in enumerate(configs)
    ]
    edges = [{"node": node, "cursor": node["name"]} for node in nodes]
    return {
        "internalId": "1",
        "runCount": len(nodes),
        "runs": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
    }


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shown(spec: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Metrics in the course of runs, and figures of runs, that a view's panels name."""
    course, figures = set(), set(spec_columns(spec))
    for section in spec["section"]["panelBankConfig"]["sections"]:
        assert section["panels"]
        for panel in section["panels"]:
            settings = panel["config"]
            if panel["viewType"] == "Run History Line Plot":
                course |= {settings["xAxis"], *settings["metrics"]}
            elif panel["viewType"] == "Bar Chart":
                figures |= {*settings["metrics"]}
            elif panel["viewType"] == "Scatter Plot":
                figures |= {settings[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")}
            elif panel["viewType"] == "Media Browser":
                course |= {*settings["mediaKeys"]}
            else:
                table = re.search(r'"(test/[^"]*)"', json.dumps(settings))
                assert table
                course.add(table[1])
    return course, figures


def spec_columns(spec: dict[str, Any]) -> list[str]:
    (runs,) = spec["section"]["runSets"]
    columns = runs["runFeed"]["columnOrder"]
    return [each.removeprefix("summary:") for each in columns if each.startswith("summary:")]


def logged(home: Path, name: str) -> tuple[set[str], set[str], dict[str, Any]]:
    """Metrics, figures and configuration of an offline W&B run."""
    (file,) = (home / "logs" / name).glob("*/wandb/offline-run-*/*.wandb")
    logged_records = records(file)
    history = {i.key or i.nested_key[0] for r in logged_records for i in r.history.item}
    summary = {i.key or i.nested_key[0] for r in logged_records for i in r.summary.update}
    (run,) = [r.run for r in logged_records if r.HasField("run")]
    return history, summary, {i.key: json.loads(i.value_json) for i in run.config.update}


@pytest.fixture
def at_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Requests of this process to W&B go to this server."""
    wandb.teardown()  # what it knows of another server
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    wandb.teardown()


def test_dashboard_panels_show_only_logged_metrics(
    workplace: Path, server: Server, request
) -> None:
    arguments = (*SHORT, "name=seen", "trainer.log_every_n_steps=2")
    assert command("train", *arguments, cwd=workplace).returncode == 0
    history, summary, config = logged(workplace, "seen")
    server.runs = [{}, {"data": "of another program"}, config]

    request.getfixturevalue("at_server")
    code, out, err = command_here("dashboard", "name=seen", cwd=workplace)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{server.address}/team/funmatch\?nw=\w+\n", out)
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("team", "funmatch")
    assert view["displayName"] == "funmatch: seen"
    spec = json.loads(view["spec"])
    course, figures = shown(spec)
    assert course <= history, course - history
    assert figures <= summary, figures - summary
    assert len(course) >= 8
    assert len(figures) >= 8
    grouped = set(re.findall(r'"groupBy": "([^"]*)"', json.dumps(spec)))
    assert grouped == {"recipe.value.name"}
    assert config["recipe"]["name"] == "function_matching"
    assert '"seen"' in json.dumps(spec["section"]["runSets"])  # the group

    name = out.strip().partition("nw=")[2]
    assert command_here("dashboard", f"view={name}", cwd=workplace) == (0, out, "")
    second = server.views[1]
    assert (second["id"], second["displayName"]) == ("Vm", "funmatch: all runs")
    assert shown(json.loads(second["spec"])) == (course, figures)


@pytest.mark.slow
def test_dashboard_panels_follow_the_task_of_the_runs(
    workplace: Path, server: Server, request
) -> None:
    arguments = (*SHORT, "data=digits_ink", "name=ink")
    for script, more in {
        "finetune": ("model=digits_student", "save_as=ink", "logger=none"),
        "train": ("teacher=saved", "teacher.name=ink", "objective=mse"),
    }.items():
        done = command(script, *arguments, *more, cwd=workplace)
        assert done.returncode == 0, done.stderr
    history, summary, config = logged(workplace, "ink")
    server.runs = [config]
    request.getfixturevalue("at_server")
    code, _, err = command_here("dashboard", "name=ink", cwd=workplace)
    assert (code, err) == (0, "")
    course, figures = shown(json.loads(server.views[-1]["spec"]))
    assert course <= history, course - history
    assert figures <= summary, figures - summary
    assert {"student_test_mae", "teacher_test_mae", "rmse_to_teacher"} <= figures
    config["data"]["task"] = {"_target_": "elsewhere.Task"}
    code, _, err = command_here("dashboard", cwd=workplace)
    assert code == 1
    assert "FUNMATCH_ALLOW=elsewhere" in err


def test_missing_or_refused_wandb_key_is_one_line(workplace: Path, server: Server, request) -> None:
    done = command("dashboard", cwd=workplace)
    assert done.returncode == 1
    assert re.fullmatch(r"error: dashboard: W&B: No API key .*WANDB_API_KEY.*\n", done.stderr)
    server.refuses = True
    request.getfixturevalue("at_server")
    code, _, err = command_here("dashboard", cwd=workplace)
    assert code == 1
    assert re.fullmatch(r"error: dashboard: W&B: .*WANDB_API_KEY.*\n", err)
    assert KEY not in err
