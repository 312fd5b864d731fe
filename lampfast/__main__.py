"""The command `lampfast`, also `python -m lampfast`."""

import sys


def main() -> None:
    """Runs the command line, or says which extra it needs."""
    try:
        from lampfast._cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(
            f"lampfast: the command line needs {error.name}, which is not installed. Install "
            "lampfast with its extra 'cli'; in its source folder: pip install '.[cli]'"
        )
    app()


if __name__ == "__main__":
    main()
