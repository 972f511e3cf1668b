"""The command ``qilbee``: a first run on real input, and a look into a store without writing a program.

Results go to standard output, progress and errors to standard error. The exit status is 0 where all went
well, 1 after an error (one line says what happened and what to do), 2 for a command that cannot be
understood, 130 after Ctrl-C.
"""

from qilbee_core.cli.commands import app, main

__all__ = ["app", "main"]
