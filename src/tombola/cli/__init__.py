"""The command line: words in, a call, an answer out."""

from tombola.cli.command_line import main

__all__ = ["main"]
