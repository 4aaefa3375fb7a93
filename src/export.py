"""python src/export.py run=DIR format=onnx: exports to safetensors, ONNX, torch.export or int8."""

from funmatch.cli.export import export

if __name__ == "__main__":
    export()
