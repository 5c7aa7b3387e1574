"""From the statistic of a text to a language model: the experts that were asked for, and the gate that weighs them.

Everything is a function of the statistic: the network reads its documents in the order of their digests. So texts can
be added and taken out, and the model equals that of a text which was counted at once.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from warmstart.classes import ClassModel, token_classes
from warmstart.contexts import CONTEXTS
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey, thresholds_by_length
from warmstart.mixture import Experts, Mixture
from warmstart.near_shallow import Config, Fitter, NearShallowModel, Report
from warmstart.ngrams import LONGEST, NGramCounts, joined
from warmstart.progress import Progress
from warmstart.sample import Solve, fit_mixture
from warmstart.solution import check_settings, class_prior

COUNT_CONTEXTS = ("ngrams", "classes", "cache")


@dataclass(frozen=True)
class Recipe:
    """What to solve.

    Parameters
    ----------
    contexts : tuple of str
        Some of "ngrams", "classes", "cache" and the contexts of the network, see `warmstart.contexts`.
    order : int
        Length of the longest n-grams.
    prune : tuple of int
        See `warmstart.kneser_ney.KneserNey`.
    max_ngrams : int, optional
        In place of ``prune``: n-grams that occur rarely are pruned until at most so many are left.
    classes : tuple of int
        Number of classes of each class model.
    network : dict
        Fields of `warmstart.near_shallow.Config`.
    smoothing, temperature : float or "fit"
        See `warmstart.solution.fit`.
    """

    contexts: tuple[str, ...]
    order: int
    prune: tuple[int, ...] = ()
    max_ngrams: int | None = None
    classes: tuple[int, ...] = (512,)
    network: dict[str, Any] = field(default_factory=dict)
    smoothing: float | str = "fit"
    temperature: float | str = "fit"

    def __post_init__(self) -> None:
        """Refuse what cannot be solved, before a long computation."""
        known = (*COUNT_CONTEXTS, *CONTEXTS)
        unknown = [name for name in self.contexts if name not in known]
        if unknown or not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise InputError(f"contexts: expected some of {', '.join(known)}, once each, got {list(self.contexts)}")
        least = 2 if "classes" in self.contexts else 1
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not least <= self.order <= LONGEST:
            raise InputError(f"order: expected a whole number from {least} to {LONGEST}, got {self.order!r}")
        thresholds_by_length(self.prune, self.order)
        self.config(vocab_size=1, separator=0)
        check_settings(self.smoothing, self.temperature)

    @property
    def counted(self) -> bool:
        """Whether an expert of counts takes part, so that there are weights to fit."""
        return bool(set(self.contexts) & set(COUNT_CONTEXTS))

    @property
    def counted_order(self) -> int:
        """Order of the statistic: that of the n-grams, or pairs for a model of the network alone."""
        return self.order if {"ngrams", "classes"} & set(self.contexts) else min(self.order, 2)

    def config(self, vocab_size: int, separator: int) -> Config | None:
        """Return the shape of the network, None without one."""
        contexts = tuple(name for name in self.contexts if name in CONTEXTS)
        return Config(vocab_size, separator, contexts=contexts, **self.network) if contexts else None


@dataclass
class Solved:
    """A solved language model: the mixture, the network in it, and what was found on the way."""

    network: NearShallowModel | None
    mixture: Mixture
    report: dict[str, Any]


def solve(
    counts: NGramCounts,
    recipe: Recipe,
    workers: int = 1,
    progress: Progress | None = None,
    network: NearShallowModel | None = None,
    device: str | None = None,
) -> Solved:
    """Solve a statistic.

    Parameters
    ----------
    counts : NGramCounts
        Of order ``recipe.counted_order``.
    recipe : Recipe
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    network : NearShallowModel, optional
        A network that is not to be solved, such as a random one.
    device : str, optional
        Device of PyTorch that counts classes and codes, and solves Kneser-Ney and the network. The result does not
        depend on it.
    """
    clock = _Clock()
    config, report, again = recipe.config(counts.vocab_size, counts.separator), {}, None
    if network is not None:
        again = _same(network)
    elif config is not None:
        tokens, borders = joined(counts.documents.all(), counts.separator, counts.vocab_size)
        fitter = Fitter(tokens, borders, counts.levels[0].counts, config, workers=workers, progress=progress)
        fitter.smoothing, fitter.temperature, fitter.device = recipe.smoothing, recipe.temperature, device
        network = fitter.fit()
        report = {"smoothing": fitter.report.smoothing, "temperatures": fitter.report.temperatures}
        report["at_bounds"] = fitter.report.bounds
        clock.seconds |= fitter.report.seconds
        clock.lap()
        again = _like(fitter, counts)
    experts = Experts(counts.separator, class_prior(counts.levels[0].counts), network=network)
    if not recipe.counted:
        return Solved(network, Mixture.alone(experts), report | {"seconds": clock.seconds})
    experts.cache = "cache" in recipe.contexts
    if "ngrams" in recipe.contexts:
        experts.ngrams = KneserNey(counts, thresholds(counts, recipe), device)
        clock.lap("ngrams")
        report |= {"ngrams": experts.ngrams.n_ngrams, "prune": list(experts.ngrams.thresholds)}
        report["discount_fallbacks"] = experts.ngrams.fallbacks
    if "classes" in recipe.contexts:
        experts.classes = tuple(
            ClassModel.of(labels, counts.levels[0].counts, counts, workers=workers, device=device)
            for labels in token_classes(counts, recipe.classes)
        )
        clock.lap("classes")
    mixture, losses = fit_mixture(experts, counts, again, workers, progress)
    clock.lap("gate")
    report["left_out_perplexity"] = {name: float(np.exp(loss)) for name, loss in losses.items()}
    return Solved(network, mixture, report | {"seconds": clock.seconds})


def _same(network: NearShallowModel) -> Solve:
    return lambda _: network


def _like(fitter: Fitter, counts: NGramCounts) -> Solve:
    """Return what solves the same network from other documents, with the smoothing and temperatures of the first."""

    def solve_documents(documents: list[Any]) -> NearShallowModel:
        tokens, borders = joined(documents, counts.separator, counts.vocab_size)
        frequency = np.bincount(tokens[1:], minlength=counts.vocab_size)
        return replace(
            fitter, tokens=tokens, documents=borders, counts=frequency, like=fitter.report, report=Report()
        ).fit()

    return solve_documents


def thresholds(counts: NGramCounts, recipe: Recipe) -> tuple[int, ...]:
    """Return up to which count n-grams of each length are pruned: the lowest number that leaves ``max_ngrams``."""
    if recipe.prune or recipe.max_ngrams is None:
        return recipe.prune
    longer = np.concatenate([level.counts for level in counts.levels[1:]] or [np.zeros(0, np.int64)])
    room = recipe.max_ngrams - counts.vocab_size
    if room < 1:
        raise InputError(
            f"expected room for more than the {counts.vocab_size} tokens among {recipe.max_ngrams} n-grams; "
            "choose a larger preset or a smaller vocabulary"
        )
    limit = 0 if longer.size <= room else int(np.partition(longer, longer.size - room - 1)[longer.size - room - 1])
    return (0, *[limit] * (counts.order - 1))


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = time.perf_counter()

    def lap(self, stage: str | None = None) -> None:
        now = time.perf_counter()
        if stage is not None:
            self.seconds[stage] = now - self.began
        self.began = now
