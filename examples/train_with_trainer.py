"""Train a model that `warmstart init` wrote with the stock Hugging Face Trainer and the schedule that keeps its start.

warmstart init books/ -o model/
python examples/train_with_trainer.py model/ books/train.txt --steps 600
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from warmstart.finetune import decoder_schedule
from warmstart.finetune.callback import PhaseCallback


def main(
    model: Annotated[Path, typer.Argument(help="Folder of `warmstart init`.")],
    text: Annotated[Path, typer.Argument(help="A text file.")],
    output: Annotated[Path, typer.Option("-o", help="Folder for checkpoints and the trained model.")] = Path("trained"),
    steps: int = 600,
    rate: float = 2.5e-3,
    batch: int = 16,
) -> None:
    """Cut the text into windows as long as the model sees, and train on them."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8-sig"), verbose=False)["input_ids"])
    length = min(network.config.max_position_embeddings, len(ids))
    windows = [{"input_ids": w, "labels": w} for w in ids[: len(ids) // length * length].view(-1, length)]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch,
        logging_steps=max(1, steps // 20),
        report_to=[],
        save_strategy="no",
    )
    schedule = decoder_schedule(rate)  # a long warm-up and slower blocks: the start is not lost before it is built on
    trainer = Trainer(
        model=network,
        args=arguments,
        train_dataset=windows,
        processing_class=tokenizer,
        optimizers=(schedule.optimizer(network), None),
        callbacks=[PhaseCallback(schedule)],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    typer.run(main)
