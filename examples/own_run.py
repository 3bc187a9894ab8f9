"A run of your own: read triples, train an adapter, look where it would refuse.   python examples/own_run.py mine.jsonl runs/mine"
from derta_kit.data import demo_data, read_triples
from derta_kit.mix import read_pairs
from derta_kit.models import load
from derta_kit.objectives import TreeDataset, objective
from derta_kit.probe import refusal_curves
from derta_kit.train import fine_tune
from fastcore.script import call_parse
from transformers import set_seed

@call_parse
def main(
    triples:str,         # prompt, safe, harmful: JSON Lines, or any layout that `read_triples` knows
    out:str,             # folder of the adapter
    helpful:str="",      # harmless pairs, so that it goes on answering; default: the demo's
    model:str="demo",    # "demo", a hub id, or a folder
    mode:str="lora",     # lora, qlora or full
    steps:int=60,        # optimiser steps
    batch:int=8,         # triples and pairs a step
    lr:float=1e-3,       # learning rate
    held_out:int=4,      # triples kept back to look at
):
    set_seed(0)
    rows, pairs = read_triples(triples), read_pairs(helpful) if helpful else demo_data()["helpful"].select(range(100))
    n = max(1, len(rows)-held_out)
    lm, tok = load(model, mode=mode)
    trees = TreeDataset(tok, rows.select(range(n)), pairs, objective("derta", cuts=2, rto_weight=.2))
    fine_tune(lm, tok, trees, out, max_steps=steps, per_device_train_batch_size=batch, budget=512, learning_rate=lr, save_strategy="steps", save_steps=20)
    for c in refusal_curves(lm, tok, [(r["prompt"], r["harmful"]) for r in rows.select(range(n, len(rows)))]):
        print(f"{c.prompt[:50]:50s}  P({c.word!r}) at the start {c.prob[0]:.3f}, from token 2 on {c.prob[2:].mean():.3f}")
