from derta_kit import cli, data, mix, models, objectives, probe, reliable, train
from fastcore.script import Param, call_parse
from transformers import set_seed
@call_parse
@cli.polite()
def main(triples:Param("triples: a file, folder or hub id"), out:Param("folder for the adapter")="runs/own", helpful:Param("helpful pairs: a file, folder or hub id; without: a hundred of the demo's")=None, model:Param("demo, a hub id, or a folder")="demo",
         mode:Param("lora, or qlora on a GPU")="lora", lr:Param("learning rate; about 2e-4 for a large model", float)=1e-3, steps:Param("optimiser steps", int)=60):
    "A run of your own: train an adapter on triples, look where it would refuse.   python examples/own_run.py mine.jsonl --out runs/mine"
    rows = data.keep_back(data.read_triples(triples), 4)     # four to look at
    pairs = mix.read_pairs(helpful) if helpful else data.demo_data()["helpful"].select(range(100))     # harmless, so that it goes on answering
    reliable.claim(out, dict(model=model, mode=mode, lr=lr, steps=steps), dict(triples=data.data_hash(rows["train"]), helpful=data.data_hash(pairs)))     # another run's folder stays its own
    set_seed(0); lm, tok = models.load(model, mode)
    trees = objectives.TreeDataset(tok, rows["train"], pairs, objectives.objective("derta", cuts=2, rto_weight=.2))
    train.fine_tune(lm, tok, trees, out, max_steps=steps, per_device_train_batch_size=8, budget=512, learning_rate=lr, save_strategy="steps", save_steps=20); print(f"the adapter: {out}")
    for c in probe.refusal_curves(lm, tok, rows["test"]["prompt"], rows["test"]["harmful"]): print(f"{c.prompt[:50]:50s}  P({c.word!r}) at the start {c.prob[0]:.3f}, from token 2 on {c.prob[2:].mean():.3f}")
