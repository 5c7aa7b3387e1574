"""The section of docs/benchmarks.md on the lamp: tables, curves and a sentence from what `benchmarks.lamp` found."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import render
from examples.lamp.experts import RIDGE, SHARPNESS

SOURCES = {"home-assistant/intents": "Home Assistant", "xliuhw/NLU-Evaluation-Data": "HWU64"}
ORDERS = range(5)
AT = (20, 50, 100, 200, 300, 400, 500, 600)
SHOWN = (100, 300, 600)
ERRORS = (0.0, 0.1)  # share of the words that the recogniser gets wrong

Runs = Mapping[tuple[str, float, int], Mapping[str, Any]]  # source, errors and order


def curve(runs: Runs, source: str, errors: float, arm: str, n: int) -> list[float]:
    """Return the macro F1 of an arm in each order, after n interactions."""
    return [runs[source, errors, order]["curves"][arm][AT.index(n)] for order in ORDERS]


def ahead(runs: Runs, other: str) -> str:
    """Return in how many places of the table the mean of the lamp is at least that of another arm, of how many."""
    places = [(source, errors, n) for source in SOURCES for errors in ERRORS for n in SHOWN]
    means = [[statistics.mean(curve(runs, s, e, arm, n)) for arm in ("lamp", other)] for s, e, n in places]
    return f"{sum(own >= its for own, its in means)} of {len(places)}"


def words(settings: Mapping[str, Any]) -> str:
    """Return settings to be read.

    Examples
    --------
    >>> words({"strength": 1.0, "balanced": True})
    'strength 1.0, balanced True'
    """
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def section(
    docs: Path, choices: Mapping[str, tuple[Any, float]], runs: Runs, new: Mapping[str, int], costs: Mapping[str, float]
) -> tuple[str, str]:
    """Draw the curves; return the conclusion and the body of the section."""
    arms = [*next(iter(runs.values()))["curves"]]
    rows, panels = [], {}
    for source, name in SOURCES.items():
        for errors in ERRORS:
            heard = f"{name}, {errors:.0%} of the words misheard" if errors else name
            found = {arm: {n: curve(runs, source, errors, arm, n) for n in AT} for arm in arms}
            rows += [[heard, arm, *(render.spread(found[arm][n]) for n in SHOWN)] for arm in arms]
            panels[heard] = {arm: ([*AT], [statistics.mean(found[arm][n]) for n in AT]) for arm in arms}
    render.curves(docs / "images" / "lamp_curve.png", panels, "interactions", "macro F1 on other sources")
    first = [[name, *(runs[source, 0.0, order]["first"] for order in ORDERS)] for source, name in SOURCES.items()]
    acts = [run for (_, errors, _), run in runs.items() if not errors]
    right, wrong = (sum(run[name] for run in acts) for name in ("right", "wrong"))
    conclusion = (
        "Taught by a switch and tested on the sentences of other sources, the lamp is at least as good as logistic "
        f"regression with its usual settings in {ahead(runs, 'logistic regression')} places of the table, and as one "
        f"whose settings were chosen like its own in {ahead(runs, 'logistic regression, chosen')}."
    )
    body = f"""A person with a switch plays the sentences of one source, and flips late in 5 % of the cases and the
wrong way in 3 %. The lamp and the baselines get the same lessons. Macro F1 of on, off and none on the sentences of all
other sources after so many interactions; mean and deviation of {len(ORDERS)} orders.

{render.table(["source", "arm", *map(str, SHOWN)], rows)}
A list of keywords that learns nothing is no better than the lamp in {ahead(runs, "keywords")} places.

![Macro F1 over interactions](images/lamp_curve.png)

Settings are chosen with the validation sentences of the other sources, which the table leaves out, 8 tries each; the
lamp of the table has its defaults, sharpness {SHARPNESS} and ridge {RIDGE}, which were found by hand before, with
sentences of all sources:

{render.table(["arm", "chosen", "macro F1"], [[name, words(at), f1] for name, (at, f1) in choices.items()])}
The interaction with the first right action by itself, in each order:

{render.table(["source", *(f"order {order + 1}" for order in ORDERS)], first)}
By itself the lamp did the right thing {right:,} times and the wrong one {wrong:,} times in these {len(acts)} orders of
{max(AT)} interactions. How often a new phrase is taught before the lamp acts on it, after 100 other lessons:

{render.table(["phrase", "lessons"], [[phrase, times] for phrase, times in new.items()])}
The application itself: {costs["said"]:,.0f} interactions, a random process killed {costs["kills"]:.0f} times,
{costs["lost"]:.0f} lost, {costs["doubled"]:.0f} doubled, {costs["flips_refused"]:.0f} flips refused. An update takes
{costs["update_ms"]:.0f} ms at the median, {costs["slow_update_ms"]:.0f} ms in the slowest hundredth; a prediction
{costs["guess_ms"]:.1f} and {costs["slow_guess_ms"]:.1f} ms. The anticipator and the trainer have
{costs["memory_mib"]:.0f} MiB of memory together.
"""
    return conclusion, body
