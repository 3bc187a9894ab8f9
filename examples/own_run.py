"A run of your own: train an adapter on triples, look where it would refuse.   python examples/own_run.py mine.jsonl runs/mine"
from derta_kit import cli, data, mix, models, objectives, probe, train
from fastcore.script import call_parse
from transformers import set_seed

@call_parse
@cli.polite()
def main(triples:str, out:str, helpful:str="", model:str="demo", mode:str="lora", lr:float=1e-3, steps:int=60):
    "Train MODEL (a hub id or a folder; MODE qlora on a GPU, LR then about 2e-4) on a file of TRIPLES and one of HELPFUL pairs; the adapter goes into the folder OUT."
    rows = data.keep_back(data.read_triples(triples), 4)     # four to look at
    pairs = mix.read_pairs(helpful) if helpful else data.demo_data()["helpful"].select(range(100))     # harmless, so that it goes on answering
    set_seed(0); lm, tok = models.load(model, mode)
    trees = objectives.TreeDataset(tok, rows["train"], pairs, objectives.objective("derta", cuts=2, rto_weight=.2))
    train.fine_tune(lm, tok, trees, out, max_steps=steps, per_device_train_batch_size=8, budget=512, learning_rate=lr, save_strategy="steps", save_steps=20)
    for c in probe.refusal_curves(lm, tok, [(r["prompt"], r["harmful"]) for r in rows["test"]]): print(f"{c.prompt[:50]:50s}  P({c.word!r}) at the start {c.prob[0]:.3f}, from token 2 on {c.prob[2:].mean():.3f}")
