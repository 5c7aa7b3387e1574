"""Counting in shards: whatever the shards and the order of merging, the model has the bytes of one fit."""

import itertools
import json
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest

from warmstart import WarmStartLM, cli, shards
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.files import checksums, load_arrays, save_arrays
from warmstart.ngrams import count_ngrams
from warmstart.ranks import renumbered
from warmstart.tokenizer import load_tokenizer

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "er", "ilo", "u")]
OPTIONS = {"preset": "potato", "contexts": ("ngrams", "classes", "cache", "radial", "memory"), "bits": 16}
ARGUMENTS = ["--preset", "potato", "--contexts", "ngrams,classes,cache,radial,memory", "--bits", "16", "--workers", "1"]


def texts(n=21, seed=0):
    """Documents with words that come back, one of them twice."""
    draw = random.Random(seed)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(1, 160))) + "." for _ in range(n - 1)]
    return [*documents, documents[3]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of a sample whose frequencies are not those of the text."""
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    shards.train(texts(5, seed=1), folder, vocab_size=300)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tokenizer):
    """The model of one fit on the whole text, as the command line does it."""
    folder = tmp_path_factory.mktemp("fitted")
    corpus = Corpus.build(texts(), tokenizer=tokenizer, cache_dir=folder / "cache")
    WarmStartLM(**OPTIONS).fit(corpus).save_pretrained(folder / "model")
    return content(folder / "model")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(documents, n):
    """Cut a list into n parts of different sizes."""
    places = [round(len(documents) * (i / n) ** 1.5) for i in range(n + 1)]
    return [documents[a:b] for a, b in itertools.pairwise(places)]


def write(folder, tokenizer, n, **options):
    paths = []
    for i, part in enumerate(cut(texts(), n)):
        paths.append(folder / f"{i}.stats")
        shards.count(part, tokenizer, **options).save(paths[-1])
    return paths


@pytest.mark.filterwarnings("ignore:.*counted too")  # the document that is there twice can be a whole shard
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_model_has_the_bytes_of_one_fit(tmp_path, tokenizer, fitted, n):
    paths = write(tmp_path, tokenizer, n)
    orders = [paths, paths[::-1], random.Random(n).sample(paths, n)]
    merged = {}
    for order in orders:
        shards.merge(order).save(tmp_path / "sum.stats")
        merged[(tmp_path / "sum.stats").read_bytes()] = order
    assert len(merged) == 1
    statistic = shards.Statistic.load(tmp_path / "sum.stats")
    shards.solve(statistic, WarmStartLM(**OPTIONS)).save_pretrained(tmp_path / "model")
    assert content(tmp_path / "model") == fitted
