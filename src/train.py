"""python src/train.py [-m] [key=value ...]: distils a student."""

from funmatch.cli.train import train

if __name__ == "__main__":
    train()
