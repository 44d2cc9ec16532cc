"""`python -m portguard` is the command `portguard`, whose entry point this is too."""

import sys


def main() -> None:
    """Load the command and run it. Ctrl-C ends it as click does later: "Aborted!", exit code 1."""
    try:
        # Most of the time until click is in charge goes into this, where Ctrl-C would be a traceback.
        from portguard.cli.main import main as command  # noqa: PLC0415  # inside the try

        command()
    except KeyboardInterrupt:
        sys.stderr.write("\nAborted!\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
