"""Take the person out of images: python jobs/deid.py IN OUT [--key FILE] [--shift-dates] [--allow-burned-in]."""

from medray.cli import main

if __name__ == "__main__":
    main("deid")
