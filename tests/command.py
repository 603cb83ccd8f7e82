"""The command, run within the test's own process."""

import contextlib
import io
from typing import NamedTuple

from amx_jax.cli import main


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        """The lines on stderr: each is for the user, none is a traceback."""
        lines = self.err.splitlines()
        assert all(line.startswith("amx: ") and line.isprintable() for line in lines), self.err
        return lines


def amx(*arguments) -> Outcome:
    """What a command says, and with which status it ends."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return Outcome(status, out.getvalue(), err.getvalue())
