"""Windows: every target once, in any length and stride; what counts say is beside its token; the Trainer reads them."""

import numpy as np
import pytest
import torch
from test_finetune import texts
from torch.utils.data import DataLoader

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Windows
from warmstart.finetune.evidence import expert_table
from warmstart.kneser_ney import KneserNey
from warmstart.mixture import Experts
from warmstart.ngrams import count_ngrams
from warmstart.solution import class_prior


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(40), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def counts(corpus):
    return count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, 3)


@pytest.fixture(scope="module")
def experts(corpus, counts):
    return Experts(corpus.separator, class_prior(np.asarray(corpus.counts)), KneserNey(counts), cache=True)


@pytest.fixture(scope="module")
def table(corpus, counts, experts):
    return expert_table(experts, corpus, counts)


def pairs(corpus):
    """Yield lengths and strides: all of a short corpus, with windows that fit exactly, and that are one token off."""
    n = corpus.n_tokens
    return [(2, None), (2, 1), (7, None), (7, 3), (7, 1), (n, None), (n + 1, None), (n, 1), (n // 2 + 1, None)]


def test_every_target_counts_once_and_every_window_is_a_stretch_of_the_text(corpus):
    text = corpus.tokens.astype(np.int64)
    for length, stride in pairs(corpus):
        found, starts = [], []
        for tokens, places in zip(
            Windows(corpus, length, stride=stride), Windows(corpus, length, labels="places", stride=stride), strict=True
        ):
            start = int(corpus.documents[tokens["document"]]) + tokens["offset"]
            starts.append(start)
            np.testing.assert_array_equal(tokens["input_ids"], text[start : start + length])
            counted = tokens["labels"] != -100
            assert not counted[0]
            assert torch.equal(counted, places["labels"] != -100)
            assert torch.equal(tokens["labels"][counted], tokens["input_ids"][counted])
            np.testing.assert_array_equal(text[places["labels"][counted] + 1], tokens["labels"][counted])
            found += places["labels"][counted].tolist()
        assert found == list(range(corpus.n_tokens)), (length, stride)
        assert set(np.diff(starts)[:-1]) <= {stride or length - 1}
        assert starts[-1] == corpus.n_tokens + 1 - length


def test_a_window_knows_its_document(corpus):
    seen = set()
    for window in Windows(corpus, 5, stride=1):
        first, end = corpus.documents[window["document"] : window["document"] + 2]
        assert 0 <= window["offset"] < end - first
        assert (window["offset"] == 0) == (window["input_ids"][0] == corpus.separator)
        seen.add(window["document"])
    assert len(seen) >= corpus.n_documents - 4


def test_what_the_counts_say_stands_beside_its_token(corpus, table):
    said = np.full_like(table.probs, np.nan)
    buckets = np.full_like(table.buckets, -1)
    for window, own in zip(
        Windows(corpus, 9, table, "places", stride=4), Windows(corpus, 9, table, stride=4), strict=True
    ):
        counted = window["labels"] != -100
        said[window["labels"][counted]] = own["expert_probs"][counted]
        buckets[window["labels"][counted]] = own["expert_buckets"][counted]
        assert own["expert_probs"].shape == (9, table.probs.shape[1])
        assert torch.isfinite(own["expert_probs"]).all()
    np.testing.assert_array_equal(said, table.probs)
    np.testing.assert_array_equal(buckets, table.buckets)


def test_a_loader_batches_and_shuffles_them(corpus, table):
    windows = Windows(corpus, 8, table)
    batch = next(iter(DataLoader(windows, batch_size=3, shuffle=True)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 8), "labels": (3, 8), "document": (3,), "offset": (3,),
        "expert_probs": (3, 8, table.probs.shape[1]), "expert_buckets": (3, 8),
    }  # fmt: skip
    with pytest.raises(IndexError):
        windows[len(windows)]
    assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])


@pytest.mark.filterwarnings("default")  # transformers warns
def test_the_trainer_takes_them_as_they_are(corpus, table, tmp_path):
    """The loss that it reports for validation is that of the whole text, each target once; a step trains."""
    transformers = pytest.importorskip("transformers", reason="needs warmstart[hf]")
    pytest.importorskip("accelerate", reason="needs warmstart[hf]")
    torch.manual_seed(0)
    sizes = {"vocab_size": corpus.vocab_size, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=2, save_strategy="no",
        per_device_eval_batch_size=1,
    )  # fmt: skip
    windows = Windows(corpus, 8, table)
    trainer = transformers.Trainer(model, arguments, train_dataset=windows, eval_dataset=windows)
    total = torch.zeros(())
    model.eval()
    with torch.no_grad():
        for window in windows:
            logits = model(window["input_ids"][None]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, window["labels"][1:], reduction="sum")
            of_window = model(window["input_ids"][None], labels=window["labels"][None]).loss
            assert torch.isfinite(of_window)
    before = [p.detach().clone() for p in model.parameters()]
    per_target = float(total) / corpus.n_tokens
    mean_of_windows = trainer.evaluate()[
        "eval_loss"
    ]  # the Trainer weighs batches equally; the last one has fewer targets
    assert mean_of_windows == pytest.approx(per_target, rel=0.05)
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_datasets_holds_the_same(corpus, table):
    pytest.importorskip("datasets", reason="needs the package datasets")
    windows = Windows(corpus, 8, table)
    columns = windows.to_datasets()
    assert len(columns) == len(windows)
    for index in (0, 5, len(windows) - 1):
        for name, value in windows[index].items():
            np.testing.assert_array_equal(columns[index][name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 1}, "length: expected 2 to"),
        ({"length": 10**6}, "length: expected 2 to"),
        ({"length": 8, "stride": 8}, "stride: expected 1 to 7"),
        ({"length": 8, "stride": 0}, "stride: expected 1 to 7"),
        ({"length": 8, "labels": "words"}, "labels: expected one of tokens, places"),
    ],
)
def test_what_does_not_fit_is_refused(corpus, arguments, message):
    with pytest.raises(InputError, match=message):
        Windows(corpus, **arguments)


def test_a_table_of_another_text_is_refused(corpus, experts, tmp_path):
    for other in (texts(41), texts(40)[::-1]):  # of another size, and of the same
        text = Corpus.encode(other, corpus.tokenizer, cache_dir=tmp_path)
        with pytest.raises(InputError, match="got a table of another one"):
            Windows(corpus, 8, expert_table(experts, text))
