"""Installed program ``normkit``; says what to install where its packages are missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from normkit.cli import INTERRUPTED, USAGE
from normkit.errors import OptionError, how_to_install, message
from normkit.kernels import cpu

__all__ = ["main"]

# What the commands need and the layers do not. Imported only once they are known to be here.
PACKAGES = ("typer", "rich")


def main() -> None:
    """Run the command line."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        error = message(
            "the packages of the command line",
            f"an installation without {' and '.join(missing)}",
            how_to_install("cli"),
        )
        print(f"normkit: {error}", file=sys.stderr)
        sys.exit(USAGE)
    try:
        cpu.check_setting()
    except OptionError as error:
        print(f"normkit: {error}", file=sys.stderr)
        sys.exit(USAGE)
    import typer

    from normkit.cli.app import app
    from normkit.cli.console import print_usage_error

    # typer has this class from click, or from its own copy of it.
    usage_error: Any = typer.BadParameter.__base__
    try:
        code = app(prog_name="normkit", standalone_mode=False)
    # Before a command was ready to handle it, or a second time.
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except usage_error as error:
        code = print_usage_error(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
