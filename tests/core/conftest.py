import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# On tensors this small threads only wait for each other: 100 times longer beside a busy process.
torch.set_num_threads(1)

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Any]:
    """Numbers computed by the authors' released code; reference/README.md gives the tolerances."""

    def load(name: str) -> Any:
        if name.endswith(".json"):
            return json.loads((REFERENCE / name).read_text())
        with np.load(REFERENCE / name) as file:
            return {key: file[key] for key in file.files}

    return load
