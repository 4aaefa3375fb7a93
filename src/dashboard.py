"""python src/dashboard.py: saves a view of the runs in W&B."""

from funmatch.cli.command import dashboard

if __name__ == "__main__":
    dashboard()
