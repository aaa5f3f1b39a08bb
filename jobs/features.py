"""Fit classical classifiers to deep features: python jobs/features.py [DATA [key=value ...]] --out FOLDER."""

from medray.cli import main

if __name__ == "__main__":
    main("features")
