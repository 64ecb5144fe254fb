"""`mixln`, and `python -m mixln`."""

import gc
import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported is one line too.

    Before its last message is printed, Ctrl-C is ignored: Python takes half a second to leave, and would die of the
    signal itself, with another exit status than the one that belongs to the message.

    Until a command runs there is no garbage to collect, and looking for it, then and in leaving, is a fifth of the time
    that `--help` takes.
    """
    gc.disable()
    try:
        from mixln.cli import main as run

        return run(before_leaving=_ignore_interrupts)
    except KeyboardInterrupt:
        _ignore_interrupts()
        print("mixln: interrupted", file=sys.stderr)
        return 130
    finally:
        if not gc.isenabled():  # no command has run
            gc.freeze()
        _ignore_interrupts()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
