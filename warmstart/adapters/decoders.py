"""Warm start of decoders with a residual stream (GPT-2, Llama, GPT-NeoX and others): they start as a bigram model.

The embedding and the head hold a bigram model of low rank (`warmstart.spectral`). The output projections of the blocks
are zero, so at step 0 the network is that model. All other weights keep their own initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmstart.adapters import heads as previous_token
from warmstart.adapters import memories
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


@dataclass(frozen=True)
class Parts:
    """Names of the modules of a decoder, as `torch.nn.Module.named_modules` spells them.

    Attributes
    ----------
    embedding, norm, head : str
        The embedding of tokens, the norm after the last block (LayerNorm or RMSNorm), the linear layer to logits.
    outputs : tuple of str
        Shell patterns for the output projections of the blocks, whose results are added to the residual stream.
    positions : str, optional
        The embedding of positions, if positions are learned.
    """

    embedding: str
    norm: str
    head: str
    outputs: tuple[str, ...]
    positions: str | None = None


_LLAMA = Parts(
    "model.embed_tokens", "model.norm", "lm_head", ("model.layers.*.self_attn.o_proj", "model.layers.*.mlp.down_proj")
)
FAMILIES = {
    "gpt2": Parts(
        "transformer.wte",
        "transformer.ln_f",
        "lm_head",
        ("transformer.h.*.attn.c_proj", "transformer.h.*.attn.memory.output", "transformer.h.*.mlp.c_proj"),
        "transformer.wpe",
    ),
    "gpt_neox": Parts(
        "gpt_neox.embed_in",
        "gpt_neox.final_layer_norm",
        "lm_head",
        ("gpt_neox.layers.*.attention.dense", "gpt_neox.layers.*.mlp.dense_4h_to_h"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


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
        GPT-2, GPT-NeoX, Llama, Mistral or Qwen2 of ``transformers``, or another decoder with ``parts``. It is changed
        in place, after all checks. A tied head gets its own weights, because one table cannot hold which token follows
        which.
    statistics : NGramCounts, PairStatistics or Factors
        See `warmstart.ngrams.count_ngrams`, `warmstart.counts.count_pairs` and `warmstart.spectral.factorise`.
    parts : Parts, optional
        Names of the modules in another model.
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
        The model lacks these parts, its head has a bias or cannot be untied, its width is too small, or the vocabulary
        is another one. The model is unchanged.

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
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if parts is None and kind not in FAMILIES:
        raise InputError(
            f"expected a model of {', '.join(FAMILIES)}, got {kind or type(model).__name__}; give its parts"
        )
    decoder = _Decoder(model, parts or FAMILIES[str(kind)])
    if parts is not None and heads:
        raise InputError(f"heads: expected none for a model given by its parts, got {heads}; leave heads out")
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
        rank = min(width - 2 - decoder.centred - spare, statistics.vocab_size - 1)
        statistics = factorise(statistics, rank, progress=progress)
    placed = residual(
        statistics, width, scale=scale, centred=decoder.centred, eps=decoder.eps, spare=spare, spare_share=share
    )
    untied = decoder.untie()
    loaded = decoder.write(placed, statistics)
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
        self.norm = self._module(parts.norm, nn.Module)
        self.centred = isinstance(self.norm, nn.LayerNorm)
        if not self.centred and "RMSNorm" not in type(self.norm).__name__:
            raise InputError(f"{parts.norm}: expected a LayerNorm or an RMSNorm, got {type(self.norm).__name__}")
        eps = getattr(self.norm, "eps", getattr(self.norm, "variance_epsilon", None))
        self.eps = float(eps if eps is not None else torch.finfo(torch.float32).eps)  # None: torch's RMSNorm
        if self.head.bias is not None:
            raise InputError(f"{parts.head}: expected a head without a bias, got one; the weights hold the log prior")
        if self.embedding.embedding_dim != self.head.in_features:
            raise InputError(
                f"expected an embedding and a head of one width, got {self.embedding.embedding_dim} and "
                f"{self.head.in_features}"
            )
        self.outputs = [
            (name, module)
            for name, module in model.named_modules()
            if any(fnmatchcase(name, pattern) for pattern in parts.outputs)
        ]
        if parts.outputs and not self.outputs:
            raise InputError(f"expected output projections named {', '.join(parts.outputs)}, found none")

    def _module(self, name: str, kind: type[Any]) -> Any:
        try:
            module = self.model.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"expected a module {name} in {type(self.model).__name__}, found none") from error
        if not isinstance(module, kind):
            raise InputError(f"{name}: expected {kind.__name__}, got {type(module).__name__}")
        return module

    def untie(self) -> bool:
        """Give the head its own weights, now and after reloading, if it shares those of the embedding."""
        if self.head.weight is not self.embedding.weight:
            return False
        config = getattr(self.model, "config", None)
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())
        if config is None:
            return True
        before, config.tie_word_embeddings = getattr(config, "tie_word_embeddings", None), False
        self._tie()
        if self.head.weight is self.embedding.weight:
            config.tie_word_embeddings = before
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
    def write(self, placed: Residual, factors: Factors) -> list[str]:
        """Write embedding, head, norm and zero outputs; return the names of the parameters."""
        constant = placed.axes[factors.rank + 1]
        prior = placed.W @ constant  # log p, shifted and scaled
        padding = (prior.min() - PADDING_GAP * np.ptp(prior) / np.ptp(factors.log_prior)) * constant
        _fill(self.embedding.weight, placed.E, placed.E.mean(axis=0))
        _fill(self.head.weight, placed.W, padding)
        names = [f"{self.parts.embedding}.weight", f"{self.parts.head}.weight"]
        for name, parameter in self.norm.named_parameters():
            parameter.fill_(1.0 if name == "weight" else 0.0)
            names.append(f"{self.parts.norm}.{name}")
        for prefix, module in self.outputs:
            for name, parameter in module.named_parameters():
                parameter.zero_()
                names.append(f"{prefix}.{name}")
        return names

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
        if (padded := self.embedding.num_embeddings - size) > 0:
            notes.append(f"{padded} padded rows of the vocabulary are {PADDING_GAP:.0f} nats below the rarest token")
        return notes


def _fill(weight: Tensor, rows: NDArray[Any], padding: NDArray[Any]) -> None:
    """Write rows, and one padding row into what is left of the table."""
    weight[: len(rows)] = torch.from_numpy(rows)
    weight[len(rows) :] = torch.from_numpy(padding)
