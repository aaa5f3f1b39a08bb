"""Search settings: python jobs/tune.py [EXPERIMENT] [key=value ...]."""

from medray.cli import main

if __name__ == "__main__":
    main("tune")
