"""Predict images: python jobs/predict.py FILE_FOLDER_OR_ARCHIVE ... [--model NAME@ALIAS | --bundle FOLDER] [--out OUT].

Run again, it goes on where it was stopped.
"""

from medray.cli import main

if __name__ == "__main__":
    main("predict")
