"""Write a model for other programs: python jobs/export.py --to onnx|torch|monai --out PATH [--samples IMAGE ...]."""

from medray.cli import main

if __name__ == "__main__":
    main("export")
