"A run of your own: train an adapter on triples, look where it would refuse.   python examples/own_run.py mine.jsonl runs/mine"
from derta_kit import data, models, objectives, probe, train
from fastcore.script import call_parse
from transformers import set_seed

@call_parse
def main(triples:str, out:str, steps:int=60):
    "Train on a file of triples (prompt, safe, harmful; any layout that `read_triples` knows); the adapter goes into the folder OUT."
    set_seed(0)
    rows = data.read_triples(triples).train_test_split(4, seed=0)     # four are kept back to look at
    helpful = data.demo_data()["helpful"].select(range(100))          # harmless pairs, so that it goes on answering; yours: mix.read_pairs(file)
    model, tok = models.load("demo", "lora")                          # or a hub id, and "qlora" on a GPU
    trees = objectives.TreeDataset(tok, rows["train"], helpful, objectives.objective("derta", cuts=2, rto_weight=.2))
    train.fine_tune(model, tok, trees, out, max_steps=steps, per_device_train_batch_size=8, budget=512, learning_rate=1e-3, save_strategy="steps", save_steps=20)
    for c in probe.refusal_curves(model, tok, [(r["prompt"], r["harmful"]) for r in rows["test"]]): print(f"{c.prompt[:50]:50s}  P({c.word!r}) at the start {c.prob[0]:.3f}, from token 2 on {c.prob[2:].mean():.3f}")
