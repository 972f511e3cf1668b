"""The command ``qilbee``: a first run on real input, and a look into a store without writing a program.

Results go to standard output, progress and errors to standard error. The exit status is 0 where all went
well, 1 after an error (one line says what happened and what to do), 2 for a command that cannot be
understood, 130 after Ctrl-C.
"""

from qilbee_core.cli.commands import app, main, open_existing, open_to_look, read_settings_as, telling_errors
from qilbee_core.cli.display import moment, say, say_aside, table

__all__ = [
    "app",
    "main",
    "moment",
    "open_existing",
    "open_to_look",
    "read_settings_as",
    "say",
    "say_aside",
    "table",
    "telling_errors",
]
