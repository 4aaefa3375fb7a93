"""python src/report.py runs=DIR: tables and figures over runs."""

from funmatch.cli.report import report

if __name__ == "__main__":
    report()
