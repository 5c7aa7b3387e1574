"""Explanations as text and as a picture: shares by target, positions in the prompt, and an HTML page that is one."""

import gzip
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from warmstart import Corpus, WarmStartLM
from warmstart.explanation import COLOURS, described, token_shares, write_picture

TEXTS = ["the <b>cat</b> sat on the mat & the cat sat\n" * 3, "a dog sat on the 'log' & the \"frog\" sat\n" * 3] * 4
PROMPT = "the cat sat on the <b>mat</b> & the cat sat\non"


@pytest.fixture(scope="module")
def model():
    corpus = Corpus.build(TEXTS, vocab_size=300)
    return WarmStartLM("potato", contexts=("ngrams", "classes", "cache", "radial"), bits=16).fit(corpus)


@pytest.fixture
def ids(model):
    return model.tokenizer_.encode(PROMPT).ids


def test_shares_of_every_token(model, ids):
    probs, shares = token_shares(model.mixture_, ids)
    assert shares.shape == (len(ids), 7)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(probs, [model.predict_proba(ids[:i])[token] for i, token in enumerate(ids)], rtol=1e-12)
    means = model.evaluate([PROMPT])["shares"]
    end = model.mixture_.experts.separator
    _, whole = token_shares(model.mixture_, [*ids, end])
    np.testing.assert_allclose(whole.mean(axis=0), list(means.values()), rtol=1e-5)
    empty, none = token_shares(model.mixture_, [])
    assert (empty.shape, none.shape) == ((0,), (0, 7))


def test_positions_are_those_of_the_prompt(model, ids):
    shown = described(model.explain(ids, top=300), ids, model.tokenizer_)
    assert list(shown["weights"]) == model.mixture_.experts.names
    assert sorted(token["id"] for token in shown["tokens"]) == list(range(model.tokenizer_.get_vocab_size()))
    assert sum(token["probability"] for token in shown["tokens"]) == pytest.approx(1)
    assert max(len(token["places"]) for token in shown["tokens"]) > 1
    for token in shown["tokens"]:
        assert token["token"] == model.tokenizer_.decode([token["id"]], skip_special_tokens=False)
        assert sum(ngram["share"] for ngram in token["ngrams"]) == pytest.approx(token["experts"]["ngrams"])
        for place in token["places"]:
            position = place["position"]
            assert ids[position] == token["id"]
            assert place["text"] == model.tokenizer_.decode(ids[max(0, position - 5) : position + 1])
        if token["places"]:
            assert sum(place["share"] for place in token["places"]) == pytest.approx(token["experts"]["cache"])
        for ngram in token["ngrams"]:
            before = [model.mixture_.experts.separator, *ids]
            assert ngram["ids"] == [*before[len(before) - len(ngram["ids"]) + 1 :], token["id"]]


class Page(HTMLParser):
    """Reads the spans of the second paragraph, and refuses tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.spans, self.paragraphs = [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.paragraphs += tag == "p"
        if tag == "span" and self.paragraphs == 2:
            self.spans.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.paragraphs == 2 and self.open[-1:] == ["span"]:
            self.spans[-1][1] += data


def test_a_picture_is_a_page_with_a_span_for_every_token(model, ids, tmp_path):
    write_picture(tmp_path / "a.html", model.mixture_, ids, model.tokenizer_)
    page = Page()
    page.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert "".join(text for _, text in page.spans).replace("↵", "\n") == PROMPT
    probs, shares = token_shares(model.mixture_, ids)
    for (attributes, _), p, share in zip(page.spans, probs, shares, strict=True):
        first = model.mixture_.experts.names[int(share.argmax())].split()[0]
        assert COLOURS[first] in attributes["style"]
        assert attributes["title"].startswith(f"{p:.2%}: ngrams {share[0]:.0%}, classes ")
    assert {path.name for path in tmp_path.iterdir()} == {"a.html"}
    write_picture(tmp_path / "b.html", model.mixture_, [], model.tokenizer_)
    assert re.search(r"<p></p>", (tmp_path / "b.html").read_text())


def test_every_expert_has_a_colour(model):
    assert {name.split()[0] for name in model.mixture_.experts.names} == set(COLOURS)


def test_whole_words_stand_apart_in_a_picture(tmp_path):
    model = WarmStartLM("potato", contexts=("ngrams",)).fit(
        Corpus.build(["the cat sat on the mat"] * 9, tokenizer="words")
    )
    write_picture(tmp_path / "a.html", model.mixture_, model.tokenizer_.encode("the cat sat").ids, model.tokenizer_)
    page = Page()
    page.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [text for _, text in page.spans] == ["the", " cat", " sat"]


def test_a_picture_is_compressed_where_its_name_says_so(model, ids, tmp_path):
    for name in ("a.html", "a.html.gz"):
        write_picture(tmp_path / name, model.mixture_, ids, model.tokenizer_)
    assert gzip.decompress((tmp_path / "a.html.gz").read_bytes()) == (tmp_path / "a.html").read_bytes()
