"""python src/finetune.py [-m] [key=value ...]: teaches a network from labels."""

from funmatch.cli.train import finetune

if __name__ == "__main__":
    finetune()
