"""The commands, by name: `python src/train.py ...` is `funmatch train ...`."""

import os
import runpy
import sys

from omegaconf import DictConfig

from funmatch.cli import app, evaluation, ranks, session
from funmatch.schema import UserError


def train() -> None:
    """Distils a student, once or for each job of a sweep."""
    session.launch("train", _teach("distil"))


def finetune() -> None:
    """Teaches a network from labels: makes teachers and label-only baselines."""
    session.launch("finetune", _teach("supervise"))


def _teach(way: str) -> session.Teach:
    return lambda cfg, run: ranks.teach(cfg, run, way)


def evaluate() -> None:
    """Measures a finished run again."""
    app.launch("evaluate", evaluation.evaluate)


def export() -> None:
    """Writes a student for others, and compares the file with it."""
    app.launch("export", _export)


def _export(cfg: DictConfig) -> None:
    from funmatch.cli import exporting  # imports torch

    exporting.export(cfg)


def report() -> None:
    """Writes tables and figures over runs."""
    app.launch("report", evaluation.report)


def dashboard() -> None:
    """Saves a view of the runs in W&B."""
    app.launch("dashboard", evaluation.dashboard)


def submit() -> None:
    """Submits training to a SLURM cluster: [RECIPES=a,b] funmatch submit [key=value ...]."""
    os.environ["FUNMATCH_PYTHON"] = sys.executable
    script = app.conf().parent / "slurm" / "submit"
    os.execvp("bash", ["bash", str(script), *sys.argv[1:]])


def benchmark() -> None:
    """Measures speed and memory side by side with a bare loop and other frameworks."""
    folder = app.conf().parent / "benchmarks"
    if not (folder / "__main__.py").is_file():
        app.say(UserError("benchmark: its contenders are in the repository; clone it"), "benchmark")
        raise SystemExit(1)
    runpy.run_path(str(folder), run_name="__main__")


COMMANDS = {
    "train": train,
    "finetune": finetune,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "dashboard": dashboard,
    "submit": submit,
    "benchmark": benchmark,
}


def _typed() -> str:
    """The command in the line that a shell wants to be completed, and takes for the program's."""
    if "COMP_LINE" not in os.environ:  # it is installed, no line is typed yet
        return "train"
    program, _, line = os.environ["COMP_LINE"].partition(" ")
    name, typed, values = line.lstrip().partition(" ")
    if not typed:
        print(*(each for each in COMMANDS if each.startswith(name)))
        raise SystemExit
    os.environ["COMP_LINE"] = f"{program} {values}"
    return name if (app.conf() / f"{name}.yaml").exists() else "train"


def main() -> None:
    """`funmatch COMMAND [key=value ...]`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "-sc":
        COMMANDS[_typed()]()
        return
    if name not in COMMANDS:
        lines = [f"  {command:10} {task.__doc__}" for command, task in COMMANDS.items()]
        print("usage: funmatch COMMAND [-m] [key=value ...]\n" + "\n".join(lines), file=sys.stderr)
        raise SystemExit(0 if name in ("-h", "--help") else 2)
    del sys.argv[1]
    COMMANDS[name]()
