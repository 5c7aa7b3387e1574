"""The order of the codes: which token, or which class, gets which code of the bit cipher.

A model is the same under every naming of its tokens. So the tokens are renamed: token t has the number of its code. The
codes themselves, and how many bits each has on, stay those of `bitcipher.assign_codes`.

- By frequency: the most frequent tokens have one bit each. The package does this.
- Random.
- Frequent first: the most frequent tokens have one bit each, the others are in random order. The control of the next.
- By similarity: the most frequent tokens have one bit each. Then every token, from frequent to rare, takes the free
  code whose bits are those of the tokens that are most similar to it. Tokens are similar if the same tokens stand
  before and after them in the training text, classes if their examples have the same features: the overlap of two
  distributions, the sum of ``sqrt(p q)``.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax

from benchmarks import claims, classifier, harness, render, texts
from benchmarks.harness import Results
from warmstart import accumulators, contexts, solution
from warmstart.counts import count_pairs
from warmstart.estimators import ExplicitClassifier
from warmstart.near_shallow import Config, Fitter, cipher_vectors, token_losses
from warmstart.progress import Progress

FREQUENCY, RANDOM, FIRST, SIMILAR = "by frequency", "random", "frequent first, others random", "by similarity"
SEEDS = {FREQUENCY: (0,), RANDOM: (0, 1), FIRST: (0, 1), SIMILAR: (0,)}
TEXT, VOCAB_SIZE, BITS, RADIUS, SCORED = "wikitext-2", 2048, (64, 256), 2, 50_000
LABELS = {"CLINC150": (16, 32), "UD EWT": (6,)}  # bits of label embeddings
READERS = {"CLINC150": classifier.intents, "UD EWT": classifier.tags}
SAMPLE = 2048  # examples on which the temperature of a hidden layer is fitted

Names = NDArray[np.int64]


def names(order: str, seed: int, counts: NDArray[np.integer], bits: int, rows: sparse.csr_array) -> Names:
    """Return the number of the code of every token (V,).

    Parameters
    ----------
    order : str
    seed : int
        Of random orders.
    counts : (V,)
    bits : int
    rows : (V, D) csr_array
        Square roots of the distributions by which tokens are similar.
    """
    random, size = np.random.default_rng(seed), counts.size
    frequent = np.argsort(-counts, kind="stable")
    if order == RANDOM:
        return random.permutation(size)
    codes = np.arange(size)
    if order == FIRST:
        codes[bits:] = random.permutation(codes[bits:])
    if order == SIMILAR and size > bits:
        similar = np.asarray((rows[frequent[bits:]] @ rows[frequent[:bits]].T).todense())
        codes[bits:] = bits + taken(similar @ cipher_vectors(size, bits)[bits:].toarray().T)
    renamed = np.empty(size, np.int64)
    renamed[frequent] = codes
    return renamed


def taken(scores: NDArray[np.floating]) -> Names:
    """Return the column that each row takes: the one with its highest score that no row before it took.

    Examples
    --------
    >>> taken(np.array([[1.0, 3.0, 2.0], [1.0, 9.0, 2.0], [5.0, 9.0, 9.0]])).tolist()
    [1, 2, 0]
    """
    scores = scores.copy()
    columns = np.empty(len(scores), np.int64)
    for row in range(len(scores)):
        columns[row] = scores[row].argmax()
        scores[:, columns[row]] = -np.inf
    return columns


def roots(table: sparse.csr_array) -> sparse.csr_array:
    """Return the square roots of the rows of a table of counts, each divided by its sum.

    Examples
    --------
    >>> roots(sparse.csr_array([[9, 0, 16], [0, 0, 0]])).toarray().tolist()
    [[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]
    """
    sums = np.maximum(table.sum(axis=1), 1e-12)
    return sparse.csr_array(sparse.diags_array(1 / sums) @ table).sqrt()


def neighbours(tokens: NDArray[np.integer], vocab_size: int) -> sparse.csr_array:
    """Return the square roots of the distributions of the tokens before and after each token, side by side."""
    pairs = sparse.csr_array(count_pairs(tokens, vocab_size).pairs, dtype=np.float64)
    return sparse.csr_array(sparse.hstack([roots(pairs), roots(sparse.csr_array(pairs.T))]))


def network(text: texts.Text, rows: sparse.csr_array, order: str, seed: int, bits: int, scored: int) -> dict[str, Any]:
    """Solve the radial network with an order of codes; return nats a token on the beginning of the test text."""
    (tokens, documents), (test, borders) = text.parts["train"], text.parts["test"]
    counts = np.bincount(tokens[1:], minlength=text.vocab_size)
    new = names(order, seed, counts, bits, rows)
    config = Config(text.vocab_size, int(new[text.separator]), bits=bits, radius=RADIUS, contexts=("radial",))
    by_code = np.empty_like(counts)
    by_code[new] = counts
    fitter = Fitter(new[tokens], documents, by_code, config)
    model, prior = fitter.fit(), solution.class_prior(by_code)
    losses, state = [], model.start()
    for chunk in contexts.read_all(new[test[:scored]], borders, config.window):
        losses.append(token_losses(model, chunk, state, prior)[0])
    found = fitter.report
    return {
        "nats": float(np.concatenate(losses).mean()),
        "smoothing": found.smoothing["output"],
        "temperatures": found.temperatures["output"],
    }


def labelled(examples: classifier.Data, order: str, seed: int, bits: int) -> dict[str, Any]:
    """Solve a hidden softmax layer with label embeddings as its targets, and the output layer on it; measure both."""
    X, y, X_test, y_test = examples
    n_classes = int(y.max()) + 1
    by_class = accumulators.empty(X.shape[1], n_classes)
    accumulators.update(by_class, X, y)
    new = names(order, seed, np.bincount(y), bits, roots(sparse.csr_array(by_class.sums)))
    labels = cipher_vectors(n_classes, bits)
    F = accumulators.empty(X.shape[1], bits)
    accumulators.update(F, X, new[y], labels)
    every, prior, k = max(1, y.size // SAMPLE), solution.marginal_prior(F), F.mean_norm
    sample = solution.Sample([X[::every]], labels[new[y[::every]]])
    found = solution.fit(sample, [F], prior, k=k, smoothing=1.0)
    U = solution.solve([F], prior, k=k, smoothing=1.0, temperatures=found.temperatures)
    hidden, hidden_test = (softmax(part @ U, axis=1) for part in (X, X_test))
    return classifier.measure(ExplicitClassifier().fit(hidden, y), hidden_test, y_test)


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every order; ``quick``: a small vocabulary, few bits, one seed."""
    results = Results(None if quick else docs / "results" / "orders.jsonl", __name__, progress=progress)
    vocab_size, scored = (600, 3000) if quick else (VOCAB_SIZE, SCORED)
    text = cache(lambda: texts.load(data, TEXT, vocab_size))
    rows = cache(lambda: neighbours(text().parts["train"][0], text().vocab_size))
    reader = cache(lambda name: READERS[name](data))
    output: dict[str, list[dict[str, Any]]] = {"network": [], "labels": []}
    for order in SEEDS:
        seeds = harness.cut(SEEDS[order], quick)
        for bits in (64,) if quick else BITS:
            key = {"order": order, "text": TEXT, "vocab_size": vocab_size, "bits": bits, "radius": RADIUS}
            keys = [key | {"scored": scored, "seed": seed} for seed in seeds]
            runs = [
                results.do(each, partial(lambda *at: network(text(), rows(), *at), order, seed, bits, scored))
                for each, seed in zip(keys, seeds, strict=True)
            ]
            output["network"].append({"order": order, "bits": bits, "runs": runs, "mark": results.mark(*keys)})
        for name, bits in ((name, bits) for name, sizes in LABELS.items() for bits in sizes):
            keys = [{"order": order, "labels of": name, "bits": bits, "seed": seed} for seed in seeds]
            runs = [
                results.do(each, partial(lambda n, *at: labelled(reader(n), *at), name, order, seed, bits))
                for each, seed in zip(keys, seeds, strict=True)
            ]
            row = {"order": order, "data": name, "bits": bits, "runs": runs, "mark": results.mark(*keys)}
            output["labels"].append(row)
    if not quick:
        render.write(docs, "orders", "The order of the codes", *section(output), results)
    return output


def cells(rows: list[dict[str, Any]], order: str, measure: str) -> list[str]:
    """Return mean and deviation of a measure for each row of an order."""
    return [render.spread([run[measure] for run in row["runs"]]) for row in rows if row["order"] == order]


def section(output: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    nets, labels = output["network"], output["labels"]

    def means(rows: list[dict[str, Any]], order: str, measure: str) -> str:
        return ", ".join(cell.split()[0] for cell in cells(rows, order, measure))

    def marked(rows: list[dict[str, Any]], order: str) -> str:
        return order + next((row["mark"] for row in rows if row["order"] == order and row["mark"]), "")

    bits = " and ".join(str(row["bits"]) for row in nets if row["order"] == FREQUENCY)
    heads = [f"{row['data']}, {row['bits']} bits" for row in labels if row["order"] == FREQUENCY]
    conclusion = (
        f"The network of {bits} bits has {means(nets, FREQUENCY, 'nats')} nats with codes by frequency, "
        f"{means(nets, RANDOM, 'nats')} with random ones, {means(nets, SIMILAR, 'nats')} by similarity and "
        f"{means(nets, FIRST, 'nats')} with the frequent tokens first and the others at random; with label embeddings "
        f"({'; '.join(heads)}) accuracy is {means(labels, FREQUENCY, 'accuracy')} by frequency, "
        f"{means(labels, RANDOM, 'accuracy')} at random and {means(labels, SIMILAR, 'accuracy')} by similarity."
    )
    columns = [f"{row['bits']} bits" for row in nets if row["order"] == FREQUENCY]
    table = render.table(["order", *columns], [[marked(nets, o), *cells(nets, o, "nats")] for o in SEEDS])
    accuracy = render.table(["order", *heads], [[marked(labels, o), *cells(labels, o, "accuracy")] for o in SEEDS])
    nats = render.table(["order", *heads], [[marked(labels, o), *cells(labels, o, "cross_entropy")] for o in SEEDS])
    body = f"""{claims.claimed("orders")}

The near-shallow network with the radial context, radius {RADIUS}, solved from WikiText-2 (articles, V =
{VOCAB_SIZE:,}) and not trained. Nats a token on the first {SCORED:,} tokens of the test text; random orders: mean and
deviation of {len(SEEDS[RANDOM])} seeds. All orders use the same codes: "frequent first" is the control of "by
similarity", where every token that shares its code's bits with others shares them with tokens that have the same
neighbours in the training text. Smoothing and temperatures are fitted for each order.

{table}
Label embeddings: the bits of the class are the targets of a hidden softmax layer, and the output layer is solved on
its outputs. Features and data are those of "Classifiers and plain networks"; classes are similar if their training
examples have the same features. Accuracy on the test examples:

{accuracy}
Cross-entropy, in nats:

{nats}"""
    return conclusion, body
