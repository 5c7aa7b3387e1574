"""The scores of the BLiMP bench: those of the models, and how pairs are decided."""

import numpy as np
import pytest
import torch

from benchmarks import blimp
from benchmarks.decoders import Start
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.counts import NGrams
from warmstart.gate import FLOOR
from warmstart.ngrams import count_ngrams

LINES = ["the dog barks and the dogs bark"] * 40 + ["a dog barks.", "many dogs bark."] * 40


class Books(blimp.Books):
    """Books that are made up, as words."""

    @property
    def corpus(self):
        return self.of_words

    def __init__(self, folder, corpus):
        super().__init__(folder, 0)
        self.of_words = corpus


def sizes(contexts, radius):
    return {"bits": 8, "radius": radius} if "radial" in contexts else {}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    (folder / "valid.txt").write_text("\n".join(LINES))
    return Books(folder, Corpus.build(LINES, tokenizer="words", cache_dir=folder))


@pytest.mark.parametrize("contexts", [("radial",), ("ngrams", "cache")])
def test_a_model_of_the_text_prefers_its_pairs_and_ties_count_half(books, contexts):
    model = WarmStartLM(order=3, contexts=contexts, **sizes(contexts, radius=1)).fit(books.corpus)
    pairs = [("the dog barks", "the dog bark", "agreement"), ("many dogs bark", "many dogs barks", "agreement")]
    pairs += [("a dog", "a dog", "same")]
    shares = blimp.by_field(blimp.fitted(model), books.corpus, pairs, "")
    assert shares == {"all": pytest.approx(2.5 / 3), "agreement": 1.0, "same": 0.5}


@pytest.mark.parametrize("contexts", [("radial", "document"), ("ngrams", "cache")])
def test_log_probs_are_those_of_the_model(books, contexts):
    model = WarmStartLM(order=3, contexts=contexts, **sizes(contexts, radius=2)).fit(books.corpus)
    tokens, documents, sentence = blimp.packed(["the dogs bark", "a dog"], books.corpus, "the")
    assert sentence.tolist() == [-1, 0, 0, 0, -1, -1, 1, 1, -1]
    ids = tokens[1:5].tolist()
    rows = [model.predict_proba(ids[:i]) for i in range(len(ids))]
    if not model.mixture_.experts.counted:  # the published network, without the share of the unigram model
        rows = [(row - FLOOR * model.mixture_.experts.prior) / (1 - FLOOR) for row in rows]
    expected = [np.log(row[token]) for row, token in zip(rows, ids, strict=True)]
    np.testing.assert_allclose(blimp.fitted(model)(tokens, documents)[:4], expected, atol=1e-3)


def test_models_of_counts_have_the_losses_of_the_counts(books):
    tokens, documents, _ = blimp.packed(["the dog", "many dogs bark"], books.corpus, "")
    corpus = books.corpus
    losses = NGrams.of(count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, 2)).cross_entropies(tokens)
    for name, loss in zip(("unigram", "bigram"), losses, strict=True):
        assert blimp.score(name, books)(tokens, documents).mean() == pytest.approx(-loss)
    assert blimp.score("Kneser-Ney", books)(tokens, documents).mean() > -losses[0]


def test_a_start_is_judged_by_the_sentences_alone(books, monkeypatch):
    monkeypatch.setattr(blimp, "STARTS", {"the": "the", "nothing": ""})
    starts = books.starts()  # of the lines that end with a full stop, which never come after "the"
    assert starts["nothing"] < starts["the"]


def test_decoders_score_every_target_of_a_document():
    pytest.importorskip("transformers", reason="needs warmstart[hf]")
    shape = {"width": 8, "layers": 1, "heads": 1, "context": 16}
    start = Start.random("gpt2", 0, 12, shape, attn_implementation="eager")
    tokens, documents = np.array([0, 3, 4, 0, 5, 0], np.uint16), np.array([0, 3, 5])
    with torch.no_grad():
        rows = [start.model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in ([0, 3, 4], [0, 5])]
    expected = [rows[0][0, 3], rows[0][1, 4], rows[0][2, 0], rows[1][0, 5], rows[1][1, 0]]
    np.testing.assert_allclose(blimp.decoder(start)(tokens, documents), expected, atol=0.02)  # bfloat16
