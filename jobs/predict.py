"""Predict images: python jobs/predict.py FILE_OR_FOLDER ... [--model NAME@ALIAS | --bundle FOLDER]."""

from medray.cli import main

if __name__ == "__main__":
    main("predict")
