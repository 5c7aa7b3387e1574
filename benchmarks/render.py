"""How results become text and pictures: Markdown tables, sections of docs/benchmarks.md, plots of curves."""

import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks import claims
from benchmarks.harness import Results
from bitcipher.files import replacing
from warmstart import figures
from warmstart.errors import InputError

NUMBER = re.compile(r"-?[\d,]+(\.\d+)?( ± [\d.]+)?")


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
    lines = [[cell(value) for value in row] for row in rows]
    numeric = [any(NUMBER.fullmatch(line[i]) for line in lines) for i in range(len(headers))]
    body = "".join(f"| {' | '.join(line)} |\n" for line in [list(headers), *lines])
    head, rest = body.split("\n", 1)
    return f"{head}\n|{'|'.join('---:' if n else '---' for n in numeric)}|\n{rest}"


def rows_table(columns: Mapping[str, str | Callable[[Any], Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of rows; a column is a name in the rows or a function of a row.

    The first column gets the mark of a row (see `Results.mark`), if the row has one.

    Examples
    --------
    >>> rows = [{"name": "a", "loss": 0.5, "mark": " †"}]
    >>> print(rows_table({"model": "name", "loss (nats)": "loss", "perplexity": lambda row: 2.0}, rows), end="")
    | model | loss (nats) | perplexity |
    |---|---:|---:|
    | a † | 0.500 | 2.00 |
    """
    getters = [column if callable(column) else itemgetter(column) for column in columns.values()]
    cells = [[getter(row) for getter in getters] for row in rows]
    for row, line in zip(rows, cells, strict=True):
        line[0] = f"{line[0]}{row.get('mark', '')}"
    return table(list(columns), cells)


def series(rows: Sequence[Mapping[str, Any]], label: str, x: str, y: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return the lines of a panel of `curves`: for every label the values of ``x`` and ``y`` of its rows."""
    groups = {row[label]: [other for other in rows if other[label] == row[label]] for row in rows}
    return {str(name): ([row[x] for row in group], [row[y] for row in group]) for name, group in groups.items()}


def cell(value: Any) -> str:
    """Return a value as text for a table: three significant digits, never fewer than the whole part has.

    Examples
    --------
    >>> [cell(value) for value in (0.12345, 12.345, 12345.6, 14179317, 0.0, 0.09999, 0.00051, -213.9, 1e-7)]
    ['0.123', '12.3', '12,346', '14,179,317', '0', '0.100', '0.000510', '-214', '1e-07']
    """
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
    if not value:
        return "0"
    places = 2 - int(f"{value:.2e}".split("e")[1])
    return f"{value:.2g}" if places > 7 else f"{value:,.{max(0, places)}f}"


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
    styles: Mapping[str, Mapping[str, Any]] | None = None, log: str = "",
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
    log : str
        Axes with a logarithmic scale: "x", "y" or "xy".
    """
    figure, axes = figures.figure(len(panels))
    from matplotlib.ticker import LogFormatter

    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, (abscissa, ordinate) in lines.items():
            axis.plot(abscissa, ordinate, label=label, **(styles or {}).get(label, {}))
        axis.set(title=title, xlabel=x)
        if top is not None:
            axis.set_ylim(top=top)
        for name in log:
            axis.set(**{f"{name}scale": "log"})
            getattr(axis, f"{name}axis").set_major_formatter(LogFormatter())  # 200 in place of 2 times 10 to the 2
            getattr(axis, f"{name}axis").set_minor_formatter(LogFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    axes[0].set_ylabel(y)
    figures.save_figure(figure, path)


def insert(path: Path, name: str, body: str) -> None:
    """Write a body between ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a page, at its end if they are not there."""
    text = _replaced(path.read_text(encoding="utf-8"), name, _filled(body.strip()), path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write(
    docs: Path, name: str, title: str, conclusion: str, body: str, results: Results, bench: str | None = None
) -> None:  # fmt: skip
    """Write the section of a bench in docs/benchmarks.md, stamped, and renew the table of claims and that of contents.

    The section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` and is appended if it is new. It begins with the
    conclusion, one sentence that says what the tables show. ``bench`` is the one that writes it, if it has several.

    Raises
    ------
    InputError
        The section begins and does not end.
    """
    path = docs / "benchmarks.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    empty = "# Benchmarks\n\n<!-- claims -->\n<!-- /claims -->\n\n<!-- contents -->\n<!-- /contents -->\n"
    text = path.read_text(encoding="utf-8") if path.exists() else empty
    stamp = results.stamp(f"python -m benchmarks {bench or name}")
    text = _replaced(text, name, f"## {title}\n\n**{conclusion}**\n\n{_filled(body.strip())}\n\n{stamp}", path)
    with replacing(path) as temporary:
        temporary.write_text(_headed(text, path), encoding="utf-8")


def renew(docs: Path) -> None:
    """Renew the table of claims and that of contents, after a change in `benchmarks.claims`."""
    path = docs / "benchmarks.md"
    text = _headed(path.read_text(encoding="utf-8"), path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _headed(text: str, path: Path) -> str:
    """Return the page with new tables of claims and contents."""
    found = sections(text)
    lines = [f"- {link}: {sentence}" for link, sentence in found.values()]
    text = _replaced(text, "contents", "\n".join(lines), path)
    return _replaced(text, "claims", claims.table(found), path)


def sections(text: str) -> dict[str, tuple[str, str]]:
    r"""Return link and conclusion of every section of docs/benchmarks.md, by its name.

    Examples
    --------
    >>> sections("<!-- speed -->\n## Speed, in words\n\n**It is fast.**\n")
    {'speed': ('[Speed, in words](#speed-in-words)', 'It is fast.')}
    """
    found = re.findall(r"^<!-- (\w+) -->\n## (.*)\n\n\*\*(.*)\*\*$", text, re.M)
    anchors = (
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title, _ in found
    )  # as GitHub makes them
    return {name: (f"[{title}](#{a})", end) for (name, title, end), a in zip(found, anchors, strict=True)}


def _filled(body: str) -> str:
    """Fill the paragraphs of prose to lines of 120 characters."""
    fill = partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    paragraphs = body.split("\n\n")
    return "\n\n".join(text if text.lstrip().startswith(("|", "- ", "#", "!")) else fill(text) for text in paragraphs)


def _replaced(text: str, name: str, body: str, path: Path) -> str:
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begins, rest = text.partition(first)
    _, ends, after = rest.partition(last)
    if begins and not ends:
        raise InputError(f"{path}: expected {last} after {first}, found none; add it or delete both")
    if not begins:
        before, after = text.rstrip("\n") + "\n\n", "\n"
    return f"{before}{first}\n{body}\n{last}{after}"
