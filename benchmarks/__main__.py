"""The command of the benches: ``python -m benchmarks NAME`` from a checkout."""

import json
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks import needs
from benchmarks.harness import ROOT
from warmstart.errors import InputError
from warmstart.progress import Reporter


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(needs.BENCHES)}, or all.")],
    docs: Annotated[Path, typer.Option(help="Folder for benchmarks.md, results/ and images/.")] = ROOT / "docs",
    quick: Annotated[bool, typer.Option(help="Run shortly on a little data and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each bench.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure, and write tables and plots to docs/benchmarks.md.

    The data sets are read from the folder WARMSTART_DATA, by default ../shared/data. If KENLM is a folder with KenLM's
    programs, `lm` measures them too. Kept results are not measured again.
    """
    try:
        if name not in (*needs.BENCHES, "all"):
            raise InputError(f"expected one of {', '.join(needs.BENCHES)} or all, got {name!r}")
        if name != "all":
            needs.check(name, quick)
        for each in needs.able(quick) if name == "all" else [name]:
            with Reporter(quiet) as progress, TemporaryDirectory(prefix="benchmarks-") as folder:
                data = needs.cut(each, Path(folder)) if quick else needs.data_folder()
                result = import_module(f"benchmarks.{each}").run(data, docs, quick, progress)
            if as_json:
                typer.echo(json.dumps({"bench": each, **result}))
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
