"""Warm start of decoders with a residual stream (GPT-2, Llama, GPT-NeoX and others): they start as a bigram model.

The embedding and the head hold a bigram model of low rank (`warmstart.spectral`). The output projections of the blocks
are zero, so at step 0 the network is that model. All other weights keep their own initialisation.

Families differ in what they do on the way: a norm that multiplies by ``1 + weight``, a scaled embedding, scaled logits.
So the way is measured, by a run of the model on a few tokens with the new weights:

    x_final = c E[ids],    logits = a norm(x_final) W^T

The head takes up c and a. A second run compares the logits with the formula, ``A B^T + log p`` up to a constant for
each row. Only then are the weights written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmstart.adapters import heads as previous_token
from warmstart.adapters import memories
from warmstart.adapters.norms import CLOSE, Norm, measure
from warmstart.adapters.parts import Parts, find_parts, run, unwrapped
from warmstart.adapters.report import LoadReport
from warmstart.counts import PairStatistics
from warmstart.errors import InputError
from warmstart.ngrams import NGramCounts, vocabulary_digest
from warmstart.progress import Progress
from warmstart.spectral import Factors, Residual, factorise, residual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCALE = 0.2  # standard deviation of an embedding row; see `python -m benchmarks transformers`
POSITION_SCALE = 0.1  # standard deviation of learned positions, in units of the scale
MAX_PADDING = 1024  # largest number of padded rows in a vocabulary
PADDING_GAP = 30.0  # nats by which padded rows are below the rarest token
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CAP = "final_logit_softcapping"  # its name in the configuration of Gemma
VERIFIED = 8  # tokens in a run of the model
TOLERANCE = 0.01  # nats, root mean square


def load_into(
    model: nn.Module,
    statistics: NGramCounts | PairStatistics | Factors,
    *,
    parts: Parts | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scale: float = SCALE,
    heads: int | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Make a decoder start as a bigram model of a text.

    Parameters
    ----------
    model : nn.Module
        A decoder of ``transformers``, or another one with ``parts``, also inside `torch.compile`. It is changed in
        place, after all checks. A tied head gets its own weights, because one table cannot hold which token follows
        which. A soft cap of the logits (Gemma 2) is switched off. ``python -m benchmarks families`` tries all families.
    statistics : NGramCounts, PairStatistics or Factors
        See `warmstart.ngrams.count_ngrams`, `warmstart.counts.count_pairs` and `warmstart.spectral.factorise`.
    parts : Parts, optional
        Names of the modules. Default: found by `warmstart.adapters.parts.find_parts`.
    tokenizer : PreTrainedTokenizerBase, optional
        The model's tokenizer. It is compared with the tokenizer of the statistics.
    scale : float
        Standard deviation of the embedding rows. With Adam, smaller rows change faster.
    heads : int, optional
        Number of heads of the first layer that start by attending to the previous token, in GPT-2 and models of
        Llama's kind (groups of heads where heads share keys). Default: half of them. 0: none, as for ``parts``.
        After `replace_attention`: number of heads of the first memory that start as a cache of which token follows
        which. Default: all.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Returns
    -------
    LoadReport
        The notes give rank, exponents, number of refits and the cross-entropy of held-out pairs.

    Raises
    ------
    InputError
        The model lacks these parts, its logits are not those of the formula (the message says what differs), its head
        cannot be untied, its width is too small, the vocabulary is another one, or the model is wrapped, sharded,
        quantised or on the meta device. The model is unchanged.

    References
    ----------
    Levy and Goldberg 2014 (NeurIPS); Williams and Zhao 2023, arXiv 2311.07498 (softmax layer).

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from warmstart.counts import count_pairs
    >>> tokens = np.cumsum(np.random.default_rng(0).integers(0, 4, 200_000)) % 64  # one of four follows a token
    >>> config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    >>> model = GPT2LMHeadModel(config)
    >>> load_into(model, count_pairs(tokens, 64)).untied
    ('lm_head.weight',)
    >>> ids = torch.from_numpy(tokens[None, :512])
    >>> loss = model(input_ids=ids, labels=ids).loss.item()  # at best log(4); log(64) without knowledge
    >>> loss < 1.7, np.log([4, 64]).round(1).tolist()
    (True, [1.4, 4.2])
    """
    model = unwrapped(model)
    if parts is not None and heads:
        raise InputError(f"heads: expected none for a model given by its parts, got {heads}; leave heads out")
    decoder = _Decoder(model, parts or find_parts(model))
    if not np.isfinite(scale) or scale <= 0:
        raise InputError(f"scale: expected a finite number above 0, got {scale}")
    if isinstance(statistics, NGramCounts):
        statistics = PairStatistics.of(statistics)
    if isinstance(statistics, PairStatistics) and tokenizer is not None:
        _check_vocabulary(statistics, tokenizer)
    plan = None if parts else memories.plan(model, heads) or previous_token.plan(model, heads)
    spare, share = (plan.spare, plan.share) if plan else (0, 0.0)
    width = decoder.embedding.embedding_dim
    _check_rows(decoder, statistics)
    if isinstance(statistics, PairStatistics):
        rank = min(width - 2 - decoder.norm.centred - spare, statistics.vocab_size - 1)
        statistics = factorise(statistics, rank, progress=progress)
    place = partial(
        residual, statistics, width, scale=scale, centred=decoder.norm.centred, spare=spare, spare_share=share
    )
    with decoder.without_cap():
        c, a = decoder.measure(place(eps=decoder.norm.eps), statistics)
        placed = place(eps=decoder.norm.eps / c**2)
        values = decoder.values(replace(placed, W=placed.W / a), statistics)
        decoder.verify(
            values, statistics, gain=float(np.sqrt(1 + share**2 / (1 + decoder.norm.eps / (c * scale) ** 2)))
        )
        untied = decoder.untie()
        decoder.write(values)
    loaded = list(values)
    if plan:
        loaded += plan.write(placed, scale)
    if decoder.positions is not None and f"{decoder.parts.positions}.weight" not in loaded:
        loaded += [decoder.shrink_positions(POSITION_SCALE * scale)]
    names = [name for name, _ in model.named_parameters()]
    return LoadReport(
        loaded=tuple(name for name in names if name in loaded),
        missing=tuple(name for name in names if name not in loaded),
        untied=(decoder.parts.head + ".weight",) if untied else (),
        notes=(*_notes(statistics), *([plan.note] if plan else []), *decoder.notes(len(statistics.A), untied)),
    )


