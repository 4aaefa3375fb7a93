"""Real commands, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What results do not depend on; one thread, for many commands share the machine under test.
QUICK = ("logger=none", "trainer.threads=1", "trainer.accelerator=cpu")


def environment(home: Path, **more: str) -> dict[str, str]:
    """What this process was given, less what would steer a command from outside."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA", "PYTHON"))}
    return {**keep, "PYTHONPATH": str(ROOT / "tests"), "HOME": str(home), **more}


def command(
    script: str, *overrides: str, cwd: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a real command, as a user would, from any directory."""
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{script}.py"), *overrides],
        cwd=cwd,
        env=environment(cwd, **more),
        capture_output=True,
        text=True,
        timeout=280,
    )
