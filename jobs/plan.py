"""Write an experiment that fits a dataset and this machine: python jobs/plan.py DATA [key=value ...] [--out FILE]."""

from medray.cli import main

if __name__ == "__main__":
    main("plan")
