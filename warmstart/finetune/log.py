"""The log of a run: one line of JSON for each validation, and curves for TensorBoard on request.

| key | meaning |
|---|---|
| ``step``, ``tokens``, ``seconds``, ``phase`` | where the run is |
| ``nats``, ``bits_per_byte`` | validation loss of the model: where a network trains beside counts, of their mixture |
| ``network_nats`` | of a model that is a mixture: the loss of its network alone |
| ``counts_nats`` | beside counts only: the loss of the counts without the network, which does not change |
"""

import json
import math
from pathlib import Path
from typing import Any

from bitcipher.files import PACKED
from warmstart.errors import InputError
from warmstart.files import replacing
from warmstart.formats import read_settings
from warmstart.records import parse_json

CURVES = ("nats", "bits_per_byte", "network_nats", "counts_nats")
KEYS = ("step", "tokens", "seconds", "phase", "nats", "bits_per_byte")
LOG = "log.jsonl"


class Log:
    """Append records to a JSONL file. A resumed run first drops the records after its checkpoint.

    Parameters
    ----------
    path : Path
    step : int
        Records of later steps are dropped; -1 starts a new log.
    tensorboard : Path, optional
        Folder for TensorBoard's event files (extra ``tensorboard``).
    """

    def __init__(self, path: Path, step: int = -1, tensorboard: Path | None = None) -> None:
        self.path = path
        if path.suffix.lower() in PACKED:
            raise InputError(f"{path}: expected a name without {path.suffix}, a log grows and is not compressed")
        records = [record for record in read(path) if record["step"] <= step] if step >= 0 and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError("expected tensorboard, found none; pip install 'warmstart[tensorboard]'") from error
            self.writer = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer:
            for name in [name for name in CURVES if name in record]:
                self.writer.add_scalar(f"valid/{name}", record[name], record["step"])
            self.writer.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log. An incomplete last line is ignored.

    Raises
    ------
    InputError
        The file is missing, or a line is not a record.
    """
    try:
        lines = read_settings(path).splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the log of a run, got: {error}; give a folder of `finetune`") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
            if set(KEYS) - record.keys() or not all(math.isfinite(record[key]) for key in KEYS if key != "phase"):
                raise ValueError(f"expected {', '.join(KEYS)}")
        except (ValueError, AttributeError, TypeError, OverflowError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # the process was killed while it wrote
            raise InputError(f"{path}, line {number}: expected a record of a run, got: {error}") from error
        records.append(record)
    return records
