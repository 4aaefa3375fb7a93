"""python src/train.py [-m] [key=value ...]: distils a student."""

from funmatch.cli.command import train

if __name__ == "__main__":
    train()
