"""KenLM beside our n-grams: its program `lmplz` counts and solves the same tokens, and its file is scored.

The tokens are written as words, one document a line. Source: Heafield et al. 2013 (ACL).
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import texts
from warmstart.arpa import read_arpa
from warmstart.ngrams import Ids

MEMORY = "2G"  # that it may sort in
# Started by a small process: Linux counts the memory of the parent as that of a child.
SMALL = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True)
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"code": done.returncode, "error": done.stderr, "seconds": seconds, "peak_memory_bytes": peak}))
"""


def word(token: int) -> str:
    """Return the word of a token."""
    return f"t{token}"


def write_words(path: Path, tokens: Ids, documents: Ids) -> None:
    """Write a text as words, one document a line."""
    with path.open("w", encoding="ascii") as file:
        for start, end in zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True):
            file.write(" ".join(map(word, tokens[start + 1 : end].tolist())) + "\n")


def measure(binaries: Path, data: Path, name: str, vocabulary: int, order: int) -> dict[str, Any]:
    """Count and solve a text by `lmplz`.

    Returns
    -------
    dict
        ``seconds`` from words to the ARPA file; ``peak_memory_bytes``; ``bytes`` of the file; ``valid`` and ``test``:
        perplexity; ``scored_by``: the ``kenlm`` module if there is one, else our import of the file.

    Raises
    ------
    RuntimeError
        `lmplz` fails.
    """
    text = texts.load(data, name, vocabulary)
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        words, arpa = Path(folder, "words"), Path(folder, "model.arpa")
        write_words(words, *text.parts["train"])
        command = [binaries / "lmplz", "-o", order, "-S", MEMORY, "-T", folder, "--text", words, "--arpa", arpa]
        command += ["--discount_fallback"]  # 0.5, 1, 1.5 where the counts allow no estimate, as ours
        line = [sys.executable, "-c", SMALL, *map(str, command)]
        done = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)  # noqa: S603 - our own
        if done.pop("code"):
            raise RuntimeError(f"{' '.join(map(str, command))} failed: {done['error']}")
        del done["error"]
        module = find_spec("kenlm") is not None
        score = scores_of_kenlm if module else our_scores
        found = {part: text.perplexity(log_probs) for part, log_probs in score(arpa, text).items()}
        return {**done, "bytes": arpa.stat().st_size, **found, "scored_by": "kenlm" if module else "warmstart.arpa"}


def scores_of_kenlm(arpa: Path, text: texts.Text) -> dict[str, NDArray[np.float64]]:
    """Return ``log P`` of the targets of validation and test text by the ``kenlm`` module."""
    import kenlm

    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    model, found = kenlm.Model(str(arpa), config), {}
    for part in ("valid", "test"):
        tokens, documents = text.parts[part]
        scores = []
        for start, end in zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True):
            sentence = " ".join(map(word, tokens[start + 1 : end].tolist()))
            scores += [score for score, _, _ in model.full_scores(sentence)]
        found[part] = np.array(scores) * np.log(10)
    return found


def our_scores(arpa: Path, text: texts.Text) -> dict[str, NDArray[np.float64]]:
    """Return the same by our import of the file."""
    model = read_arpa(arpa, [word(token) for token in range(text.vocab_size)], text.separator)
    return {part: model.log_probs(*text.parts[part]) for part in ("valid", "test")}
