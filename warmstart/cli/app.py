"""The application that the commands belong to, and what stands before them: ``--version`` and ``--debug``."""

from typing import Annotated

import typer

from warmstart import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"warmstart {__version__}")
        raise typer.Exit


@app.callback()
def warmstart(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True, help="Show the traceback of an error.")] = False,
) -> None:
    """Language models without a gradient: count a corpus once, solve the counts, and train a network beside them."""
