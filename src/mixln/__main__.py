"""`mixln`, and `python -m mixln`."""

import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported is one line too.

    When it has ended, Ctrl-C is ignored: Python takes half a second to leave, and would die of the signal itself, with
    another exit status than the one that belongs to the message.
    """
    try:
        from mixln.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("mixln: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
