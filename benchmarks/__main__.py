"""python src/benchmark.py [key=value ...]: measures speed and memory side by side."""

from figures import measure
from funmatch.cli import app

if __name__ == "__main__":
    app.launch("benchmark", measure)
