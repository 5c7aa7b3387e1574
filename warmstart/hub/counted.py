"""A decoder of Hugging Face beside counts: one model whose logits are log-probabilities of the mixture.

| symbol | meaning |
|---|---|
| ``P_m`` | probability of the next token by expert m; the experts but the network are counted |
| ``q`` | probability of the next token by the decoder, the expert "network" |
| ``lambda_m(b)`` | weight of expert m in bucket b, see `warmstart.gate` |

In training the loss is ``-log(sum_m lambda_m(b) P_m) - network_loss log q``, in nats. The first term alone starves the
decoder: counts explain most targets, and what is explained gives no gradient. Source of the mixture of counts and
network with weights that the state gives: Neubig and Dyer 2016 (arXiv 1606.00499), who leave counts out at random
against the same starving; derivation: docs/math.md, section 11.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from warmstart._threads import blocks
from warmstart.adapters.parts import still
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate, with_share
from warmstart.hub.configs import CountedConfig
from warmstart.hub.losses import network_nats, plain_head, state_width
from warmstart.hub.near_shallow import NearShallowForCausalLM
from warmstart.hub.scoring import Scores, documents, window_nats, window_size, windows
from warmstart.hub.tables import check_tokenizer, copy_experts, find_folder, load_experts, save_code, save_experts
from warmstart.kneser_ney import KneserNey
from warmstart.layers.gate import MixtureGate
from warmstart.layers.near_shallow import IGNORED
from warmstart.mixture import Experts, Mixture
from warmstart.ngrams import vocabulary_digest
from warmstart.progress import Progress

if TYPE_CHECKING:
    from warmstart.estimators import WarmStartLM

OPTIONAL = frozenset({"logits_to_keep", "position_ids", "past_key_values"})  # inputs that some decoders do not take
ROWS = 64  # places whose rows of all experts are in memory at once
AUTO_MAP = {
    "AutoConfig": "modeling_warmstart.CountedConfig",
    "AutoModelForCausalLM": "modeling_warmstart.CountedForCausalLM",
}
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CountedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A decoder and counts in one mixture.

    Experts of counts read the tokens so far, so generation keeps nothing of them: beams, batches and padding are those
    of the decoder. In training they are given as numbers, see `forward`.

    Parameters
    ----------
    config : CountedConfig
        It builds a model without tables; `beside`, `of` and `from_pretrained` give one that can be used.

    Attributes
    ----------
    base : PreTrainedModel
        The decoder.
    gate : MixtureGate
        Weights of the experts; they train too.
    experts : Experts or None
        The counted experts. They have no weights, and stay on the CPU.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from warmstart.ngrams import count_ngrams
    >>> from warmstart.solving import Recipe, solve
    >>> documents = [[0, *np.random.default_rng(i).integers(1, 5, 40)] for i in range(30)]  # after separators
    >>> tokens, borders = np.append(np.concatenate(documents), 0), np.arange(31) * 41
    >>> solved = solve(count_ngrams(tokens, borders, vocab_size=5, order=3), Recipe(("ngrams", "cache"), order=3))
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    >>> model = CountedForCausalLM.beside(GPT2LMHeadModel(config), solved.mixture).eval()
    >>> ids = torch.tensor([[0, 3, 1, 4]])
    >>> model(ids).logits.exp().sum(-1).detach().numpy().round(4)
    array([[1., 1., 1., 1.]], dtype=float32)
    >>> bool(model(ids, labels=ids).loss < np.log(5) + 0.5), model.generate(ids, max_new_tokens=2).shape[0]
    (True, 1)
    """

    config_class = CountedConfig
    _keep_in_fp32_modules_strict = frozenset({"gate.logits", "gate.state"})  # type: ignore[assignment]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True  # as the decoder

    def __init__(self, config: CountedConfig) -> None:
        super().__init__(config)
        self.base = AutoModelForCausalLM.from_config(config.base_config)  # type: ignore[no-untyped-call]
        buckets, m = int(np.prod(config.gate_sizes)), len(config.experts)
        self.gate = MixtureGate(Gate(tuple(config.gate_sizes), _equal(buckets, m)), width=config.gate_width)
        self.experts: Experts | None = None
        self._folder: tuple[Experts | None, Path] = None, Path()  # experts, and a folder that has their files
        self._known: tuple[Any, Any, nn.Module | None, frozenset[str]] | None = None  # see `_facts`
        self._inherit()
        self.post_init()  # type: ignore[no-untyped-call]

    def _inherit(self) -> None:
        """Take over what the decoder can do and cannot do."""
        self.supports_gradient_checkpointing = getattr(self.base, "supports_gradient_checkpointing", False)
        self._is_stateful = getattr(self.base, "_is_stateful", False)

    @classmethod
    def beside(
        cls,
        base: PreTrainedModel,
        mixture: Mixture,
        network_share: float = 0.1,
        network_loss: float = 1.0,
        vocabulary: str = "",
    ) -> Self:
        """Put a decoder beside the counted experts of a mixture.

        Parameters
        ----------
        base : PreTrainedModel
            The decoder. It is not copied. Rows of its vocabulary above that of the counts are padding.
        mixture : Mixture
            Without a network, see `warmstart.solving.solve`.
        network_share : float
            Weight of the decoder at the start, in every bucket. The other weights stay in proportion.
        network_loss : float
            See `CountedConfig`.
        vocabulary : str, optional
            Digest of the vocabulary that was counted. Default: that of the counts, if the mixture has them.

        Raises
        ------
        InputError
            The mixture has a network, the decoder has fewer tokens than the counts, or a number is out of range.
        """
        experts = mixture.experts
        if experts.network is not None:
            raise InputError("expected a mixture without a network, got one with it; leave its contexts out of `solve`")
        if not 0 < network_share < 1 - FLOOR:
            raise InputError(f"network_share: expected a number above 0 and below {1 - FLOOR}, got {network_share}")
        names = [*experts.names[:-1], "network", experts.names[-1]]
        if not vocabulary and isinstance(experts.ngrams, KneserNey):
            vocabulary = experts.ngrams.counts.vocabulary
        gate = MixtureGate.ready(with_share(mixture.gate, network_share), state_width(base))
        return cls._of(base, experts, names, gate, network_loss, vocabulary)

    @classmethod
    def of(cls, model: "WarmStartLM") -> Self:
        """Return the mixture of a language model, whose network is the decoder; weights are copied, tables are not.

        Raises
        ------
        InputError
            The language model has no network.
        """
        base, mixture = NearShallowForCausalLM.of(model), model.mixture_
        experts = replace(mixture.experts, network=None)
        vocabulary = vocabulary_digest(model.tokenizer_.get_vocab())
        return cls._of(base, experts, mixture.experts.names, MixtureGate(mixture.gate), 1.0, vocabulary)

    @classmethod
    def _of(
        cls, base: Any, experts: Experts, names: list[str], gate: MixtureGate, network_loss: float, vocabulary: str
    ) -> Self:
        """Return the model of its parts, which are not copied."""
        size = len(experts.prior)
        if base.config.get_text_config().vocab_size < size:
            raise InputError(
                f"expected a decoder with at least the {size} tokens of the counts, got "
                f"{base.config.get_text_config().vocab_size}; count with the tokenizer of the decoder"
            )
        width = 0 if gate.state is None else gate.state.shape[1]
        sizes = list(gate.sizes), width
        config = CountedConfig(base.config, size, experts.separator, names, *sizes, network_loss, vocabulary)
        with torch.device("meta"):
            model = cls(config)
        config.base_config = base.config
        model.base, model.gate, model.experts = base, gate.to(base.device), experts
        model._inherit()
        model.post_init()  # type: ignore[no-untyped-call]
        model.generation_config = base.generation_config
        model.train(base.training)
        return model

    def get_input_embeddings(self) -> Any:
        """Return the embedding of the decoder."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Set the embedding of the decoder."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """Return the head of the decoder."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Set the head of the decoder."""
        self.base.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        expert_probs: Tensor | None = None,
        expert_buckets: Tensor | None = None,
        history_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        text_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the log-probabilities of the next tokens, or the loss of labels.

        A text begins with a document: experts read it as if a separator were in front of it. Tokens under a mask of 0,
        and those above the counted ones, are padding and stand for separators.

        Parameters
        ----------
        input_ids : (batch, L) int64
        attention_mask : (batch, L) or (batch, past + L), optional
        labels : (batch, L) int64, optional
            What comes after ``input_ids[:, t]`` is ``labels[:, t + 1]``, as everywhere in Hugging Face; -100 does not
            count. Without ``return_logits`` the mixture is computed for labels alone, and ``logits`` is None.
        past_key_values, use_cache, position_ids, kwargs
            As the decoder takes them.
        logits_to_keep : int
            Number of last positions that get logits; 0 for all.
        expert_probs : (batch, L, m), optional
            Probabilities of ``labels`` by every expert but the network, the unigram model last, as in an
            `warmstart.finetune.evidence.ExpertTable`. They are needed in training; otherwise they are computed.
        expert_buckets : (batch, L) int64, optional
            Buckets of the gate.
        history_ids : (batch, h) int64, optional
            The tokens before ``input_ids``, which the experts read. The decoder reads what is in its cache.
        num_items_in_batch : int, optional
            Number of labels by which the sum of the losses is divided.
        return_logits : bool
            Return logits beside the loss of labels.
        text_ids : (batch, n) int64, optional
            Of `generate`: ``history_ids`` and ``input_ids`` in one, with separators for padding.

        Returns
        -------
        CausalLMOutputWithPast
            ``loss`` in nats: in training with the loss of the decoder alone. ``logits`` (batch, L, rows) float32:
            log-probabilities of the mixture, of which ``exp`` sums to 1; minus infinity for padding. No gradient goes
            through them to the weights of the counted experts.

        Raises
        ------
        InputError
            Labels are outside the vocabulary or differ from the input, the model has no tables, or in training nothing
            says what the counts say of the labels, or it is of another model.
        """
        if self.training and torch.is_grad_enabled() and (labels is None or return_logits):
            raise InputError(
                "expected labels and no logits in training, got others: what counts say of whole rows includes the "
                "text itself; train with labels, or the decoder alone, which is `base`"
            )
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if position_ids is not None and "position_ids" in self._facts()[1]:
            inputs["position_ids"] = position_ids
        loss = None
        if labels is not None:
            text = self._text(input_ids, attention_mask, history_ids)
            loss = self._loss(labels, expert_probs, expert_buckets, num_items_in_batch, text, inputs)
            if not return_logits:
                return CausalLMOutputWithPast(loss=loss)
        if not isinstance(logits_to_keep, int):
            raise InputError(f"logits_to_keep: expected a whole number, got a {type(logits_to_keep).__name__}")
        inputs |= {"past_key_values": past_key_values, "use_cache": use_cache, "return_dict": True}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        out, hidden = self._decoded(inputs, logits_to_keep)
        text = self._text(input_ids, attention_mask, history_ids) if text_ids is None else text_ids
        out.logits = _eagerly(self._mixed, out.logits, text, hidden)
        if loss is not None:
            out.loss = loss
        return cast("CausalLMOutputWithPast", out)

    def _decoded(self, inputs: dict[str, Any], logits_to_keep: int) -> tuple[Any, Tensor | None]:
        """Return the output of the decoder with the logits of the last positions, and its states there for the gate."""
        head, takes = self._facts()
        states, last = self.gate.state is not None, slice(-logits_to_keep, None)  # 0: all
        if head is not None and "past_key_values" in takes:  # it keeps nothing else
            body = self.base.base_model(**inputs)
            hidden = body.last_hidden_state[:, last]
            kept = {name: body.get(name) for name in ("past_key_values", "hidden_states", "attentions")}
            return CausalLMOutputWithPast(logits=head(hidden), **kept), hidden if states else None
        wanted = inputs.get("output_hidden_states", False)
        inputs |= {"output_hidden_states": True} if states else {}
        inputs |= {"logits_to_keep": logits_to_keep} if "logits_to_keep" in takes else {}
        out = self.base(**inputs)
        out.logits = out.logits[:, last]
        hidden = out.hidden_states[-1][:, -out.logits.shape[1] :] if states else None
        if states and not wanted:
            out = type(out)(**{name: value for name, value in out.items() if name != "hidden_states"})
        return out, hidden

    def _loss(
        self, labels: Tensor, probs: Tensor | None, buckets: Tensor | None, number: Tensor | int | None, text: Tensor,
        inputs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """Return the loss of labels (batch, L), the last tokens of ``text`` (batch, n) or -100."""
        counted = labels[:, 1:] != IGNORED
        targets = self._checked(labels[:, 1:], counted)
        if probs is None or buckets is None:
            if self.training:
                raise InputError(
                    "expected expert_probs and expert_buckets in training, got none: counts that include the token are "
                    "worse than none; train on windows of warmstart.finetune.Windows with an expert_table"
                )
            probs, buckets = _eagerly(self._evidence, text, targets, counted)
        else:
            probs, buckets = self._given(labels, probs, buckets)
        alone, hidden = self._network_nats(targets, slice(0, targets.shape[1]), **inputs)
        mixed = self.gate.nats(alone, probs.to(alone.dtype), buckets, hidden)
        losses = mixed + self.config.network_loss * alone if self.training else mixed
        total = (losses * counted).sum()
        return total / (counted.sum() if number is None else number)

    def _given(self, labels: Tensor, probs: Tensor, buckets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what was given of the labels but the first. Refuse what is of another model."""
        n, m = self.gate.logits.shape
        if probs.shape != (*labels.shape, m - 1) or buckets.shape != labels.shape:
            raise InputError(
                f"expected expert_probs {(*labels.shape, m - 1)} and expert_buckets {tuple(labels.shape)}, got "
                f"{tuple(probs.shape)} and {tuple(buckets.shape)}; make them with the counts of this model"
            )
        if not torch.compiler.is_compiling() and buckets.numel():
            least, most = int(buckets.min()), int(buckets.max())
            if least < 0 or most >= n:
                raise InputError(
                    f"expert_buckets: expected 0 to {n - 1}, got {least} to {most}; make them with the counts of this "
                    "model"
                )
        return probs[:, 1:], buckets[:, 1:].long()

    def _network_nats(self, targets: Tensor, spot: slice, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        size, states = self.config.counted_size, self.gate.state is not None
        plain = self._facts()[0] is not None
        return network_nats(self.base, plain, targets, spot, size, states, **inputs)

    def _facts(self) -> tuple[nn.Module | None, frozenset[str]]:
        """Return the head of the decoder if it is plain, see `plain_head`, and the optional inputs that it takes.

        Both are found again when the decoder or its head was exchanged, as by adapters.
        """
        head = self.base.get_output_embeddings()
        if self._known is None or self._known[0] is not self.base or self._known[1] is not head:
            if torch.compiler.is_compiling():
                return None, frozenset()
            takes = OPTIONAL & inspect.signature(self.base.forward).parameters.keys()
            self._known = self.base, head, head if plain_head(self.base) else None, takes
        return self._known[2:]

    def _checked(self, targets: Tensor, counted: Tensor) -> Tensor:
        """Return targets with token 0 where they do not count. Refuse what is outside the vocabulary."""
        targets = targets.masked_fill(~counted, 0)
        if not torch.compiler.is_compiling() and targets.numel():
            least, most = int(targets.min()), int(targets.max())
            if least < 0 or most >= self.config.counted_size:
                raise InputError(
                    f"labels: expected {IGNORED} or tokens from 0 to {self.config.counted_size - 1}, got {least} to "
                    f"{most}; use the tokenizer of this model"
                )
        return targets

    def _text(self, input_ids: Tensor, attention_mask: Tensor | None, history_ids: Tensor | None) -> Tensor:
        """Return the tokens that the experts read (batch, n): the history and the input, separators for padding."""
        padding = input_ids >= self.config.counted_size
        if attention_mask is not None and attention_mask.dim() == 2:
            padding = padding | (attention_mask[:, -input_ids.shape[1] :] == 0)
        text = input_ids.masked_fill(padding, self.config.separator)
        if history_ids is not None:
            before = history_ids.masked_fill(history_ids >= self.config.counted_size, self.config.separator)
            text = torch.cat([before, text], dim=1)
        if not torch.compiler.is_compiling() and text.numel() and int(text.min()) < 0:
            raise InputError(f"expected token ids from 0, got {int(text.min())}; mask padding by attention_mask")
        return text

    def _tables(self) -> Experts:
        if self.experts is None:
            raise InputError(
                "expected a model with the tables of its counts, got weights alone; make it with "
                "CountedForCausalLM.beside or from_pretrained"
            )
        return self.experts

    def _read(self, text: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return texts (batch, n) in one, each after a separator, and the places of their tokens (batch, n)."""
        n, length = text.shape
        tokens = np.empty((n, length + 1), np.int64)
        tokens[:, 0], tokens[:, 1:] = self._tables().separator, text.cpu().numpy()
        return tokens.ravel(), np.arange(tokens.size).reshape(tokens.shape)[:, 1:]

    def _evidence(self, text: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the experts say of the last tokens of texts: probabilities (batch, n, m) and buckets."""
        same = (text[:, -targets.shape[1] :] == targets) | ~counted
        if targets.shape[1] and not bool(same.all()):
            raise InputError(f"labels: expected the tokens of input_ids or {IGNORED}, got others")
        experts = self._tables()
        tokens, places = self._read(text)
        wanted = places[:, places.shape[1] - targets.shape[1] :] - 1  # targets are numbered from 0
        scanned = [evidence for _, evidence in experts.scan(tokens, torch.get_num_threads())]
        probs = np.concatenate([evidence.probs for evidence in scanned])[wanted]
        features = np.concatenate([evidence.features for evidence in scanned])[wanted]
        found = self.gate.index(torch.from_numpy(features))
        return torch.from_numpy(probs).to(targets.device), found.to(targets.device)

    def _mixed(self, logits: Tensor, text: Tensor, hidden: Tensor | None) -> Tensor:
        """Return log-probabilities of the mixture (batch, k, rows) from those of the decoder after the last tokens.

        ``hidden`` (batch, k, width) are its states there, if the gate reads them.
        """
        size, rest = self.config.counted_size, logits.shape[2] - self.config.counted_size
        tokens, places = self._read(text)
        places = places[:, places.shape[1] - logits.shape[1] :].ravel()
        q = (logits[..., :size] if rest else logits).float().softmax(dim=-1).flatten(0, 1)
        h = None if hidden is None else hidden.flatten(0, 1)
        mixed = [
            self._rows(tokens, places[block], q[block], None if h is None else h[block])
            for block in blocks(len(q), ROWS)
        ]
        out = (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).view(*logits.shape[:2], size)
        return functional.pad(out, (0, rest), value=-torch.inf) if rest else out

    def _rows(self, tokens: NDArray[np.int64], places: NDArray[np.int64], q: Tensor, hidden: Tensor | None) -> Tensor:
        """Return log-probabilities of the mixture (n, V) after places of a text, given the decoder's (n, V)."""
        experts = self._tables()
        index = experts.buckets_after(tokens, places)
        constants = self.gate.constants(index, hidden)
        if q.device.type == "cpu" and not torch.is_grad_enabled():
            experts.mix_rows(tokens, places, constants, q.numpy())  # in place: one array of this size
            return q.log_()
        others = torch.zeros(q.shape)
        experts.mix_rows(tokens, places, constants, others.numpy())
        network = self.gate.weights(torch.from_numpy(index).to(q.device), hidden)[:, -2:-1]
        return (network * q + others.to(q)).log()

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return what the decoder needs for the next token, and the whole text so far for the experts."""
        inputs = self.base.prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        inputs["text_ids"] = self._text(input_ids, attention_mask, inputs.pop("history_ids", None))
        return cast("dict[str, Any]", inputs)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self.base._prepare_cache_for_generation(*args, **kwargs)

    def _reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        if hasattr(self.base, "_reorder_cache"):
            return self.base._reorder_cache(past_key_values, beam_idx)
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

    @torch.no_grad()
    def score(
        self, tokens: Any, *, length: int | None = None, stride: int | None = None, batch: int = 16,
        progress: Progress | None = None,
    ) -> Scores:  # fmt: skip
        """Score every token of a text but the first separator; nothing is needed but the text.

        Experts read whole documents. The decoder reads windows of the text, which go on across documents.

        Parameters
        ----------
        tokens : (n + 1,) int
            ``SEP d1 SEP d2 SEP ... dn SEP``, as those of a `Corpus`. A separator in front is added if it is missing.
        length : int, optional
            Tokens of a window. Default: what the decoder can read, at most `warmstart.hub.scoring.LONGEST`; whole
            documents for the near-shallow network.
        stride : int, optional
            Targets from one window to the next; the tokens before them are history. Default: half of the length.
        batch : int
            Number of windows that are read at once.
        progress : callable, optional
            Called as ``progress("scoring", targets, total)``.

        Raises
        ------
        InputError
            A number is out of range, a token is outside the vocabulary, or the model has no tables.
        """
        tokens = np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens).ravel()
        if not tokens.size or tokens[0] != self.config.separator:
            tokens = np.insert(tokens, 0, self.config.separator)
        if tokens.min() < 0 or tokens.max() >= self.config.counted_size:
            raise InputError(
                f"expected token ids from 0 to {self.config.counted_size - 1}, got {tokens.min()} to {tokens.max()}; "
                "use the tokenizer of this model"
            )
        whole = isinstance(self.base, NearShallowForCausalLM) and length is None
        size = None if whole else window_size(self.config.base_config, length, stride)
        experts, n, device = self._tables(), tokens.size - 1, self.gate.logits.device

        log_probs, network = np.empty(n), np.empty(n)
        with still(self):
            for part, (probs, features) in experts.scan(tokens, torch.get_num_threads()):
                index, of_experts = self.gate.index(torch.from_numpy(features)), torch.from_numpy(probs)

                def nats(inputs: Tensor, targets: Tensor, spot: slice, places: Tensor) -> Tensor:
                    own = {"input_ids": inputs.to(self.device)}
                    alone, hidden = self._network_nats(targets.to(self.device), spot, **own)
                    said = of_experts[places].to(device), index[places].to(device)  # noqa: B023 - called in this turn
                    hidden = None if hidden is None else hidden.to(device)
                    mixed = self.gate.nats(alone.double().to(device), *said, hidden)
                    return torch.stack([mixed, alone.to(mixed)])

                found = windows(part, *size) if size else documents(tokens, part, self.config.separator)
                scores = -window_nats(nats, tokens, part, found, batch).numpy()
                log_probs[part], network[part] = scores
                if progress:
                    progress("scoring", part.stop, n)
        return Scores(log_probs, network)

    def evaluate(self, corpus: Corpus, **options: Any) -> dict[str, float]:
        """Score a corpus; ``options`` are those of `score`.

        Returns
        -------
        dict
            ``nats`` a token of the model and ``network_nats`` of the decoder alone, ``perplexity`` and
            ``bits_per_byte`` of the model, ``tokens``.
        """
        scores = self.score(corpus.tokens, **options)
        nats = -float(scores.log_probs.mean())
        return {
            "nats": nats,
            "network_nats": -float(scores.network.mean()),
            "perplexity": float(np.exp(nats)),
            "bits_per_byte": nats * corpus.n_tokens / float(np.log(2)) / corpus.n_bytes,
            "tokens": corpus.n_tokens,
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder for `from_pretrained`: weights, tables, and code that asks for this package.

        The tables are written first. If they are not those that `config.json` was written with, the folder is refused.
        """
        folder, experts = Path(save_directory), self._tables()
        folder.mkdir(parents=True, exist_ok=True)
        known, place = self._folder
        if known is not experts or not copy_experts(place, folder, self.config.tables):
            self.config.tables = save_experts(folder, experts)
        self._folder = experts, folder.resolve()
        self.config.auto_map = dict(AUTO_MAP)
        save_code(folder)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a folder that `save_pretrained` wrote, as all models of ``transformers``.

        Raises
        ------
        InputError
            Tables are missing, damaged or those of another model, or the tokenizer of the folder is not the one that
            the text was counted with.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        place = {name: kwargs[name] for name in HUB if name in kwargs}
        folder = find_folder(pretrained_model_name_or_path, place)
        check_tokenizer(folder, model.config.vocabulary, model.config.counted_size)
        model.experts = load_experts(folder, model.config.tables)
        model._folder = model.experts, folder.resolve()
        return loaded

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: a folder that is saved carries `modeling_warmstart.py`, not a copy of this file."""


def _eagerly(method: Callable[..., Any], *args: Any) -> Any:
    """Call a method; a compiled graph stops before it and goes on after it."""
    return _outside(method, *args) if torch.compiler.is_compiling() else method(*args)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _outside(method: Callable[..., Any], *args: Any) -> Any:
    return method(*args)


def _equal(buckets: int, m: int) -> Any:
    """Return equal weights (buckets, m)."""
    return np.full((buckets, m), 1.0 / m)
