"""``fit`` on a cluster."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from warmstart.errors import InputError
from warmstart.formats import notice
from warmstart.progress import Progress

if TYPE_CHECKING:
    from warmstart.corpus import Text
    from warmstart.estimators import WarmStartLM


def check_engine(
    engine: str | None, scheduler: str | None, has_corpus: bool, tokenizer: str, others: dict[str, bool]
) -> None:
    """Refuse half of the options of an engine, and those that do not go with it."""
    from warmstart.tokenizer import KINDS

    if (engine is None) != (scheduler is None):
        raise typer.BadParameter("expected --engine dask and --scheduler ADDRESS together, got one of them")
    if engine is None:
        return
    if not has_corpus:
        raise typer.BadParameter("expected CORPUS files with --engine dask, got none")
    if tokenizer in KINDS:
        raise typer.BadParameter(
            f"expected --tokenizer FILE with --engine dask, got {tokenizer}; train one with `warmstart tokenizer`"
        )
    if given := [name for name, is_given in others.items() if is_given]:
        raise typer.BadParameter(f"expected --engine dask without {', '.join(given)}, got both")


def fit_on_dask(
    model: "WarmStartLM",
    sources: "Text",
    scheduler: str,
    tokenizer: str,
    output: Path,
    progress: Progress,
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Count on a cluster, solve here and write the model; return what `fit` reports. Counts of no model are kept."""
    from warmstart import shards

    try:
        from warmstart.distributed import on_dask
    except ImportError as error:
        raise InputError("expected distributed, found none; pip install 'warmstart[distributed]'") from error
    order = model.counted_order
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", dir=output.absolute().parent, ignore_cleanup_errors=True
    )
    with folder as name, on_dask.connected(scheduler) as client:
        path, began = Path(name, "all.stats"), time.perf_counter()
        on_dask.count(client, sources, Path(tokenizer), path, order=order, progress=progress, **reading)
        seconds = {"count": round(time.perf_counter() - began, 3)}
        try:
            shards.solve(shards.Statistic.load(path), model, progress=progress).save_pretrained(output)
        except BaseException:
            kept = path.replace(output.with_name(f"{Path(name).name.lstrip('.')}.stats"))
            notice(f"{kept}: the counts are kept; go on with `warmstart solve`")
            raise
    seconds |= model.report_["seconds"]
    rate = round(model.report_["tokens"] / sum(seconds.values()))
    return {**model.report_, "seconds": seconds, "tokens_per_second": rate}
