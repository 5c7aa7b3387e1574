"""The bench of training beside the counts: its losses are those of the mixture, its sentences are computed."""

from dataclasses import replace

import pytest
from test_finetune import texts

from benchmarks import beside as bench
from benchmarks import beside_section as section
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.finetune.beside import without_network
from warmstart.mixture import Mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of corpora as `finetune.encode` makes it."""
    place = tmp_path_factory.mktemp("beside")
    train = Corpus.build(texts(100), tokenizer="words", cache_dir=place / "cache")
    corpora = {"train": train}
    for seed, part in enumerate(("valid", "test"), start=1):
        corpora[part] = Corpus.encode(texts(20, seed=seed), train.tokenizer, cache_dir=place / "cache")
    for part, corpus in corpora.items():
        (place / part).symlink_to(corpus.folder)
    return place


def test_losses_are_those_of_the_mixture(folder):
    corpus = Corpus.open(folder / "test")
    model = WarmStartLM(preset="potato", contexts=("ngrams", "cache", *bench.CONTEXTS))
    model.fit(Corpus.open(folder / "train"))
    mixture, cut = model.mixture_, without_network(model.mixture_.gate)
    alone = Mixture(replace(mixture.experts, network=None), cut)
    gates = {"counts": bench.without_zeros(mixture.gate), "mixture": mixture.gate}
    losses = bench.test_losses(mixture.experts, gates, corpus)
    expected = mixture.score(corpus.tokens, corpus.documents)
    assert losses["mixture"] == pytest.approx(-expected.log_probs.mean(), abs=1e-5)
    assert losses["network"] == pytest.approx(expected.experts["network"], abs=1e-4)
    counts = alone.score(corpus.tokens, corpus.documents).log_probs
    assert losses["counts"] == pytest.approx(-counts.mean(), abs=1e-6)
    assert len({round(loss, 3) for loss in losses.values()}) == 3


@pytest.mark.parametrize("arm", bench.PHASES)
def test_a_run_trains_network_and_gate_and_reads_the_test_text(folder, arm):
    rates = dict.fromkeys(("embedding", "middle", "output"), 0.003)
    run = bench.train(str(folder), "potato", arm, "ngrams", rates, 3000, 1000, 1000)
    assert run["tokens"] == [0, 1000, 2000, 3000]
    first, *_, last = run["network_nats"]
    assert first < 1.4 if arm == "warm" else last < first
    assert last != first
    assert run["nats"][-1] == pytest.approx(run["gate"]["nats_before"], abs=1e-4)
    assert run["documents"] == {"left_out": 100, "new": 0}
    assert set(run["test_nats"]) == {"counts", "network", "mixture"}
    assert run["test_nats"]["mixture"] < run["test_nats"]["counts"] + 0.05


def row(arm, counts, losses, alone=4.0):
    runs = [{"nats": [9.0, alone - 0.1], "test_nats": alone + more} for more in (0.0, 0.02, 0.04)]
    result = losses and {
        "counts_nats": losses[0], "network_nats": [9.0, 4.2], "nats": [losses[0], losses[1]],
        "gate": {"nats_before": losses[1], "nats_refitted_on_the_other_half": losses[1] - 0.02},
        "test_nats": {"counts": losses[0], "network": 4.3, "mixture": losses[1]},
    }  # fmt: skip
    labels = {"text": "t", "preset": "micro", "arm": arm, "counts": counts, "tokens": 5000, "mark": ""}
    return labels | {"alone": runs, "result": result}


def test_section_by_hand():
    n, whole = bench.COUNTS
    rows = [row("warm", n, (3.9, 3.6)), row("cold", n, (3.9, 3.75))]
    rows += [row("warm", whole, (3.5, 3.4)), row("cold", whole, None)]
    lines = section.table(rows, section.TEST).splitlines()
    assert lines[2] == "| t micro, warm | n-grams | 3.900 | 4.000 | 4.300 | 3.600 | 0.300 | 0.400 |"
    assert lines[5] == "| t micro, cold | n-grams, classes, cache | not run | - | - | - | - | - |"
    lines = section.table(rows, section.VALID).splitlines()
    assert lines[2] == "| t micro, warm | n-grams | 3.900 | 3.900 | 4.200 | 3.900 | 3.600 | 3.580 |"
    assert section.conclusion(rows) == (
        "After training, on test text, the mixture of the network and n-grams is 0.150 to 0.300 nats below the counts "
        "and 0.250 to 0.400 nats below the network alone; the mixture of the network and n-grams, classes, cache is "
        "0.100 nats below the counts and 0.600 nats below the network alone; from the warm start mixtures end 0.150 "
        "nats below the cold one (negative: above), and seeds of the network alone deviate by up to 0.020; 1 of 4 runs "
        "have not been made."
    )
    assert section.conclusion(rows[3:]) == "None of the runs has been made."
