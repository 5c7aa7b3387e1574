"""The bench of lottery tickets: what is pruned, that it stays away, and a section from made results."""

import pytest
import torch

from benchmarks import claims, tickets
from benchmarks.decoders import Start

pytest.importorskip("transformers", reason="needs warmstart[hf]")
SHAPE = {"width": 8, "layers": 2, "heads": 2, "context": 8}


def start():
    return Start.random("gpt2", 0, 11, SHAPE, attn_implementation="eager")


def loud_heads(model, loud):
    """Multiply the weights of one head of each layer."""
    with torch.no_grad():
        for block, head in zip(model.base_model.h, loud, strict=True):
            block.attn.c_attn.weight.view(8, 3, 2, 4)[:, :, head] *= 10


def test_the_quietest_heads_and_rows_have_no_effect_and_stay_away():
    arm = start()
    loud_heads(arm.model, (1, 0))
    ids = torch.arange(16).view(2, 8) % 11
    tickets.prune(arm.model, 0.5, seed=None)
    blocks = arm.model.base_model.h
    for block, head in zip(blocks, (1, 0), strict=True):
        parts = block.attn.c_proj.weight.view(2, 4, 8)
        assert parts[head].any()
        assert not parts[1 - head].any()
    rows = torch.stack([block.mlp.c_proj.weight.any(dim=1) for block in blocks])
    assert rows.float().mean() == 0.5
    optimizer = torch.optim.AdamW(arm.parameters(), 0.1, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in arm.named_parameters()}
    for _ in range(3):
        arm.losses(ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(torch.stack([block.mlp.c_proj.weight.any(dim=1) for block in blocks]), rows)
    for i, (block, head) in enumerate(zip(blocks, (1, 0), strict=True)):
        assert not block.attn.c_proj.weight.view(2, 4, 8)[1 - head].any()
        now, old = (
            w.view(8, 3, 2, 4)
            for w in (block.attn.c_attn.weight, before[f"model.transformer.h.{i}.attn.c_attn.weight"])
        )
        assert torch.equal(now[:, :, 1 - head], old[:, :, 1 - head])  # a part without effect is not trained
        assert not torch.equal(now[:, :, head], old[:, :, head])


def test_all_pruned_is_a_network_without_blocks_and_random_ones_follow_the_seed():
    arm = start()
    ids = torch.arange(8).view(1, 8)
    tickets.prune(arm.model, 1.0, seed=None)
    base = arm.model.base_model
    expected = base.ln_f(base.wte(ids) + base.wpe(ids))
    assert torch.allclose(arm.stream(ids), expected, atol=1e-6)
    masks = []
    for seed in (0, 0, 1):
        other = start()
        tickets.prune(other.model, 0.5, seed)
        masks.append(torch.stack([block.mlp.c_proj.weight.any(dim=1) for block in other.model.base_model.h]))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_section_says_what_the_verdict_needs():
    def row(start, pruned, test):
        run = {"nats": [6.0, test], "test": test}
        return {"start": start, "pruned": pruned, "share": 0.5, "runs": [run]}

    costs = {"warm": (0.0, 0.001, 0.03, 0.05), "cold": (0.0, 0.02, 0.02, 0.1)}
    rows = [row(s, p, 5 + c) for s in costs for p, c in zip(tickets.PRUNED, costs[s], strict=True)]
    conclusion, body = tickets.section(rows)
    claim = next(claim for claim in claims.CLAIMS if claim.section == "tickets")
    assert claims.verdict(claim, conclusion)[0] == claims.HOLDS
    assert "0.001, 0.030, 0.050 nats and the cold start 0.020, 0.020, 0.100" in conclusion
    assert "| warm | nine tenths by magnitude | 0.005 | 6.000 | 5.050 | 5.050 | 0.050 |" in body
