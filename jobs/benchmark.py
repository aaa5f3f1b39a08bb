"""Measure something of medray on this machine: python jobs/benchmark.py [NAME] [ARGUMENTS], e.g. loop --quick."""

from medray.cli import main

if __name__ == "__main__":
    main("bench")
