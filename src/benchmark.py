"""python src/benchmark.py [key=value ...]: measures speed and memory side by side."""

from funmatch.cli.main import benchmark

if __name__ == "__main__":
    benchmark()
