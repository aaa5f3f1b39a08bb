"""Show what of an image speaks for a class: python jobs/explain.py IMAGE ... --out FOLDER [--method NAME]."""

from medray.cli import main

if __name__ == "__main__":
    main("explain")
