"""The commands, by name: `python src/train.py ...` is `funmatch train ...`."""

import os
import runpy
import sys

from funmatch.cli.dashboard import dashboard
from funmatch.cli.evaluate import evaluate
from funmatch.cli.export import export
from funmatch.cli.report import report
from funmatch.cli.train import finetune, train
from funmatch.config import compose, explain
from funmatch.config.errors import UserError


def submit() -> None:
    """Submits training to a SLURM cluster: [RECIPES=a,b] funmatch submit [key=value ...]."""
    os.environ["FUNMATCH_PYTHON"] = sys.executable
    script = compose.config_directory().parent / "slurm" / "submit"
    os.execvp("bash", ["bash", str(script), *sys.argv[1:]])


def benchmark() -> None:
    """Measures speed and memory side by side with a bare loop and other frameworks."""
    folder = compose.config_directory().parent / "benchmarks"
    if not (folder / "__main__.py").is_file():
        explain.print_error(
            UserError("benchmark: its contenders are in the repository; clone it"), "benchmark"
        )
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
    """Name of the command whose arguments the shell completes (COMP_LINE)."""
    if "COMP_LINE" not in os.environ:  # it is installed, no line is typed yet
        return "train"
    program, _, line = os.environ["COMP_LINE"].partition(" ")
    name, typed, values = line.lstrip().partition(" ")
    if not typed:
        print(*(each for each in COMMANDS if each.startswith(name)))
        raise SystemExit
    os.environ["COMP_LINE"] = f"{program} {values}"
    return name if (compose.config_directory() / f"{name}.yaml").exists() else "train"


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
