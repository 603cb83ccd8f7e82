"""What every command of ``amx`` says, and with which exit status it ends."""

import json
import sys
from typing import Any

from rich.console import Console

from amx_jax.data.results import plain

DONE, PARTLY, NOTHING, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def outcome(done: int, total: int) -> int:
    """The exit status where ``done`` of ``total`` photos gave a result."""
    return DONE if done == total else PARTLY if done else NOTHING


def complain(reason: object) -> None:
    """One line on stderr."""
    print(f"amx: {reason}", file=sys.stderr)


def show_json(value: Any) -> None:
    """Strict JSON on stdout, in ASCII: no terminal's encoding can spoil it."""
    Console().out(json.dumps(plain(value), allow_nan=False, indent=2), highlight=False)
