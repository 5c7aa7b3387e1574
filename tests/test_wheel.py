"""The wheel: what is in it, and that it works without the checkout, in an environment and a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC_TESTS = ("test_bitcipher_cipher.py", "test_warm_start_lm.py", "test_files.py")
TEXT = "the cat sat on the mat. the dog lay on the rug. a bird sang in the tree. " * 60

pytestmark = pytest.mark.slow  # builds a wheel and compiles its kernels


def run(*command, cwd):
    """Run a command without what lets this process find the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: a build leaves folders behind, and what earlier builds left must not come in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("bitcipher", "warmstart", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, ".", cwd=source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """Install the wheel in a new environment, with this one's packages behind it; return the folder of its commands."""
    folder = tmp_path_factory.mktemp("environment")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(folder)
    scripts = Path(builder.ensure_directories(folder).bin_path)
    python = scripts / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Python reads .pth files of its own site-packages only, so the editable install of the checkout stays unknown.
    behind = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("\n".join(behind))
    return scripts


def test_the_wheel_holds_the_two_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = [file for package in ("bitcipher", "warmstart") for file in (ROOT / package).rglob("*")]
    expected = {file.relative_to(ROOT).as_posix() for file in files if file.suffix in (".py", ".typed")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"bitcipher/py.typed", "warmstart/py.typed"} <= expected


def test_every_public_name_comes_from_the_wheel(scripts, tmp_path):
    code = (
        "import json, bitcipher, warmstart, importlib.metadata\n"
        "names = [getattr(package, name) for package in (bitcipher, warmstart) for name in package.__all__]\n"
        "files = [bitcipher.__file__, warmstart.__file__]\n"
        "print(json.dumps([len(names), files, warmstart.__version__, importlib.metadata.version('warmstart')]))"
    )
    n_names, files, *versions = json.loads(run(scripts / "python", "-c", code, cwd=tmp_path))
    assert n_names >= 10
    assert all(Path(file).is_relative_to(scripts.parent) for file in files)
    assert len(set(versions)) == 1
    assert run(scripts / "warmstart", "--version", cwd=tmp_path) == f"warmstart {versions[0]}\n"


def test_fit_eval_generate(scripts, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    options = ("--preset", "potato", "--vocab-size", "300", "--json", "--quiet")
    fitted = json.loads(run(scripts / "warmstart", "fit", "text.txt", "-o", "model", *options, cwd=tmp_path))
    assert fitted["model"] == "model"
    scores = json.loads(run(scripts / "warmstart", "eval", "model", "text.txt", "--json", "--quiet", cwd=tmp_path))
    assert scores["perplexity"] < scores["unigram_perplexity"]
    text = run(scripts / "warmstart", "generate", "model", "--prompt", "the cat", "--max-tokens", "8", cwd=tmp_path)
    assert text.startswith("the cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


def test_the_tests_of_the_public_surface(scripts, tmp_path):
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "conftest.py", "tests/conftest.py", *(f"tests/{name}" for name in PUBLIC_TESTS)):
        shutil.copy(ROOT / name, tmp_path / name)
    assert "passed" in run(scripts / "python", "-m", "pytest", "tests", cwd=tmp_path)
