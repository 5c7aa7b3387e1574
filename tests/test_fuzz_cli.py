"""The command line with any words: an exit code of 0, 1 or 2, one line for an error, and no partial file.

A NUL cannot be in a word. No word leads out of the working folder: what a command may write, it would write there.
"""

import io
import json
import re
import shutil
import sys
from typing import get_args, get_type_hints

import pytest
import typer
from hypothesis import event, given
from hypothesis import strategies as st

from tests.fuzzing import entries, fuzz, no_hang
from warmstart import cli, documents

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # they say what was left out
    pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning"),  # in regular expressions
]
TEXT = "\n\n".join(["the cat sat on the mat. the dog lay on the rug. " * 4] * 12)
SIZES = ["--preset", "potato", "--vocab-size", "300", "--split-documents", r"\n\n", "--workers", "1", "--quiet"]
EVERYTHING = ["--bits", "16", "--contexts", "ngrams,classes,cache,radial,attended,block,document,memory"]
NETWORK = ["--bits", "16", "--contexts", "ngrams,cache,radial,document"]
WORDS = [
    "", " ", "-", "--", "-1", "0", "1", "2", "3", "0.5", "1e308", "1e-320", "nan", "inf", "-inf", "1_0", "٣", "10" * 20,
    "fit", "a,b", ",", "0,1", "0,0,1", "0,-1", "9" * 20, "ngrams", "ngrams,cache", "radial", "classes,memory", "potato",
    "warm,thaw", "warm", "all", "gpt2", "llama", "bpe", "words", "characters", "text", "jsonl", "cpu", "cuda", "meta",
    "{}", "[]", "[", "{", "[" * 5000, '{"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}', '{"n_embd": "a"}',
    '{"n_head": 0}', '{"vocab_size": 1e9}', '[{"name": "a", "rates": {"output": 1e-3}}]', '[{"name": "a"}]', "(", ".*",
    "(" * 5000, "a{" + "9" * 30 + "}", "a|", "ä", "日本語", "\udcff", "\u202e", "\x1b[31m", "the cat", "[/b]",
    "a" * 5000, "~", "$HOME", "%s", "a\nb",
]  # fmt: skip
PLACES = [
    "text.txt", "lines.jsonl", "model", "network", "pruned", "run", "empty.txt", "folder", "other.bin", "none", "new",
    "none/none", "text.txt/x", "model/tokenizer.json", "run/log.jsonl", "run/checkpoint.safetensors", "loop", "a.stats",
    "noise.gz", ".", "..",
]  # fmt: skip
CONFIG = '{"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 16}'
TRAINING = ["-o", "new", "--max-tokens", "60", "--batch-tokens", "512", "--quiet"]
COMMANDS = {  # what each needs to succeed
    "fit": ["text.txt", "-o", "new", *SIZES],
    "eval": ["model", "text.txt", "--workers", "1", "--split-documents", r"\n\n"],
    "generate": ["model", "--max-tokens", "5"],
    "explain": ["model", "--prompt", "the cat"],
    "finetune": ["network", "text.txt", "--valid", "text.txt", *TRAINING],
    "compare": ["run", "run", "-o", "new.png"],
    "export": ["model", "-o", "new", "--format", "numpy"],
    "tokenizer": ["text.txt", "-o", "new", "--vocab-size", "300"],
    "count": ["text.txt", "--tokenizer", "model", "-o", "new.stats", "--workers", "1", "--split-documents", r"\n\n"],
    "merge": ["a.stats", "b.stats", "-o", "new.stats"],
    "solve": ["a.stats", "-o", "new", "--preset", "potato", "--workers", "1"],
    "init": ["text.txt", "-o", "new", "--vocab-size", "300", "--quiet", "--config", CONFIG],
}
NUMBERS = {
    int: ["-1", "0", "1", "2", "3", "7", str(2**63 - 1), "9" * 40, "1.5"],
    float: ["-1", "0", "1", "0.5", "1e-320", "1e308", "nan", "inf", "-inf", "9" * 400],
}
UNFINISHED = re.compile(r"\..*\.\w{8}(\.old)?")  # names of temporary folders
NO_LIMIT = {"--max-tokens", "--vocab-size", "--bits"}  # large numbers are no error there
COMMAND = typer.main.get_command(cli.app).commands
OPTIONS = {
    name: {max(parameter.opts, key=len): parameter for parameter in command.params if parameter.opts[0].startswith("-")}
    for name, command in COMMAND.items()
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with small models and other files."""
    folder = tmp_path_factory.mktemp("cli") / "place"
    (folder / "folder").mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in TEXT.split("\n\n")))
    (folder / "empty.txt").touch()
    (folder / "other.bin").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "noise.gz").write_bytes(b"\x1f\x8b\x08" + bytes(40))
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            ["fit", "text.txt", "-o", "new", *SIZES, *EVERYTHING],  # and the kernels are compiled
            ["fit", "text.txt", "-o", "model", *SIZES],
            ["fit", "text.txt", "-o", "network", *SIZES, *NETWORK],
            ["fit", "text.txt", "-o", "pruned", *SIZES, "--prune", "0,1"],
            ["finetune", *COMMANDS["finetune"], "-o", "run"],
            *(["count", *COMMANDS["count"], "-o", name, "--order", "3"] for name in ("a.stats", "b.stats")),
            *([name, *words] for name, words in COMMANDS.items()),
        ):
            shutil.rmtree("new", ignore_errors=True)
            code, err = run(patch, words)
            assert not code, (words, err)
    shutil.rmtree(folder / "new")
    return folder


def run(patch, words):
    """Return the exit code and the errors of the command line in this process."""
    patch.setattr(sys, "argv", ["warmstart", *words])
    patch.setattr(documents, "_documentation", lambda: tuple(TEXT.split("\n\n")))  # in place of Python's, which is long
    patch.setattr(sys, "stderr", io.StringIO())
    patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code, sys.stderr.getvalue()


@st.composite
def commands(draw):
    """Draw the words of a command that works, with some of them changed, left out, or added."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words = list(COMMANDS[name])
    values = (
        st.sampled_from(WORDS) | st.sampled_from(PLACES) | st.text(st.characters(exclude_characters="\0/"), max_size=5)
    )
    for _ in range(draw(st.integers(0, 3))):
        option = draw(st.sampled_from(sorted(OPTIONS[name])))
        parameter = OPTIONS[name][option]
        hint = get_type_hints(COMMAND[name].callback)[parameter.name]
        numbers = next((NUMBERS[kind] for kind in NUMBERS if kind in (hint, *get_args(hint))), None)
        value = draw(values if numbers is None or draw(st.integers(0, 9)) == 0 else st.sampled_from(numbers))
        fits = not parameter.is_flag and (len(value) < 12 or option not in NO_LIMIT)
        words += [option, value] if fits else [option]
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        number = draw(st.integers(0, len(words) - 1))
        words[number : number + 1] = draw(st.sampled_from([[], [draw(values)]]))
    return [name, *words]


@given(words=commands())
@fuzz
def test_commands(place, words):
    work = place.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place, work, symlinks=True)
    before = entries(work)
    with pytest.MonkeyPatch.context() as patch, no_hang():
        patch.chdir(work)
        code, err = run(patch, words)
    event(f"{words[0]} {code}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert "fault of warmstart itself" not in err, err
    assert code in (None, 0, 1, 2), err
    assert len(errors) == (1 if code else 0), err
    left = entries(work) - before
    assert not [path for path in left if UNFINISHED.fullmatch(path.name)], left
    assert not (left and code) or words[0] == "finetune", left  # whose checkpoint stays
