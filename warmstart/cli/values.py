"""What the texts of options and arguments stand for; what cannot be is refused."""

import contextlib
from pathlib import Path
from typing import Any

import typer

from warmstart.errors import InputError
from warmstart.formats import TOKENS, is_token_file, read_settings
from warmstart.progress import Reporter
from warmstart.records import parse_json


def number_or_fit(value: str) -> float | str:
    """Return a positive number, or "fit"."""
    if value == "fit":
        return value
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f'expected a positive number or "fit", got {value!r}')
    return number


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers that have commas between them."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, such as 0,0,1, got {text!r}") from error


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object, inline or from a file."""
    try:
        content = parse_json(text if text.lstrip().startswith("{") else read_settings(Path(text)))
    except (OSError, ValueError) as error:
        raise InputError(f"config: expected a JSON object or a file of one, got: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config: expected a JSON object, got {type(content).__name__}")
    return content


def limit_of(size: str | None) -> int:
    """Return a limit in bytes, 0 without one."""
    from warmstart.budget import parse_size

    return 0 if size is None else parse_size(size)


def device_of(name: str | None, limit: int = 0) -> str | None:
    """Return the device of PyTorch that counts, None for compiled loops."""
    from warmstart.device import check_device, find_gpu

    if name == "cpu" or (name is None and limit):
        return None
    if limit:
        raise typer.BadParameter(f"expected --max-memory without --device {name}, got both; the limit is for the CPU")
    device = name or find_gpu()
    check_device(device)
    return device


def budget_of(limit: int, workers: int, progress: Reporter) -> Any:
    """Return the budget of a limit in bytes, None without one."""
    from warmstart.budget import Budget

    return Budget(limit, workers, progress) if limit else None


def work_of(output: Path, limit: int, resume: bool) -> Any:
    """Return a context manager of the folder for what is counted, or of None where nothing is kept."""
    from warmstart.spill import beside

    return beside(output, resume) if limit or resume else contextlib.nullcontext()


def paths_of(names: list[str] | None) -> list[Path]:
    """Return paths; that of ``-`` is standard input, that of ``./-`` a file."""
    if "" in (names or []):  # the path of an empty name would be the working folder
        raise typer.BadParameter("expected names of files or folders, got an empty one")
    return [Path(name) if name == "-" or Path(name) != Path("-") else Path(name).absolute() for name in names or []]


def _has_tokens(paths: list[Path], text_format: str | None) -> bool:
    return text_format is None and any(map(is_token_file, paths))


def check_used(paths: list[Path], text_format: str | None, **options: str | None) -> None:
    """Refuse options for files of tokens where there are none."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given and not _has_tokens(paths, text_format):
        raise typer.BadParameter(f"expected files of tokens ({', '.join(TOKENS)}) with {', '.join(given)}, got none")


def sources_of(names: list[str] | None, tokenizer: str | None, end_of_text: str | None, text_format: str | None) -> Any:
    """Return paths, or files of tokens with their tokenizer."""
    paths = paths_of(names)
    if not _has_tokens(paths, text_format):
        return paths
    from warmstart.token_files import TokenFiles
    from warmstart.tokenizer import KINDS

    if tokenizer is None or tokenizer in KINDS:
        raise InputError(
            f"expected --tokenizer FILE with files of tokens, got {tokenizer or 'none'}; give the tokenizer that wrote "
            "them, or --format text if they are text"
        )
    end = int(end_of_text) if end_of_text and end_of_text.isdecimal() else end_of_text
    return TokenFiles(paths, tokenizer, end)
