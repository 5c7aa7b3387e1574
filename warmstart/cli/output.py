"""How results are shown: as a table, or as one JSON object."""

import json
from typing import Any

import typer


def print_result(result: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Print a result as JSON, or as a table unless it shall be quiet."""
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        rows = []
        for name, value in result.items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                rows.append([f"{name} {key}".strip().replace("_", " "), shown(item)])
        print_table(rows)


def print_table(rows: list[list[str]], header: list[str] | None = None) -> None:
    """Print rows of text, with a line of headers if there is one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(header or []), show_header=header is not None, box=None)
    for row in rows:
        table.add_row(*map(Text, row))  # in plain strings brackets are markup
    Console().print(table)


def shown(value: Any) -> str:
    """Return a value as text for a table: fractions with three significant digits, whole numbers with all."""
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, float):
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
