"""Entry point of `python -m sdistill.report`."""

from sdistill.report.build import main

if __name__ == "__main__":
    main()
