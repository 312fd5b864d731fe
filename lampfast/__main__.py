"""The command `lampfast`, also `python -m lampfast`."""

import sys

from lampfast import _extras


def main() -> None:
    """Runs the command line, or says which extra it needs."""
    try:
        with _extras.needed("lampfast's command line", "cli", "rich", "typer"):
            from lampfast._cli.app import app
    except _extras.MissingExtraError as error:
        sys.exit(str(error))
    app()


if __name__ == "__main__":
    main()
