"""The page of the results, from the CSV files alone: `python benchmarks/paper/analyse.py`."""

import sys
from pathlib import Path
from typing import Annotated

import page
import typer

HERE = Path(__file__).parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    results: Annotated[Path, typer.Argument(help="The folder of results.csv.gz.")] = HERE,
) -> None:
    """Write README.md and its pictures beside results.csv.gz."""
    try:
        print(page.write(results))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    app()
