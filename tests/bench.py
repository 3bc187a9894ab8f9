"`make bench`: speed and memory of the tree layout against separate rows, in one run, as ratios. Writes bench.json."
import json, time
from pathlib import Path
import torch
from derta_kit.data import demo_data
from derta_kit.loss import tree_loss
from derta_kit.models import atomically, load
from derta_kit.objectives import TreeDataset, objective
from derta_kit.prefix_tree import collate


def seconds(f, n=3):
    f(); out = []
    for _ in range(n): t = time.perf_counter(); f(); out.append(time.perf_counter()-t)
    return sorted(out)[n//2]


def main():
    model, tok = load("demo", "lora"); rows = demo_data()["triples"].select(range(16))
    ds = TreeDataset(tok, rows, o=objective("derta")); trees = [ds[i] for i in range(16)]

    def ours(budget): model.zero_grad(); loss, _ = tree_loss(model, collate(trees, budget)); loss.backward(); return loss.item()

    def released():
        "Two rows a triple, padded to the batch's longest, float32 logits at every position."
        model.zero_grad(); b = collate(trees, limit=0)
        logits = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.float()
        labels = torch.full(b["input_ids"].shape, -100).flatten(); labels[b["target_pos"]] = b["target_ids"]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0,1), labels); loss.backward(); return loss.item()

    assert abs(released()/ours(256)-1) < 1e-4
    base = seconds(released)
    out = {f"triples_a_second_{k}": base/seconds(lambda: ours(b)) for k,b in dict(padded=None, packed_256=256).items()}
    out["tokens"] = collate(trees, limit=0)["input_ids"].numel()/collate(trees, 256)["input_ids"].numel()
    with atomically(Path("bench.json")) as p: p.write_text(json.dumps(out, indent=1))
    for k,v in out.items(): print(f"{k}: {v:.2f}× the released layout")


if __name__ == "__main__": main()
