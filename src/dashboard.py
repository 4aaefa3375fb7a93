"""python src/dashboard.py: saves a view of the runs in W&B."""

from funmatch.cli.dashboard import dashboard

if __name__ == "__main__":
    dashboard()
