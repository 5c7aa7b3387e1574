"""Train a model that `warmstart init` wrote with the stock Hugging Face Trainer and the schedule that keeps its start.

warmstart init books/ -o model/
python examples/train_with_trainer.py model/ books/ --steps 600

With `warmstart init --counted` the model stands beside the counts of the text. Then every window also carries what the
counts say of its tokens, with the document of each token left out.
"""

from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import warmstart.hub  # noqa: F401 - so that AutoModelForCausalLM knows models beside counts
from warmstart.corpus import Corpus
from warmstart.finetune import Windows, decoder_schedule
from warmstart.finetune.callback import PhaseCallback, WordCheckpoints
from warmstart.finetune.evidence import counted_table
from warmstart.finetune.words import words_per_token
from warmstart.ngrams import NGramCounts


def main(
    model: Annotated[Path, typer.Argument(help="Folder of `warmstart init`.")],
    text: Annotated[Path, typer.Argument(help="A text file, or a folder of them.")],
    output: Annotated[Path, typer.Option("-o", help="Folder for checkpoints and the trained model.")] = Path("trained"),
    valid: Annotated[Path | None, typer.Option(help="Text for validation.")] = None,
    checkpoints_by_words: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write DIR/chck_1M, chck_2M, ... after so many words.")
    ] = None,
    steps: int = 600,
    rate: float = 2.5e-3,
    batch: int = 16,
) -> None:
    """Cut the text into windows as long as the model sees, and train on them."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    corpora = [Corpus.encode(path, model) for path in (text, valid) if path is not None]
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", 256)
    length = min(longest, *(corpus.n_tokens + 1 for corpus in corpora))
    tables = [None] * len(corpora)
    if network.config.model_type == "warmstart_counted":  # the training text was counted, the other one is new
        counts = [NGramCounts.load(model / "counts.safetensors"), None]
        tables = [counted_table(network, corpus, own) for corpus, own in zip(corpora, counts, strict=False)]
    train, *held = [Windows(corpus, length, table) for corpus, table in zip(corpora, tables, strict=True)]
    schedule = decoder_schedule(rate, network)  # a long warm-up and slower blocks: the start is not lost
    callbacks = [PhaseCallback(schedule)]
    if checkpoints_by_words is not None:
        callbacks.append(WordCheckpoints(checkpoints_by_words, words_per_token(corpora[0], len(train) * length)))
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=batch,
            logging_steps=max(1, steps // 20),
            eval_strategy="steps" if held else "no",
            eval_steps=max(1, steps // 5),
            prediction_loss_only=True,
            include_num_input_tokens_seen=True,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=train,
        eval_dataset=held[0] if held else None,
        processing_class=tokenizer,
        optimizers=(schedule.optimizer(network), None),
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    typer.run(main)
