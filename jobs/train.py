"""Train a model: python jobs/train.py [EXPERIMENT] [key=value ...]."""

from medray.cli import main

if __name__ == "__main__":
    main("train")
