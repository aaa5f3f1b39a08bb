"""Find what would spoil a training: python jobs/check.py DATA [key=value ...] [--out FOLDER]."""

from medray.cli import main

if __name__ == "__main__":
    main("check")
