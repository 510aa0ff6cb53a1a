"""From a command line to the module that does it, and from what that raises to an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lorafleet_operator.errors import LorafleetError


def dispatch(root: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run the command whose `module` the parser names; 0 done, 1 failed, 2 wrongly asked, 130 interrupted."""
    options = root.parse_args(argv)
    try:
        # Imported here, so that no command pays for what only another one needs.
        run: Callable[[argparse.Namespace], int] = import_module(options.module).run
        return run(options)
    except LorafleetError as error:
        print(f"{root.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `lorafleet get | head` is no failure
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
