"`make bench`: speed and memory of the tree layout against separate rows, in one run, as ratios. Writes bench.json."
import json, time
from pathlib import Path
import torch
from derta_kit.data import demo_data
from derta_kit.decode import decode
from derta_kit.loss import tree_loss
from derta_kit.models import atomically, load, prompt_ids
from derta_kit.objectives import TreeDataset, objective
from derta_kit.prefix_tree import collate


def seconds(f, n=3):
    f(); out = []
    for _ in range(n): t = time.perf_counter(); f(); out.append(time.perf_counter()-t)
    return sorted(out)[n//2]


def completion(n=96, batch=32):
    "Tokens a second of local completion against a plain `generate` loop over unsorted batches of the same size; greedy, the same text."
    model, tok = load("demo"); dd = demo_data(); q = dd["benign_eval"]["prompt"][:n//2]
    words = [f"Answer with one word: {p}" for p in dd["helpful"]["prompt"][:n-n//2]]          # short answers among long ones, as data is
    rows = [prompt_ids(tok, p) for pair in zip(q, words) for p in pair]

    def plain():
        out = []
        for i in range(0, len(rows), batch):
            x = tok.pad(dict(input_ids=rows[i:i+batch]), return_tensors="pt", padding_side="left")
            with torch.inference_mode(): y = model.generate(**x, max_new_tokens=96, do_sample=False, pad_token_id=tok.pad_token_id)
            out += tok.batch_decode(y[:, x["input_ids"].shape[1]:], skip_special_tokens=True)
        return out

    t0 = time.perf_counter(); want = plain(); t1 = time.perf_counter(); got = decode(model, tok, rows, max_new_tokens=96, slots=batch); t2 = time.perf_counter()
    same = sum(c.text==w for c,w in zip(got, want))
    print(f"completion: {sum(c.n for c in got)} tokens, {sum(c.ended for c in got)} of {len(rows)} ended by themselves, {same} of {len(rows)} texts the same")
    return dict(completion_tokens_a_second=(t1-t0)/(t2-t1), completion_same_text=same/len(rows))


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
    out.update(completion())
    with atomically(Path("bench.json")) as p: p.write_text(json.dumps(out, indent=1))
    for k,v in out.items(): print(f"{k}: {v:.2f}×")


if __name__ == "__main__": main()
