"""Judge a model on labelled cases: python jobs/evaluate.py [DATA] [--model NAME@ALIAS | --bundle FOLDER] [--by sex]."""

from medray.cli import main

if __name__ == "__main__":
    main("evaluate")
