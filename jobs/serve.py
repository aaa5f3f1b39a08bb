"""Serve the champion over HTTP: python jobs/serve.py [--model NAME@ALIAS]."""

from medray.cli import main

if __name__ == "__main__":
    main("serve")
