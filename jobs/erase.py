"""Remove a person from what medray keeps: python jobs/erase.py --subject ID [--dry-run]."""

from medray.cli import main

if __name__ == "__main__":
    main("erase")
