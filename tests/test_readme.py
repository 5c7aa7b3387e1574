"""The README against the code and the measured results."""

import json
import re
import statistics
from pathlib import Path

import pytest
from typer.main import get_command

from warmstart.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def result(name):
    lines = (ROOT / "docs" / "results" / f"{name}.jsonl").read_text().splitlines()
    return {record["name"]: record["result"] for record in map(json.loads, lines)}


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^warmstart .*$|`(warmstart [^`]*)`", README, re.M))))
def test_commands_and_options_exist(line):
    words = line.split("#")[0].split()
    if len(words) > 1:
        assert words[1] in COMMANDS
        known = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}


def test_python_examples_compile():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for code in blocks:
        compile(code, "README.md", "exec")


def test_tree_is_the_tree():
    tree = README.split("## The tree")[1].split("## ")[0]
    folder = ROOT
    for line in tree.splitlines():
        if line.startswith("    ") and (name := line.split()[0]):
            folder = ROOT / name if line[4] != " " else folder
            assert (folder if line[4] != " " else folder / name).exists(), line
    listed = set(re.findall(r"^      (\S+)", tree, re.M))
    for package in ("bitcipher", "warmstart"):
        there = {p.name + "/" * p.is_dir() for p in (ROOT / package).iterdir() if not p.name.startswith(("_", "py."))}
        assert there - {"errors.py", "files.py", "progress.py"} <= listed


def test_language_model_numbers_are_the_measured_ones():
    measured = result("lm")
    rows = re.findall(r"^\| `(--[^`]*)`[^|]*\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", README, re.M)
    assert len(rows) >= 6
    for options, weights, perplexity, unigram, bigram in rows:
        fit, scored = (measured[f"{options} classics/test.txt"][part] for part in ("fit", "eval"))
        assert f"{fit['parameters'] / 1e6:.1f} M" == weights
        assert f"{scored['perplexity']:.1f}" == perplexity
        assert f"{scored['perplexity'] / scored['unigram_perplexity']:.3f}" == unigram
        assert f"{scored['perplexity'] / scored['bigram_perplexity']:.2f}" == bigram


def test_memory_context_numbers_are_the_measured_ones():
    found = re.search(
        r"one from\s+([\d.]+) to ([\d.]+); on WikiText-2 from ([\d.]+) to ([\d.]+) \(bigram ([\d.]+)\)", README
    )
    measured = result("lm")
    names = [
        f"--contexts {c} {text}/test.txt" for text in ("classics", "wikitext-2") for c in ("radial", "radial,memory")
    ]
    expected = [measured[name]["eval"]["perplexity"] for name in names]
    expected.append(measured[names[-1]]["eval"]["bigram_perplexity"])
    assert [f"{value:.1f}" for value in expected] == list(found.groups())


def test_numbers_of_memories_are_the_measured_ones():
    section = (ROOT / "docs" / "benchmarks.md").read_text().split("<!-- mixers -->")[1].split("<!-- /mixers -->")[0]
    rows = re.findall(r"^\| (\w[\w ]+) \| ([\d.]+ ±.*) \| (.* ±.*) \| (.* ±.*) \| ([\d.]+) \|$", README, re.M)
    assert len(rows) == 4
    for mixer, cold, warm, gain, share in rows:
        assert f"| {mixer} | {gain} | {share} |" in section
        for start, test in (("cold", cold), ("warm", warm)):
            assert re.search(rf"^\| {mixer}, {start} \|.*\| {test} \| \d+ \|$", section, re.M)


def test_retrieval_numbers_are_the_measured_ones():
    measured = result("retrieval")
    for setting, name, rule, size in ((1, "ELU+1", "sum", 40), (1, "DPFP-2", "sum", 240), (1, "DPFP-3", "sum", 340),
                                      (2, "DPFP-2", "delta", 100)):  # fmt: skip
        runs = [
            run for key, run in measured.items() if key.startswith(f"setting {setting}, {name}, {rule}, {size} keys")
        ]
        assert all(run["loss"] <= 0.001 for run in runs)
    for size in (120, 140, 160, 180, 200):
        name = f"setting 2, DPFP-2, delta, {size} keys"
        losses = sorted(run["loss"] for key, run in measured.items() if key.startswith(name))
        assert (len(losses), sum(loss <= 0.001 for loss in losses)) == ((5, 4) if size == 200 else (3, 2))
        assert losses[-1] < 0.004  # a key that is not learned costs 0.5 / size
    assert measured["setting 2, DPFP-2, sum, 20 keys"]["loss"] > 0.05


def test_chunks_are_as_fast_as_measured():
    measured = result("memory")
    ratios = {"delta rule, one pass": "11.4", "sum rule, one pass": "11.1", "delta rule": "14.3", "sum rule": "13.5"}
    for rule, ratio in ratios.items():
        seconds = measured[f"{rule}, in turns, length 1024"]
        turns = zip(seconds["recurrence, forward"], seconds["chunks, forward"], strict=True)
        assert f"{statistics.median(slow / fast for slow, fast in turns):.1f}" == ratio
        assert re.search(rf"\b{ratio}\b", README)


def test_classifier_numbers_are_the_measured_ones():
    measured = {name.removeprefix("MNIST, "): row for name, row in result("classifier").items()}
    rows = re.findall(r"^\| ([a-z][^|`]*) \| (0\.\d{3}) \| (\d\.\d{3}|-) \|$", README, re.M)
    assert len(rows) >= 4
    for name, accuracy, nats in rows:
        assert f"{measured[name]['accuracy']:.3f}" == accuracy
        assert nats == ("-" if measured[name]["cross_entropy"] is None else f"{measured[name]['cross_entropy']:.3f}")


def test_fine_tuning_numbers_are_the_measured_ones():
    measured = (
        (ROOT / "docs" / "benchmarks.md").read_text().split("<!-- finetune -->")[1].split("<!-- /finetune -->")[0]
    )
    rows = re.findall(r"^\| ((?:wikitext-2|classics) (?:micro|small) \|.*)\|$", README, re.M)
    assert len(rows) == 4
    for row in rows:
        assert f"| {row}|" in measured


def test_sparse_classifier_numbers_are_the_measured_ones():
    rows = re.findall(r"^\| ((?:CLINC150|UD EWT), [^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", README, re.M)
    assert len(rows) == 2
    measured = {name.split(" (")[0]: row for name, row in result("classifier").items()}
    for task, *cells in rows:
        names = ("explicit solution", "multinomial naive Bayes", "logistic regression")
        for name, cell in zip(names, cells, strict=True):
            row = measured[f"{task}, {name}"]
            assert cell == f"{row['accuracy']:.3f} / {row['cross_entropy']:.3f}"


def table_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_transformer_numbers_are_the_measured_ones():
    docs = (ROOT / "docs" / "benchmarks.md").read_text().split("<!-- transformers -->")[1].split("The marks.")[0]
    gpt2, llama = ({row[0]: [row[3], row[7]] for row in table_of(part)} for part in docs.split("Llama:"))
    rows = table_of(README.split("| start | GPT-2, step 0")[1].split("\n\n")[0])[1:]
    assert len(rows) >= 9
    for name, *figures in rows:
        assert figures == gpt2[name] + llama.get(name, ["-", "-"])


def test_vector_numbers_are_the_measured_ones():
    docs = (ROOT / "docs" / "benchmarks.md").read_text().split("<!-- vectors -->")[1].split("<!-- /vectors -->")[0]
    whole, tenth = ({row[0]: row for row in table_of(part)} for part in docs.split("A tenth of the text:"))
    rows = table_of(README.split("| vectors | part of speech |")[1].split("\n\n")[0])[1:]
    assert len(rows) >= 5
    for name, *figures in rows:
        assert figures == [whole[name][i] for i in (2, 3, 8)] + [tenth[name][i] for i in (2, 3)]
