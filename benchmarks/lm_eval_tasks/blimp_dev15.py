"""Data of the tasks of `blimp_dev15.yaml`, for lm-evaluation-harness."""

import os
from pathlib import Path
from typing import Any


def load(paradigm: str, **_: Any) -> Any:
    """Return the pairs of one paradigm, from the folder that WARMSTART_DATA names. Nothing is downloaded."""
    from datasets import load_dataset  # comes with lm_eval

    data = os.environ.get("WARMSTART_DATA")
    if not data:
        raise ValueError("expected WARMSTART_DATA to name the folder of the data sets, got nothing; set it")
    path = Path(data, "blimp", "blimp_dev15.jsonl")
    pairs = load_dataset("json", data_files={"validation": str(path)})
    return pairs.filter(lambda pair: pair["UID"] == paradigm)
