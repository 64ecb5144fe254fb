"""`mixln`, and `python -m mixln`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported is one line too."""
    try:
        from mixln.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("mixln: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
