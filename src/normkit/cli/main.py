"""The installed program ``normkit``; says what to install where its packages are missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from normkit.cli import INTERRUPTED, USAGE
from normkit.errors import message

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
            "pip install 'normkit[cli]'",
        )
        print(f"normkit: {error}", file=sys.stderr)
        sys.exit(USAGE)
    from normkit.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        # Before a command was ready to handle it, or a second time.
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