def _notes(factors: Factors) -> list[str]:
    a, b = factors.exponents
    if factors.held_out_loss is None:
        return [
            f"bigram model of rank {factors.rank}, exponents {a} and {b} and no refits: defaults, because a text below "
            "131,072 tokens has no held-out pairs to choose by"
        ]
    return [
        f"bigram model of rank {factors.rank}, {factors.held_out_loss:.3f} nats on held-out pairs of frequent tokens",
        f"exponents {a} and {b}, {factors.sweeps} refits",
    ]


def _check_vocabulary(statistics: PairStatistics, tokenizer: PreTrainedTokenizerBase) -> None:
    if statistics.vocabulary and statistics.vocabulary != vocabulary_digest(tokenizer.get_vocab()):
        raise InputError(
            "expected statistics made with the tokenizer of the model, got those of another vocabulary; "
            "encode the text with this tokenizer and count again"
        )


def _check_rows(decoder: _Decoder, statistics: PairStatistics | Factors) -> None:
    size = statistics.vocab_size if isinstance(statistics, PairStatistics) else len(statistics.A)
    rows = {decoder.embedding.num_embeddings, decoder.head.out_features}
    if len(rows) > 1 or not size <= max(rows) <= size + MAX_PADDING:
        raise InputError(
            f"expected an embedding and a head of {size} rows, one for each token of the statistics, or up to "
            f"{MAX_PADDING} more; got {decoder.embedding.num_embeddings} and {decoder.head.out_features}; "
            "count with the model's tokenizer"
        )


