"""``python -m tombola`` is the command ``tombola``."""

import sys


def main() -> int:
    """Run the command line; an interrupt while it is still being imported ends it quietly too."""
    try:
        from tombola.cli import main as command

        return command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
