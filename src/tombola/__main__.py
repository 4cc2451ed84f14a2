"""``python -m tombola`` is the command ``tombola``."""

import os
import sys


def main() -> int:
    """Run the command line; an interrupt while it is still being imported ends it quietly too."""
    try:
        from tombola.cli.command_line import main as command

        return command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    if sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # which -m puts there; the command runs no code of the current folder
    sys.exit(main())
