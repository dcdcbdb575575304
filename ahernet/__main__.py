"""Where `ahernet` and `python -m ahernet` begin: an interrupt is one line also while the command line is loaded."""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from ahernet.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("ahernet: error: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
