"""python src/export.py run=DIR format=onnx: a student for others."""

from funmatch.cli.export import export

if __name__ == "__main__":
    export()
