"""All families of decoders in the installed transformers, at toy size: does load_into start them as a bigram model?

    python tests/families.py            a table of all families
    python tests/families.py gemma2     some of them

A family is *right* if the log-probabilities of the loaded model, and of the model saved and loaded again, are those of
the formula, and if a gradient reaches every projection that starts at zero. *refused* gives the message of load_into;
the weights must then be what they were. *not built* says why no such decoder of text runs at this size; most of these
families also read pictures or sound, and the names of their text models end with ``_text``.
"""

import sys
import tempfile
import warnings

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from warmstart import load_into
from warmstart.adapters.families import small_fields
from warmstart.adapters.parts import find_parts
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.spectral import factorise

V, D, RANK = 60, 64, 24
TOY = {
    "vocabulary": V, "width": D, "inner": 96, "positions": 64, "head": 16, "rank": 8, "heads": 4, "experts": 4,
    "groups": 2, "layers": 2, "least": 1,
}  # fmt: skip
ENDED = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod cwm modernbert-decoder"
TOKENS = (np.random.default_rng(0).zipf(1.4, 200_000).cumsum() % V).astype(np.int64)
FACTORS = factorise(count_pairs(TOKENS, V), RANK)


def toy(kind, **changes):
    """Return a model of a family with two layers and a width of 64."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: 0 if kind in ENDED.split() else None for name in special}
    known = AutoConfig.for_model(kind).to_dict()
    fields = small_fields(kind, TOY) | {name: value for name, value in tokens.items() if name in known} | changes
    config = AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        large = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if large > 50_000_000:
        raise ValueError(f"it has {large:,} weights at toy size")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.long))  # raises if the sizes do not fit each other
    return model


def log_probabilities(model, ids):
    """Return those after each token (n, V), read without learned positions."""
    positions = find_parts(model).positions
    with torch.no_grad():
        if positions:
            model.get_submodule(positions).weight.zero_()
        out = model(torch.as_tensor(ids).view(-1, 3))
    return out.logits.double().flatten(0, 1).log_softmax(-1).numpy()


def gap(model):
    """Return the largest difference to the formula over tokens whose factors `residual` does not clip."""
    norms = np.linalg.norm(FACTORS.A, axis=1)
    ids = np.flatnonzero(norms <= np.quantile(norms, 0.99))[:57]
    expected = log_softmax(FACTORS.A[ids].astype(float) @ FACTORS.B.T + FACTORS.log_prior, axis=1)
    return float(np.abs(log_probabilities(model, ids)[:, :V] - expected).max())


def without_gradient(model, report):
    """Return the parameters that start at zero and get no gradient from a text."""
    ids = torch.from_numpy(TOKENS[:480]).view(15, 32)
    logits = model.train()(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    parameters = dict(model.named_parameters())
    model.eval()
    zero = [name for name in report.loaded if not parameters[name].any() and not name.endswith("bias")]
    return [name for name in zero if (g := parameters[name].grad) is not None and not g.any()]  # None: unused


def attempt(kind, **changes):
    """Return the outcome for a family and what there is to say about it."""
    try:
        model = toy(kind, **changes)
    except Exception as error:  # whatever the code of a family raises
        return "not built", f"{type(error).__name__}: {' '.join(str(error).split())}"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        report = load_into(model, FACTORS, heads=0)
    except InputError as error:
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        return ("CHANGED" if changed else "refused"), str(error)
    dead = without_gradient(model, report)
    found = gap(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = gap(AutoModelForCausalLM.from_pretrained(folder).eval())
    wrong = [f"differs by {nats:.2g} nats" for nats in (found, again) if nats > 1e-3]
    wrong += [f"no gradient: {name}" for name in dead]
    notes = [note for note in report.notes if any(word in note for word in ("multiplies", "tied", "capped"))]
    return ("WRONG" if wrong else "right"), "; ".join(wrong or notes)


def main(kinds):
    """Print the table; return whether a family is wrong."""
    counts = {}
    for kind in kinds:
        try:
            outcome, text = attempt(kind)
        except Exception as error:  # as above
            outcome, text = "WRONG", f"{type(error).__name__}: {' '.join(str(error).split())}"
        counts[outcome] = counts.get(outcome, 0) + 1
        print(f"| {kind} | {outcome} | {text[:300]} |", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return bool(counts.keys() & {"WRONG", "CHANGED"})


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))
