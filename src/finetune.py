"""python src/finetune.py [-m] [key=value ...]: trains a network on labels."""

from funmatch.cli.train import finetune

if __name__ == "__main__":
    finetune()
