"""The commands fit, eval, generate and explain, and the input that the command line refuses."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from warmstart import Corpus, WarmStartLM, __version__, cli
from warmstart.cli import output, values
from warmstart.files import load_arrays
from warmstart.tokenizer import train_tokenizer

SENTENCES = ["the cat sat on the mat", "the dog lay on the rug", "a bird sang in the tree", "one fish swam in the sea"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    return write_corpus(tmp_path)


def write_corpus(folder):
    rng = np.random.default_rng(0)
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(". ".join(SENTENCES[i] for i in rng.integers(0, 4, 60)) for _ in range(20)))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["warmstart", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


CONTEXTS = ("ngrams", "cache", "radial", "document")


def small(text, model, *more):
    options = ["--preset", "potato", "--contexts", ",".join(CONTEXTS), "--vocab-size", 300, "--workers", 1]
    return ["fit", text, "-o", model, *options, *more]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    corpus = Corpus.build(write_corpus(folder), vocab_size=300, cache_dir=folder / "cache")
    WarmStartLM("potato", contexts=CONTEXTS).fit(corpus).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def model(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "model")


def test_fit_eval_generate(run, text, tmp_path):
    folder = tmp_path / "model"
    code, out, err = run(*small(text, folder, "--split-documents", r"\n\n", "--json"))
    assert code == 0, err
    fitted = json.loads(out)
    assert fitted["documents"] == 20
    assert set(fitted["seconds"]) == {"corpus", "count", "attention", "values", "output", "ngrams", "gate"}
    assert set(fitted["left_out_perplexity"]) == {"mixture", "ngrams", "cache", "cache 1024", "cache 128", "unigram"}
    assert fitted["tokens_per_second"] > 0
    assert fitted["peak_memory_bytes"] > 1e6
    assert fitted["parameters"] == sum(a.size for a in load_arrays(folder / "model.safetensors")[0].values())
    assert "output" in err  # progress, as plain lines

    code, out, err = run("eval", folder, text, "--json", "--quiet")
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert scores["perplexity"] < 0.5 * scores["unigram_perplexity"]
    assert scores["bytes"] == text.stat().st_size
    nats = np.log(scores["perplexity"]) * scores["tokens"]
    assert scores["bits_per_byte"] == pytest.approx(nats / np.log(2) / scores["bytes"])
    assert set(scores["contexts"]) == {"radial", "document"}
    assert scores["bigram_perplexity"] < scores["unigram_perplexity"]
    assert list(scores["experts"]) == list(scores["shares"])
    assert scores["perplexity"] < min(scores["experts"].values())

    code, out, err = run("generate", folder, "--prompt", "the cat", "--max-tokens", 12, "--temperature", 0)
    assert (code, err) == (0, "")
    assert out.startswith("the cat")
    assert run("generate", folder, "--seed", 3, "--json") == run("generate", folder, "--seed", 3, "--json")


def test_version(run):
    assert run("--version") == (0, f"warmstart {__version__}\n", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (183.567, "184"),
        (12345.6, "12,300"),
        (99.96, "100"),
        (2.0, "2.00"),
        (0.00012345, "0.000123"),
        (0.0, "0.00"),
        (12345, "12,345"),
        ([1.0, 0.5], "1.00, 0.500"),
        (True, "True"),
        ("model", "model"),
    ],
)
def test_tables_show_three_significant_digits(value, text):
    assert output.shown(value) == text


def test_table_without_json(run, model, text):
    code, out, err = run("eval", model, text)
    assert code == 0
    assert "bits per byte" in out
    assert "scoring" in err
    for expert in ("ngrams", "cache 1024", "network", "unigram"):
        assert re.search(rf"^.*\b{expert}\b.* \d", out, re.MULTILINE), out


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["--contexts", "ngrams, classes,cache", "--order", "4"], ["counts"]),
        (["--contexts", "ngrams", "--order", "3", "--prune", "0,0,1"], ["ngrams"]),
        (["--contexts", "cache"], ["counts"]),
        (["--contexts", "radial"], ["counts", "model"]),
        (["--prune", "0,1"], ["model", "ngrams"]),
    ],
)
def test_contexts_order_and_prune(run, text, tmp_path, options, files):
    folder = tmp_path / "model"
    code, out, err = run(*small(text, folder, "--split-documents", r"\n\n", "--json", *options))
    assert code == 0, err
    fitted = json.loads(out)
    assert names(folder) == sorted(
        ["config.json", "tokenizer.json", "mixture.safetensors", *(f"{name}.safetensors" for name in files)]
    )
    if "--order" in options and "ngrams" in options[1]:
        assert len(fitted["ngrams"]) == int(options[3])
    if "--prune" in options:
        assert fitted["prune"] == {"0,0,1": [0, 0, 1], "0,1": [0, 1, 1]}[options[-1]]
    code, out, err = run("eval", folder, text, "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["perplexity"] < 20
    assert list(json.loads(out)["experts"])[-1] == "unigram"


def test_explain(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run("explain", model, "--prompt", "the cat sat on the mat. the cat", "--json", "--top", 3)
    assert (code, err) == (0, "")
    explained = json.loads(out)
    assert len(explained["tokens"]) == 3
    best = explained["tokens"][0]
    assert repr(best["token"]) == "' s'"
    assert sum(best["experts"].values()) == pytest.approx(1)
    assert best["places"][0]["text"].endswith("the cat s")

    picture = tmp_path / "page.html"
    code, out, err = run(
        "explain", model, "--prompt", "the cat sat on [/b] the [red] mat.\nthe cat", "--picture", picture
    )
    assert (code, err) == (0, "")
    first, *rows = out.splitlines()
    for heading in ("next token", "probability", "experts", "n-grams"):
        assert heading in first
    assert "' s'" in rows[0]
    assert re.search(r"\d%", rows[0])
    assert picture.read_text().startswith("<!doctype html>")
    assert run("explain", model, "--prompt", "a [/] b", "--quiet") == (0, "", "")
    code, out, err = run("explain", model, "--json")  # of an empty document
    assert (code, err) == (0, "")
    assert all(token["places"] == [] for token in json.loads(out)["tokens"])


def test_brackets_are_no_markup(capsys):
    output.print_table([["[/b]", "[red]x"], ["\\[b]", ""]], ["a", "b"])
    assert capsys.readouterr().out.split() == ["a", "b", "[/b]", "[red]x", "\\[b]"]


def test_explain_refuses(run, model, text, tmp_path):
    for arguments, message in (
        (["explain", tmp_path / "nothing"], "got nothing there"),
        (["explain", model, "--picture", tmp_path / "no" / "folder.html"], "folder.html"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert re.fullmatch(rf"error: .*{message}.*\n", err), err
    assert run(*small(text, tmp_path / "network", "--contexts", "radial", "--quiet"))[0] == 0
    code, out, err = run("explain", tmp_path / "network", "--prompt", "the cat s", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["weights"] == {"network": 0.99, "unigram": 0.01}
    assert run("explain", model, "--top", 0)[0] == 2


@pytest.mark.parametrize("contexts", ["radial,document", ",".join(CONTEXTS)])
def test_cold(run, text, tmp_path, contexts):
    """The network is random, what is counted is as warm as ever."""
    options = ["--contexts", contexts, "--split-documents", r"\n\n", "--quiet"]
    for name, more in {"cold": ["--cold"], "same": ["--cold"], "other": ["--cold", "--seed", 1], "warm": []}.items():
        code, _, err = run(*small(text, tmp_path / name, *options, *more))
        assert code == 0, err

    def content(name, file):
        return (tmp_path / name / file).read_bytes()

    for file in names(tmp_path / "cold"):
        assert content("cold", file) == content("same", file)
    assert content("cold", "model.safetensors") != content("other", "model.safetensors")
    assert content("cold", "counts.safetensors") == content("warm", "counts.safetensors")
    cold, warm = (json.loads(run("eval", tmp_path / name, text, "--json", "--quiet")[1]) for name in ("cold", "warm"))
    assert cold["bigram_perplexity"] == warm["bigram_perplexity"]
    if "ngrams" in contexts:
        assert cold["experts"]["ngrams"] == warm["experts"]["ngrams"]
        assert cold["experts"]["network"] > 100 > warm["experts"]["network"]
        assert cold["perplexity"] < 1.2 * warm["perplexity"]
        assert cold["shares"]["network"] < 0.05
    else:
        assert cold["perplexity"] > 100 > warm["perplexity"]


def test_cold_needs_a_network(run, text, tmp_path):
    code, _, err = run(*small(text, tmp_path / "model", "--contexts", "ngrams", "--cold", "--quiet"))
    assert code == 1
    assert re.fullmatch(r"error: contexts: expected one of the network for a cold start, .*\n", err)
    assert not (tmp_path / "model").exists()


UNDECODABLE = "\udcff"  # the byte 0xff, as Python gives it in an argument


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["generate", "MODEL", "--prompt", UNDECODABLE],
            1,
            "prompt: expected Unicode text, got a lone surrogate",
        ),
        (["generate", "MODEL", "--prompt", "a" + UNDECODABLE, "--json"], 1, "character 1; give valid UTF-8"),
        (["explain", "MODEL", "--prompt", UNDECODABLE], 1, "prompt: expected Unicode text"),
        (["eval", "MODEL", "TEXT", "--split-documents", UNDECODABLE], 1, "split_documents: expected Unicode text"),
        (["eval", "MODEL", "TEXT", "--text-field", UNDECODABLE], 1, "text_field: expected Unicode text"),
        (["eval", "MODEL", "TEXT" + UNDECODABLE], 1, "No such file"),
        (["generate", "MODEL" + UNDECODABLE], 1, "got nothing there"),
        (["fit", "TEXT", "-o", "NEW", "--contexts", UNDECODABLE], 1, "contexts: expected some of"),
        (["fit", "TEXT", "-o", "NEW", "--tokenizer", UNDECODABLE], 1, "expected a tokenizer.json"),
        (["fit", "TEXT", "-o", "NEW", "--preset", UNDECODABLE], 1, "preset: expected one of"),
        (["fit", "TEXT", "-o", "NEW", "--prune", UNDECODABLE], 2, "whole numbers with commas"),
        (["finetune", "MODEL", "TEXT", "--valid", "TEXT", "-o", "NEW", "--phases", UNDECODABLE], 1, "phases: expected"),
        (["init", "TEXT", "-o", "NEW", "--config", UNDECODABLE], 1, "config: expected a JSON object"),
        (["compare", UNDECODABLE], 1, "expected the log of a run"),
    ],
)
def test_arguments_that_are_no_text(run, model, text, tmp_path, arguments, code, message):
    places = {"MODEL": model, "TEXT": text, "NEW": tmp_path / "new"}
    words = [re.sub("^(MODEL|TEXT|NEW)", lambda match: str(places[match[1]]), word) for word in arguments]
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_what_the_terminal_cannot_show_is_escaped(text, tmp_path):
    """A folder whose name is not UTF-8, and a terminal that shows Latin-1 alone."""
    folder = tmp_path / f"m{UNDECODABLE}"
    command = [sys.executable, "-m", "warmstart.cli"]
    for words, shown in ((small(text, folder), "m\\udcff"), (["generate", folder, "--prompt", "木"], "\\u6728")):
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict", "COLUMNS": "400"}
        done = subprocess.run([*command, *map(str, words)], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout.decode("latin-1")


def test_prompt_and_text_are_one(run, text, tmp_path):
    """A words tokenizer: the prompt and the first word are not glued together."""
    options = ["--tokenizer", "words", "--quiet", "--contexts", "ngrams"]
    assert run(*small(text, tmp_path / "words", *options))[0] == 0
    writing = ["--temperature", 0, "--max-tokens", 3]
    assert run("generate", tmp_path / "words", "--prompt", "a bird", *writing) == (0, "a bird sang in the\n", "")
    assert not run("generate", tmp_path / "words", *writing)[1].startswith(" ")


def test_same_bytes_for_any_number_of_workers(run, text, tmp_path):
    digests = set()
    for workers in (1, 2, 3):
        folder = tmp_path / f"model{workers}"
        assert run(*small(text, folder, "--workers", workers, "--quiet"))[0] == 0
        digests.add(b"".join((folder / name).read_bytes() for name in names(folder)))
    assert len(digests) == 1


def test_compressed_and_jsonl_give_the_same_model(run, text, tmp_path):
    packed, lines = tmp_path / "corpus.txt.gz", tmp_path / "corpus.jsonl"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    lines.write_text(json.dumps({"text": text.read_text()}) + "\n")
    weights = set()
    for i, path in enumerate((text, packed, lines)):
        assert run(*small(path, tmp_path / str(i), "--quiet"))[0] == 0
        weights.add((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert len(weights) == 1


def test_every_command_that_reads_text_has_the_options(run, text, tmp_path):
    lines, other = tmp_path / "corpus.log", tmp_path / "other.txt"
    records = [json.dumps({"body": text.read_text()}), "no record"]
    for path in (lines, other):
        path.write_text("\n".join(records[:: 1 if path == lines else -1]))
    options = ["--format", "jsonl", "--text-field", "body", "--skip-bad-records"]
    model, both = tmp_path / "m", ("fit", "eval", "finetune", "init")
    with pytest.warns(UserWarning, match="1 of the first 2 records"):
        code, out, _ = run(*small(lines, model, "--json", *options))
    assert (code, json.loads(out)["documents"]) == (0, 1)
    with pytest.warns(UserWarning, match="1 of the first 2 records"):
        assert json.loads(run("eval", model, other, "--json", "--quiet", *options)[1])["documents"] == 1
    for command in both:
        arguments = [command, *([model] if command in ("eval", "finetune") else []), other]
        arguments += {"fit": ["-o", tmp_path / "x"], "init": ["-o", tmp_path / "x"], "eval": []}.get(
            command, ["-o", tmp_path / "x", "--valid", other]
        )
        code, _, err = run(*arguments, *options[:-1])
        assert code == 1
        assert re.search(r"error: .*other.txt: 1 of the first 2 records cannot be used .*--skip-bad-records", err)
        assert run(command, *arguments[1:], "--format", "csv")[0] == 2


def test_warnings_are_sentences(run):
    run("--version")
    assert warnings.formatwarning("left out a.pdf", UserWarning, "cli.py", 1) == "warning: left out a.pdf\n"


def test_a_file_called_like_standard_input(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert values.paths_of(["-", "./-", "a", "./a"]) == [Path("-"), tmp_path / "-", Path("a"), Path("a")]


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_other_tokenizers(run, text, tmp_path, kind):
    assert run(*small(text, tmp_path / "m", "--tokenizer", kind, "--quiet"))[0] == 0
    code, out, _ = run("eval", tmp_path / "m", text, "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["unknown_tokens"] == 0


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"", [], "corpus with text"),
        (b"  \n \n", [], "corpus with text"),
        (b"fine so far \xff and more", [], "corpus.txt: .*12"),
        (b"one two", ["--tokenizer", "words", "--contexts", "block"], "more tokens than the context"),
        (None, ["--bits", "2"], "bits"),
        (None, ["--contexts", "radial,circle"], "circle"),
        (None, ["--contexts", "radial,radial"], "once each"),
        (None, ["--preset", "huge"], "preset"),
        (None, ["--radius", "0"], "radius"),
        (None, ["--order", "0"], "order: expected a whole number from 1 to 100, got 0"),
        (None, ["--order", "101"], "got 101"),
        (None, ["--contexts", "classes", "--order", "1"], "from 2 to 100"),
        (None, ["--contexts", ""], "contexts: expected some of ngrams, classes, cache"),
        (None, ["--prune", "0,2,1"], "do not fall"),
        (None, ["--prune", "1"], "begin with 0"),
        (None, ["--prune", "0,0,0,0,0,0,0,1"], "at most 3 whole numbers"),
        (None, ["--prune", "0,x"], "expected whole numbers with commas"),
        (None, ["--cold", "--order", "0"], "order"),
        (None, ["--block-size", "65536", "--contexts", "block"], "context of 65536"),
        (None, ["--block-size", "65537", "--contexts", "block"], "block_size: expected a whole number from 1 to 65536"),
        (None, ["--vocab-size", "100"], "vocab"),
        (None, ["--smoothing", "-1"], "positive number"),
        (None, ["--temperature", "warm"], "positive number"),
        (None, ["--tokenizer", "nowhere.json"], "nowhere.json"),
        (None, ["--split-documents", "("], "regular expression|expression"),
    ],
)
def test_bad_input_is_refused(run, text, tmp_path, content, options, expected):
    if content is not None:
        text.write_bytes(content)
    folder = tmp_path / "model"
    code, out, err = run(*small(text, folder, "--quiet", *options))
    assert code != 0
    assert out == ""
    assert "Traceback" not in err
    assert re.search(expected, err), err
    assert not folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["cache", "corpus.txt"], ["corpus.txt"])


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 0, ""),
        (("fit",), 2, "Missing option '--output' / '-o'; see warmstart fit --help"),
        (("fits",), 2, "No such command 'fits'.*; see warmstart --help"),
        (("eval", "m", "--nope"), 2, "No such option: --nope.*; see warmstart eval --help"),
        (("eval", "m", "--workers", "0"), 2, "Invalid value for '--workers': .*1; see warmstart eval --help"),
        (("generate", "m", "--seed", "-1"), 2, "Invalid value for '--seed': .*"),
        (("eval", "m"), 1, "m: expected a model folder, got nothing there; make one with .*"),
        (("eval", "a\nb"), 1, r"a\\nb: expected a model folder, .*"),
    ],
)
def test_an_error_is_one_line_and_has_a_code(run, monkeypatch, tmp_path, words, code, expected):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*words)
    assert found == code
    assert ("Commands" in out) == (code == 0)
    assert re.fullmatch(f"error: {expected}\n" if code else "", err), err
    if words:
        _, _, debugged = run("--debug", *words)
        assert debugged.startswith("Traceback")
        assert debugged.endswith(err)


def test_an_empty_name_is_not_the_working_folder(run, model, text, monkeypatch):
    monkeypatch.chdir(text.parent)
    for words in (["eval", model, ""], small("", text.parent / "new")):
        code, _, err = run(*words)
        assert code == 2
        assert "error: Invalid value: expected names of files or folders, got an empty one; see " in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "a"), "a: expected files .*, got: No space left on device; .*"),
        (MemoryError(), "expected more memory, got no more; choose .*"),
        (OverflowError("too large"), "expected numbers .*, got a larger one: too large; give smaller ones"),
        (KeyError("x"), "expected no KeyError, got a fault of warmstart itself: 'x'; please report what .*"),
    ],
)
def test_every_error_says_what_to_do(run, model, monkeypatch, error, expected):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(WarmStartLM, "from_pretrained", fails)
    code, out, err = run("eval", model)
    assert (code, out) == (1, "")
    assert re.fullmatch(f"error: {expected}\n", err), err


def test_a_device_is_not_replaced(run, model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run("explain", model, "--quiet", "--picture", tmp_path / "pipe")
    assert code == 1
    assert "pipe: expected files that can be read and written, got: expected a file to write, got something else" in err
    assert (tmp_path / "pipe").is_fifo()


def test_missing_path(run, tmp_path):
    code, _, err = run(*small(tmp_path / "nothing.txt", tmp_path / "model"))
    assert code == 1
    assert err.startswith("error: ")
    assert "nothing.txt" in err


def test_fit_refuses_a_folder_of_something_else_before_working(run, text, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    code, _, err = run(*small(text, tmp_path / "photos"))
    assert code == 1
    assert "photos" in err
    assert names(tmp_path / "photos") == ["cat.jpg"]


@pytest.mark.parametrize(
    "damage", ["truncate", "foreign", "remove", "config", "counts", "tokenizer", "mixture", "no mixture"]
)
def test_damaged_model_folder(run, model, text, damage):
    weights = model / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "foreign":
        weights.write_bytes((model / "counts.safetensors").read_bytes())
    elif damage == "remove":
        weights.unlink()
    elif damage == "config":
        (model / "config.json").write_text('{"model_type": "gpt2"}')
    elif damage == "counts":
        (model / "counts.safetensors").write_bytes(weights.read_bytes())
    elif damage == "mixture":
        (model / "mixture.safetensors").write_bytes(weights.read_bytes())
    elif damage == "no mixture":
        (model / "mixture.safetensors").unlink()
    else:
        (model / "tokenizer.json").write_text("{}")
    code, out, err = run("eval", model, text, "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_failed_fit_leaves_the_old_model(run, model, text):
    before = {name: (model / name).read_bytes() for name in names(model)}
    text.write_bytes(b"")
    assert run(*small(text, model, "--quiet"))[0] == 1
    assert {name: (model / name).read_bytes() for name in names(model)} == before


def test_full_disk_leaves_the_old_model(run, model, text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    before = {name: (model / name).read_bytes() for name in names(model)}
    monkeypatch.setattr("warmstart.files.save_file", full)
    code, _, err = run(*small(text, model, "--quiet"))
    assert code == 1
    assert "No space left on device" in err
    assert {name: (model / name).read_bytes() for name in names(model)} == before
    assert not [p for p in model.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_interrupt_leaves_nothing(text, tmp_path):
    text.write_text(text.read_text() * 300)
    command = [sys.executable, "-m", "warmstart.cli", *map(str, small(text, tmp_path / "model", "--bits", "256"))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("encode text"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(600) == 130
    assert "Traceback" not in err
    assert not (tmp_path / "model").exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_files_of_tokens(run, text, tmp_path):
    """The same model from tokens as from the text; tokens are scored, and train a network, under the model's ids."""
    tokenizer = train_tokenizer([text.read_text()], vocab_size=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = [[*tokenizer.encode(document).ids, 0] for document in text.read_text().split("\n\n")]
    np.concatenate(ids).astype("<u2").tofile(tmp_path / "train.bin")
    models = {}
    for name, arguments in (("text", ["--split-documents", r"\n\n"]), ("tokens", ["--end-of-text", "0"])):
        source = text if name == "text" else tmp_path / "train.bin"
        made = small(source, tmp_path / name, "--tokenizer", tmp_path / "tokenizer.json", *arguments, "--json", "-q")
        code, _, err = run(*made)
        assert (code, err) == (0, "")
        models[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    changing = {"report.json", "config.json"}  # seconds
    assert models["text"].keys() == models["tokens"].keys()
    assert {name for name in models["text"] if models["text"][name] != models["tokens"][name]} <= changing

    tokens = ["--tokenizer", tmp_path / "tokenizer.json", "--json", "-q"]
    of_text = run("eval", tmp_path / "text", text, "--split-documents", r"\n\n", "--json", "-q")
    of_tokens = run("eval", tmp_path / "text", tmp_path / "train.bin", *tokens)
    assert json.loads(of_tokens[1]) | {"seconds": 0} == json.loads(of_text[1]) | {"seconds": 0}
    trained = ["finetune", tmp_path / "text", tmp_path / "train.bin", "--valid", tmp_path / "train.bin"]
    code, out, err = run(*trained, "--max-tokens", 2048, "--phases", "all", *tokens)
    assert (code, err) == (0, "")
    assert json.loads(out)["tokens"] >= 2048


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "BIN", "-o", "NEW"], 1, "expected --tokenizer FILE with files of tokens, got bpe"),
        (["eval", "MODEL", "BIN"], 1, "expected --tokenizer FILE with files of tokens, got none"),
        (
            ["eval", "MODEL", "TEXT", "--tokenizer", "a.json"],
            2,
            r"files of tokens (.bin, .ds) with --tokenizer, got none",
        ),
        (["fit", "TEXT", "-o", "NEW", "--end-of-text", "a"], 2, "with --end-of-text, got none"),
        (["fit", "BIN", "TEXT", "-o", "NEW", "--tokenizer", "a.json"], 1, "text and tokens in different runs"),
        (["fit", "BIN", "-o", "NEW", "--format", "text", "--end-of-text", "a"], 2, "with --end-of-text, got none"),
    ],
)
def test_files_of_tokens_need_their_tokenizer(run, text, model, tmp_path, arguments, code, message):
    (tmp_path / "a.bin").write_bytes(b"\1\0")
    places = {"BIN": tmp_path / "a.bin", "TEXT": text, "MODEL": model, "NEW": tmp_path / "new"}
    found, out, err = run(*(places.get(argument, argument) for argument in arguments))
    assert (found, out) == (code, "")
    assert message in err
    assert not (tmp_path / "new").exists()


def test_fit_counts_a_share_of_the_documents(run, text, tmp_path):
    options = ["--split-documents", r"\n\n", "--json", "--quiet", "--contexts", "ngrams", "--sample"]
    found = [json.loads(run(*small(text, tmp_path / "m", *options, share))[1]) for share in (0.4, 1)]
    assert 0 < found[0]["documents"] < found[1]["documents"] == 20
    code, _, err = run(*small(text, tmp_path / "n", *options, 1.5))
    assert (code, "sample: expected a number above 0" in err, (tmp_path / "n").exists()) == (1, True, False)
