"""python src/rerun.py runs=DIR: runs again what failed."""

from funmatch.cli.command import rerun

if __name__ == "__main__":
    rerun()
