"""Count a corpus with torchrun: every rank counts its shards, and rank 0 adds the sums.

warmstart tokenizer texts/0.txt -o tokenizer/
torchrun --standalone --nproc-per-node 2 examples/count_torchrun.py texts/ --tokenizer tokenizer/ --output all.stats
warmstart solve all.stats -o model/
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch.distributed
import typer

from warmstart.distributed.on_torch import count

Option = Annotated[Path, typer.Option()]


def main(texts: list[Path], tokenizer: Option, output: Option, order: int = 5) -> None:
    """Count files that all ranks see."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # ranks that are done wait for the others
    count(texts, tokenizer, output, order=order)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
