"""A decoder with a residual stream: what it does between embedding and logits, measured and verified.

Families differ in what they do on the way: a norm that multiplies by ``1 + weight``, a scaled embedding, scaled logits.
So the way is measured, by a run of the model on a few tokens with the new weights:

    x_final = c E[ids],    logits = a norm(x_final) W^T

The head takes up c and a. A second run compares the logits with the formula, ``A B^T + log p`` up to a constant for
each row. Only then are the weights written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmstart.adapters.norms import CLOSE, Norm, measure
from warmstart.adapters.parts import Parts, run
from warmstart.errors import InputError
from warmstart.spectral import Factors, Residual

PADDING_GAP = 30.0  # nats by which padded rows are below the rarest token
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CAP = "final_logit_softcapping"  # its name in the configuration of Gemma
VERIFIED = 8  # tokens in a run of the model
TOLERANCE = 0.01  # nats, root mean square


class Decoder:
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
        E = values[f"{self.parts.embedding}.weight"][ids].double().cpu()
        W = values[f"{self.parts.head}.weight"]
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        c = self._factor(x, E, f"{self.parts.norm} gets the embedding times", "what positions, blocks or a norm add")
        plain = (normed.to(W) @ W.T).double().cpu()
        a = self._factor(logits, plain, f"logits are those of {self.parts.head} times", "a soft cap of logits")
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
