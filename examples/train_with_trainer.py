"""Train a model that `warmstart init` wrote with the stock Hugging Face Trainer and the schedule that keeps its start.

warmstart init books/ -o model/
python examples/train_with_trainer.py model/ books/ --steps 600

With `--counted-targets 0.5` the loss also has whole rows of what follows elsewhere in the text, with a weight that
falls to 0; the trained model is a plain one. Labels are then places of the text in training, tokens in evaluation.

With `warmstart init --counted` the model stands beside the counts of the text. Then every window also carries what the
counts say of its tokens, with the document of each token left out.
"""

from itertools import repeat
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import warmstart.hub  # noqa: F401 - so that AutoModelForCausalLM knows models beside counts
from warmstart.corpus import Corpus
from warmstart.finetune import Windows, decoder_schedule
from warmstart.finetune.callback import PhaseCallback, WordCheckpoints
from warmstart.finetune.evidence import counted_table
from warmstart.finetune.targets import CountedLoss, CountedTargets, statistic_of
from warmstart.finetune.words import words_per_token
from warmstart.ngrams import NGramCounts


def main(
    model: Annotated[Path, typer.Argument(help="Folder of `warmstart init`.")],
    text: Annotated[Path, typer.Argument(help="A text file, or a folder of them.")],
    output: Annotated[Path, typer.Option("-o", help="Folder for checkpoints and the trained model.")] = Path("trained"),
    valid: Annotated[Path | None, typer.Option(help="Text for validation.")] = None,
    split_documents: Annotated[str | None, typer.Option(metavar="REGEX", help="As for `warmstart init`.")] = None,
    counted_targets: Annotated[
        float, typer.Option(metavar="WEIGHT", min=0, max=1, help="Weight of counted rows in the loss at the start.")
    ] = 0.0,
    checkpoints_by_words: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write DIR/chck_1M, chck_2M, ... after so many words.")
    ] = None,
    steps: int = 600,
    rate: float = 2.5e-3,
    batch: int = 16,
) -> None:
    """Cut the text into windows as long as the model sees, and train on them."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    paths = [path for path in (text, valid) if path is not None]
    corpora = [Corpus.encode(path, model, split_documents=split_documents) for path in paths]
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", 256)
    length = min(longest, *(corpus.n_tokens + 1 for corpus in corpora))
    tables, loss = [None] * len(corpora), None
    beside = network.config.model_type == "warmstart_counted"
    if beside and counted_targets:
        raise typer.BadParameter("expected a model without counts for --counted-targets, got one beside its counts")
    if beside:  # the training text was counted, the other one is new
        counts = [NGramCounts.load(model / "counts.safetensors"), None]
        tables = [counted_table(network, corpus, own) for corpus, own in zip(corpora, counts, strict=False)]
    if counted_targets:
        loss = CountedLoss(CountedTargets(statistic_of(corpora[0], None), corpora[0]))
    labels = ["tokens" if loss is None else "places", "tokens"]  # of the training text, of the other one
    train, *held = [Windows(*of_text) for of_text in zip(corpora, repeat(length), tables, labels, strict=False)]
    schedule = decoder_schedule(rate, network, counted_targets)  # a long warm-up, slower blocks: the start is not lost
    callbacks = [PhaseCallback(schedule, counted=loss)]
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
        compute_loss_func=loss,
        optimizers=(schedule.optimizer(network), None),
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    typer.run(main)
