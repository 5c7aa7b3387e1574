"""How results become text and pictures: Markdown tables, sections of docs/benchmarks.md, plots of curves."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Results
from bitcipher.files import replacing
from warmstart import figures
from warmstart.errors import InputError


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table: columns of numbers to the right, three significant digits, None as a dash.

    Examples
    --------
    >>> print(table(["model", "nats"], [["a", 0.51234], ["b", None]]), end="")
    | model | nats |
    |---|---:|
    | a | 0.512 |
    | b | - |
    """
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    lines = [[cell(value) for value in row] for row in rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in [list(headers), *lines])
    head, rest = body.split("\n", 1)
    return f"{head}\n|{'|'.join('---:' if n else '---' for n in numeric)}|\n{rest}"


def cell(value: Any) -> str:
    """Return a value as text for a table.

    Examples
    --------
    >>> cell(0.12345), cell(12.345), cell(12345.6), cell(14179317), cell(0.0)
    ('0.123', '12.3', '12,346', '14,179,317', '0')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return digits(value)
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def digits(value: float, significant: int = 3) -> str:
    """Return a number with so many significant digits, never fewer than its whole part has.

    Examples
    --------
    >>> digits(4.8771), digits(4.8771, 4), digits(0.00051), digits(-213.9), digits(1e-7)
    ('4.88', '4.877', '0.000510', '-214', '1e-07')
    """
    if not value:
        return "0"
    places = significant - 1 - int(f"{value:e}".split("e")[1])
    if places > 7:
        return f"{value:.{significant - 1}g}"
    return f"{value:,.{max(0, places)}f}"


def nats(value: float | None) -> str:
    """Return a cross-entropy with three decimals: differences of 0.005 between arms are read from these columns.

    Examples
    --------
    >>> nats(4.87712), nats(None)
    ('4.877', '-')
    """
    return "-" if value is None else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation over seeds in nats; the value itself for one seed.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0]), spread([1.0])
    ('2.000 ± 1.000', '1.000')
    """
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def curves(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Any, Any]]], x: str, y: str, top: float | None = None,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Draw panels of curves as one PNG.

    Parameters
    ----------
    path : Path
    panels : mapping of title to mapping of label to (x, y)
    x, y : str
        Labels of the axes.
    top : float, optional
        Upper end of the vertical axis.
    styles : mapping of label to keywords of matplotlib's ``plot``, optional
    """
    figure, axes = figures.figure(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, (abscissa, ordinate) in lines.items():
            axis.plot(abscissa, ordinate, label=label, **(styles or {}).get(label, {}))
        axis.set(title=title, xlabel=x, ylim=(None, top))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    axes[0].set_ylabel(y)
    figures.save_figure(figure, path)


def write(docs: Path, name: str, title: str, conclusion: str, body: str, results: Results) -> None:
    """Write the section of a bench in docs/benchmarks.md, stamped, and renew the table of contents.

    Parameters
    ----------
    docs : Path
    name : str
        Of the bench; the section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` and is appended if it is new.
    title : str
    conclusion : str
        One sentence: what the tables say.
    body : str
    results : Results

    Raises
    ------
    InputError
        The section begins and does not end.
    """
    path = docs / "benchmarks.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n\n<!-- contents -->\n<!-- /contents -->\n"
    )
    stamp = results.stamp(f"python -m benchmarks {name}")
    text = _replaced(text, name, f"## {title}\n\n**{conclusion}**\n\n{body.strip()}\n\n{stamp}", path)
    titles = re.findall(r"^## (.*)\n\n\*\*(.*)\*\*$", text, re.M)
    lines = [f"- [{each}](#{_anchor(each)}): {sentence}" for each, sentence in titles]
    text = _replaced(text, "contents", "\n".join(lines), path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _replaced(text: str, name: str, body: str, path: Path) -> str:
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begins, rest = text.partition(first)
    _, ends, after = rest.partition(last)
    if begins and not ends:
        raise InputError(f"{path}: expected {last} after {first}, found none; add it or delete both")
    if not begins:
        before, after = text.rstrip("\n") + "\n\n", "\n"
    return f"{before}{first}\n{body}\n{last}{after}"
