"""python src/evaluate.py run=DIR: measures a finished run again."""

from funmatch.cli.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
