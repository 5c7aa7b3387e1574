"""Promises of the whole tree: imports point one way, are cheap and work on Windows; public names are documented."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitcipher
import warmstart

ROOT = Path(__file__).parents[1]
# The data flow; a module imports only from modules to its left (or of its own name).
ORDER = [
    "errors", "ids", "device", "sampling", "records", "columns", "formats", "blocks", "files", "progress", "documents",
    "tokenizer", "token_files", "corpus",
    "_kernels", "_ngram_kernels", "_sorting_kernels", "_ngram_torch", "_pairs_torch", "_solution_torch",
    "_cache_kernels", "_mixture_kernels",
    "_arpa_kernels", "_softmax", "_threads",
    "edge", "levels", "ngrams", "spill", "ranks", "backoff", "kneser_ney", "left_out", "arpa", "cache", "gate",
    "accumulators", "solution", "counts", "spectral", "classes", "contexts", "attention", "near_shallow",
    "mixture", "sample", "solving", "budget", "stream", "explanation", "folder",
    "memory", "layers", "adapters", "baselines", "figures", "estimators", "shards", "distributed",
    "export", "hub", "finetune", "cli",
]  # fmt: skip


def modules(package):
    return [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]


def imports(path):
    """Names of the project's modules that a file imports, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "warmstart":
            yield from ([node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names])


def test_every_module_has_a_place_in_the_data_flow():
    assert sorted(m.split(".")[1] for m in modules(warmstart)) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_forward(name):
    place = ROOT / "warmstart" / name
    files = list(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    known = {part for file in files for part in imports(file) if part in ORDER}
    late = {part for part in known if ORDER.index(part) > ORDER.index(name)}
    assert not late, f"{name} imports {late}, which come after it"


def test_bitcipher_stands_alone():
    for file in (ROOT / "bitcipher").glob("*.py"):
        assert not list(imports(file)), file


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from bitcipher import BitCipher", "torch numba tokenizers rich typer matplotlib"),
        ("from bitcipher import CooccurrenceEmbedding", "torch numba tokenizers rich typer matplotlib"),
        ("from warmstart import ExplicitClassifier", "torch numba tokenizers rich typer matplotlib"),
        ("import warmstart", "torch numba tokenizers rich typer matplotlib numpy scipy sklearn"),
        ("import warmstart.cli", "torch numba tokenizers matplotlib scipy sklearn"),
        (
            "import warmstart.edge",
            "torch numba tokenizers rich typer matplotlib scipy sklearn safetensors numpy.random",
        ),
        ("import warmstart.corpus", "torch numba rich typer matplotlib scipy sklearn"),
        ("import warmstart.near_shallow, warmstart.folder", "torch numba tokenizers rich typer matplotlib"),
    ],
)
def test_importing_is_silent_and_loads_only_what_it_needs(statement, absent):
    code = f"{statement}; import sys; assert not set('{absent}'.split()) & set(sys.modules)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def loaded_at_import(tree):
    """Names of the modules that a file imports outside functions."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif not isinstance(node, ast.FunctionDef):
            nodes.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("package", ["bitcipher", "warmstart"])
def test_importing_works_on_windows(package):
    unix_only = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
    windows_signals = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
    for file in (ROOT / package).rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert not unix_only & set(loaded_at_import(tree)), file
        signals = {node.attr for node in ast.walk(tree) if getattr(node, "attr", "").startswith("SIG")}
        assert signals <= windows_signals, file


@pytest.mark.parametrize("package", [bitcipher, warmstart])
def test_public_names_exist_and_are_documented(package):
    for name in package.__all__:
        assert inspect.getdoc(getattr(package, name)), name


def test_every_kernel_is_compared_with_its_twin():
    for package, test in (("bitcipher", "test_bitcipher_codes.py"), ("warmstart", "test_kernels.py")):
        kernels = importlib.import_module(f"{package}._kernels")
        public = [n for n, f in vars(kernels).items() if hasattr(f, "py_func") and not n.startswith("_")]
        text = (ROOT / "tests" / test).read_text()
        assert public
        if package == "warmstart":
            assert [n for n in public if f"_kernels.{n}" not in text] == []


def test_every_kernel_of_ngrams_is_reached_from_a_module_that_is_compared_with_a_twin():
    """They take levels of tries, which no readable twin has; so what is compared are the functions that call them."""
    kernels = [importlib.import_module(f"warmstart.{name}") for name in ("_ngram_kernels", "_sorting_kernels")]
    public = [name for each in kernels for name, f in vars(each).items() if hasattr(f, "py_func")]
    inside = "".join(map(inspect.getsource, kernels))
    compared = [place.stem.removeprefix("test_") for place in (ROOT / "tests").glob("test_*.py")
                if "reference." in place.read_text()]  # fmt: skip
    files = [ROOT / "warmstart" / f"{name}.py" for name in (*compared, "levels")]  # whose callers are compared
    callers = "".join(file.read_text() for file in files if file.exists())
    assert {"count_level", "merge_level", "score", "sort_buckets"} < set(public)
    for name in public:
        assert f"kernels.{name}(" in callers or len(re.findall(rf"\b{name}\(", inside)) > 1, name


def test_reference_shares_nothing_with_what_it_checks():
    for name in ("bitcipher_reference", "reference"):
        tree = ast.parse((ROOT / "tests" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("warmstart", "bitcipher")) for name in names)


def test_unknown_attribute():
    for package in (bitcipher, warmstart):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            importlib.import_module(package.__name__).nothing  # noqa: B018
