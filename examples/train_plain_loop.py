"""Train a model that `warmstart init --counted` wrote in a plain loop: windows, what the counts say of them, AdamW.

warmstart init books/ -o model/ --counted
python examples/train_plain_loop.py model/ books/ --steps 600
"""

from itertools import chain, repeat
from pathlib import Path

import torch
import typer
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from warmstart.corpus import Corpus
from warmstart.finetune import Windows, apply, decoder_schedule
from warmstart.finetune.evidence import counted_table
from warmstart.hub import CountedForCausalLM
from warmstart.ngrams import NGramCounts


def main(
    model: Path,
    text: Path,
    output: Path = Path("trained"),
    steps: int = 600,
    rate: float = 2.5e-3,
    split_documents: str | None = None,  # as for `warmstart init`
) -> None:
    """Cut the text into windows as long as the model sees, and train network and gate on them."""
    network = CountedForCausalLM.from_pretrained(model).train()
    corpus = Corpus.encode(text, model, split_documents=split_documents)
    table = counted_table(network, corpus, NGramCounts.load(model / "counts.safetensors"))
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", 256)
    length = min(longest, corpus.n_tokens + 1)
    loader = DataLoader(Windows(corpus, length, table), batch_size=16, shuffle=True)
    schedule = decoder_schedule(rate, network)
    optimizer = schedule.optimizer(network)
    for step, batch in zip(range(steps), chain.from_iterable(repeat(loader)), strict=False):
        apply(schedule.phases[0], optimizer, share=step / steps)  # the learning rates of this step
        names = ("input_ids", "labels", "expert_probs", "expert_buckets")
        loss = network(**{name: batch[name] for name in names}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % max(1, steps // 20) == 0:
            typer.echo(f"step {step}: {loss.item():.3f} nats, of the mixture and of the network together")
    network.save_pretrained(output)
    AutoTokenizer.from_pretrained(model).save_pretrained(output)


if __name__ == "__main__":
    typer.run(main)