class _Decoder:
    """The parts of a model, checked."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        self.model, self.parts = model, parts
        self.embedding = self._module(parts.embedding, nn.Embedding)
        self.head = self._module(parts.head, nn.Linear)
        self.positions: Any = self._module(parts.positions, nn.Embedding) if parts.positions else None
        self.final: nn.Module = self._module(parts.norm, nn.Module)
        if self.embedding.embedding_dim != self.head.in_features:
            raise InputError(
                f"expected an embedding and a head of one width, got {self.embedding.embedding_dim} and "
                f"{self.head.in_features}"
            )
        patterns = parts.outputs
        self.outputs = [
            name
            for name, _ in model.named_parameters()
            if any(fnmatchcase(part, pattern) for part in (name, name.rpartition(".")[0]) for pattern in patterns)
        ]
        if patterns and not self.outputs:
            raise InputError(f"expected output projections named {', '.join(patterns)}, found none")
        for name in (f"{parts.embedding}.weight", f"{parts.head}.weight", *self.outputs):
            if (dtype := self._parameter(name).dtype) not in FLOATS:
                raise InputError(f"{name}: expected {', '.join(map(str, FLOATS))}, got {dtype}; load before quantising")
        self.norm: Norm = measure(parts.norm, self.final, self.embedding.weight)
        self.cap: float | None = None
        self.factors = 1.0, 1.0

    def _module(self, name: str, kind: type[Any]) -> Any:
        try:
            module = self.model.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"expected a module {name} in {type(self.model).__name__}, found none") from error
        if not isinstance(module, kind):
            raise InputError(f"{name}: expected {kind.__name__}, got {type(module).__name__}")
        return module

    def _parameter(self, name: str) -> Tensor:
        module, _, attribute = name.rpartition(".")
        return cast("Tensor", getattr(self.model.get_submodule(module), attribute))

    @contextmanager
    def without_cap(self) -> Iterator[None]:
        """Switch a soft cap of the logits off; switch it on again if the model is refused."""
        config: Any = getattr(self.model, "config", None)
        self.cap = getattr(config, CAP, None)
        if self.cap is None:
            yield
            return
        try:
            setattr(config, CAP, None)
        except Exception as error:  # of the checks of a family's configuration
            raise InputError(f"expected logits without a soft cap, got {CAP}={self.cap}, which stays on") from error
        try:
            yield
        except BaseException:
            setattr(config, CAP, self.cap)
            raise

    def values(self, placed: Residual, factors: Factors) -> dict[str, Tensor]:
        """Return the values of embedding, head, norm and zero outputs by the names of the parameters."""
        constant = placed.axes[factors.rank + 1]
        prior = placed.W @ constant  # log p, shifted and scaled
        padding = (prior.min() - PADDING_GAP * np.ptp(prior) / np.ptp(factors.log_prior)) * constant
        embedding, head = self.embedding.weight, self.head.weight
        values = {
            f"{self.parts.embedding}.weight": _filled(embedding, placed.E, placed.E.mean(axis=0)),
            f"{self.parts.head}.weight": _filled(head, placed.W, padding),
        }
        if self.head.bias is not None:
            values[f"{self.parts.head}.bias"] = torch.zeros_like(self.head.bias)  # the weights hold the log prior
        for name, value in self.norm.values.items():
            values[f"{self.parts.norm}.{name}"] = torch.full_like(self.final.get_parameter(name), value)
        return values | self._zeros(self.outputs)

    def _zeros(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return zeros for parameters; those of one shape share them."""
        zeros: dict[tuple[Any, ...], Tensor] = {}
        out = {}
        for name in names:
            p = self._parameter(name)
            key = tuple(p.shape), p.dtype, p.device
            if key not in zeros:
                zeros[key] = torch.zeros_like(p)
            out[name] = zeros[key]
        return out

    def _run(self, values: dict[str, Tensor], ids: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the final norm gets and returns, (n, d), and the logits (n, V), without learned positions."""
        without = self._zeros([f"{self.parts.positions}.weight"] if self.positions is not None else [])
        seen: list[tuple[Tensor, Tensor]] = []
        tokens = torch.from_numpy(ids.reshape(-1, 2)).to(self.embedding.weight.device)
        logits = run(
            self.model, values | without, tokens, {self.final: lambda args, result: seen.append((args[0], result))}
        )
        last = seen[-1] if seen else ()
        if not last or any(x.shape[:-1].numel() != ids.size for x in (*last, logits)):
            raise InputError(f"{self.parts.norm}: expected to be called with all tokens of a run, got others")
        x, normed, logits = (y.detach().reshape(ids.size, -1).double().cpu() for y in (*last, logits))
        return x, normed, logits

    def measure(self, placed: Residual, factors: Factors) -> tuple[float, float]:
        """Return c and a: factors of the embedding on its way to the final norm, and of the logits.

        Raises
        ------
        InputError
            More than a factor happens on the way.
        """
        values, ids = self.values(placed, factors), _unclipped(factors)
        x, normed, logits = self._run(values, ids)
        E = values[f"{self.parts.embedding}.weight"].double().cpu()[ids]
        W = values[f"{self.parts.head}.weight"].double().cpu()
        c = self._factor(x, E, f"{self.parts.norm} gets the embedding times", "what positions, blocks or a norm add")
        a = self._factor(logits, normed @ W.T, f"logits are those of {self.parts.head} times", "a soft cap of logits")
        self.factors = c, a
        return c, a

    def _factor(self, found: Tensor, base: Tensor, what: str, otherwise: str) -> float:
        """Return the factor of a multiple."""
        factor = float((found * base).sum() / (base * base).sum())
        gap = float((found - factor * base).norm() / found.norm())
        if not gap < 1e-3 + CLOSE * torch.finfo(self.embedding.weight.dtype).eps or factor <= 0:
            raise InputError(
                f"expected a {type(self.model).__name__} in which {what} a constant, got {factor:.3g} times it with a "
                f"difference of {gap:.1%}: {otherwise}; use a model of another family"
            )
        return factor

    def verify(self, values: dict[str, Tensor], factors: Factors, gain: float) -> None:
        """Compare the logits of a run with the formula; they are larger by a factor where positions are left out.

        Raises
        ------
        InputError
            They differ.
        """
        ids = _unclipped(factors)
        found = self._run(values, ids)[2][:, : len(factors.A)].numpy()
        expected = gain * (factors.A[ids].astype(float) @ factors.B.T + factors.log_prior)
        difference = (found - expected) - (found - expected).mean(axis=1, keepdims=True)
        spread = expected.std(axis=1).mean()
        gap = float(np.sqrt((difference**2).mean()))
        if not gap < TOLERANCE + 2 * torch.finfo(self.embedding.weight.dtype).eps * spread:
            raise InputError(
                f"expected the logits of {type(self.model).__name__} to be those of the bigram model, got a difference "
                f"of {gap:.3g} nats; use a model of another family"
            )

    def untie(self) -> bool:
        """Give the head its own weights, now and after reloading, if it shares those of the embedding."""
        if self.head.weight is not self.embedding.weight:
            return False
        config: Any = getattr(self.model, "config", None)
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())
        if config is None:
            return True
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        configs = [config] if text is config else [config, text]
        before = [getattr(c, "tie_word_embeddings", None) for c in configs]
        for c in configs:
            c.tie_word_embeddings = False
        self._tie()
        if self.head.weight is self.embedding.weight:
            for c, value in zip(configs, before, strict=True):
                c.tie_word_embeddings = value
            self._tie()
            raise InputError(
                f"expected a model whose head can be untied, got a {type(self.model).__name__} that ties it again; "
                "use a model of another class"
            )
        return True

    def _tie(self) -> None:
        """Let the model tie the weights that its configuration names."""
        model: Any = self.model
        if hasattr(model, "get_expanded_tied_weights_keys"):  # transformers caches the list of tied weights
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        if hasattr(model, "tie_weights"):
            model.tie_weights()

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Write values of parameters by name."""
        for name, value in values.items():
            self._parameter(name).copy_(value)

    @torch.no_grad()
    def shrink_positions(self, deviation: float) -> str:
        """Rescale learned positions to a standard deviation; return the name of the parameter."""
        weight = self.positions.weight
        weight.mul_(deviation / max(float(weight.std()), 1e-12))
        return f"{self.parts.positions}.weight"

    def notes(self, size: int, untied: bool) -> list[str]:
        """Return sentences on what differs from the model's defaults."""
        notes = ["output projections of all blocks start at zero"] if self.outputs else []
        if untied:
            notes.append("the head was tied to the embedding and now has its own weights: tie_word_embeddings=False")
        c, a = self.factors
        if max(abs(c - 1), abs(a - 1)) > 0.01:
            factors = f"the embedding by {c:.4g} and the logits by {a:.4g}"
            notes.append(f"the model multiplies {factors}; the head allows for it")
        if self.cap is not None:
            notes.append(f"logits were capped softly at {self.cap:g} and no longer are: {CAP}=None")
        if (padded := self.embedding.num_embeddings - size) > 0:
            notes.append(f"{padded} padded rows of the vocabulary are {PADDING_GAP:.0f} nats below the rarest token")
        return notes


def _unclipped(factors: Factors) -> NDArray[np.int64]:
    """Return ids of a few tokens, all over the vocabulary, whose rows of A are not clipped by `residual`."""
    norms = np.linalg.norm(factors.A, axis=1)
    ids = np.flatnonzero(norms <= np.quantile(norms, 0.99))
    return np.asarray(ids[np.linspace(0, len(ids) - 1, VERIFIED).astype(int)])


def _filled(like: Tensor, rows: NDArray[Any], padding: NDArray[Any]) -> Tensor:
    """Return a table of rows, with one padding row in what is left of it."""
    out = torch.empty_like(like)
    out[: len(rows)] = torch.from_numpy(rows)
    out[len(rows) :] = torch.from_numpy(padding)
    return out
