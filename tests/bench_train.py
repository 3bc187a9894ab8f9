"""Training: the tree layout against the method as its authors run it (two rows a triple, padded to the batch's longest, float32 logits at every position).

Same triples, same model, same optimiser, the same loss (checked). Times are taken in turn in one process, peaks of memory each in a process of its own."""
import gc, json, multiprocessing as mp, random, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from derta_kit.data import demo_data
from derta_kit.loss import tree_loss
from bench import from_here, put, resident
from derta_kit.models import load, prompt_ids, response_end, text_ids, unwrap
from derta_kit.objectives import MLE, RTO, objective, triple_tree
from derta_kit.prefix_tree import collate
from derta_kit.refusals import refusal_token_id

N, BUDGET = 8, 512


def triples(tok, mix, n=N, seed=0):
    "Token ids (q, r, r̂): of the demo data, or of the demo's texts strung together and cut to lengths of 60, 80 and 300, each ±50%."
    rng, rows = random.Random(seed), list(demo_data()["triples"])
    rng.shuffle(rows)
    ids = [(prompt_ids(tok, x["prompt"]), text_ids(tok, x["safe"])+response_end(tok), text_ids(tok, x["harmful"])) for x in rows]
    if mix=="demo": return ids[:n]
    stream = [t for x in ids for part in x for t in part]
    def cut(mean): k = rng.randint(mean//2, mean*3//2); s = rng.randrange(len(stream)-k); return stream[s:s+k]
    return [(cut(60), cut(80), cut(300)) for _ in range(n)]


def trees_of(tok, mix, cuts=1, n=N, seed=0, max_length=1024):
    rng, sorry = random.Random(seed), refusal_token_id(tok)
    return [triple_tree(q, r, h, sorry, objective("derta", cuts=cuts, max_length=max_length), rng) for q,r,h in triples(tok, mix, n, seed)]


def released(model, trees):
    "The loss of the method as released, on rows of token ids: every node with targets is a row of its own."
    b = collate(trees, limit=0); labels = torch.full(b["input_ids"].shape, -100).flatten(); labels[b["target_pos"]] = b["target_ids"]
    logits = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0,1), labels)


def ours(budget): return lambda model, trees: tree_loss(model, collate(trees, budget))[0]


ARMS = dict(released=released, padded=ours(None), packed=ours(BUDGET))


def model_and_optimiser():
    torch.manual_seed(0)
    model, tok = load("demo", "lora")
    return model, tok, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.)


def step(model, opt, loss_of, trees):
    loss = loss_of(model, trees); loss.backward(); opt.step(); opt.zero_grad(set_to_none=True)
    return loss.item()


def in_turn(fs, rounds=3):
    "Median seconds of each function, taken in turn after one call of each."
    took = {k: [] for k in fs}
    for i in range(rounds+1):
        for k,f in fs.items():
            t = time.perf_counter(); f()
            if i: took[k].append(time.perf_counter()-t)
    return {k: float(np.median(v)) for k,v in took.items()}


def _peak(put, arm, mix, cuts, n):
    torch.set_num_threads(THREADS); model, tok, opt = model_and_optimiser(); trees = trees_of(tok, mix, cuts, n)
    step(model, opt, ARMS[arm], trees[:1])
    gc.collect(); from_here(); before = resident()
    step(model, opt, ARMS[arm], trees)
    put.put((before, resident("VmHWM")))


def peak(arm, mix, cuts=1, n=N):
    "(bytes before, bytes at the peak) of one step, in a process of its own."
    ctx = mp.get_context("spawn"); q = ctx.Queue(); p = ctx.Process(target=_peak, args=(q, arm, mix, cuts, n)); p.start(); out = q.get(); p.join()
    return out


THREADS = torch.get_num_threads()
BYTES = "peak_bytes"


def sizes(model):
    "Parameters of the body (what every token passes) and of the head."
    lm = unwrap(model); head = lm.get_output_embeddings().weight.numel()
    return sum(p.numel() for n,p in lm.named_parameters() if "embed" not in n and "lora_" not in n and "lm_head" not in n), head


def count(model, batch, everywhere=False):
    "Body tokens × body parameters + target positions × head parameters."
    body, head = sizes(model); n = batch["input_ids"].numel()
    return n*body + (n if everywhere else len(batch["target_ids"]))*head


def gradient(model, loss_of, trees):
    model.zero_grad(); loss = loss_of(model, trees); loss.backward()
    g = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]); model.zero_grad(set_to_none=True)
    return loss.item(), g


GROUPS = dict(matrices=("aten::mm","aten::addmm","aten::bmm"), attention=("scaled_dot_product",), softmax=("log_softmax","nll_loss","aten::exp_","aten::gather","scatter"))


def profile(model, opt, loss_of, trees):
    "Seconds of one step by kind of work, from torch's profiler."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as p: step(model, opt, loss_of, trees)
    out = dict.fromkeys([*GROUPS, "the rest"], 0.)
    for e in p.key_averages(): out[next((g for g,names in GROUPS.items() if any(n in e.key for n in names)), "the rest")] += e.self_cpu_time_total/1e6
    return out


def against_the_release(mix, rounds=2):
    model, tok, opt = model_and_optimiser(); trees = trees_of(tok, mix)
    with torch.no_grad():
        for n,p in model.named_parameters():
            if "lora_B" in n: p.normal_(std=.02, generator=torch.Generator().manual_seed(0))       # so that every gradient is there
    (l0,g0), out = gradient(model, released, trees), {}
    for a in ("padded","packed"):
        l, g = gradient(model, ARMS[a], trees)
        assert abs(l/l0-1) < 1e-5 and (g-g0).abs().max() <= 1e-5*g0.abs().max(), f"{a}: another loss ({l}, {l0}) or gradient"
    took = in_turn({a: lambda f=f: step(model, opt, f, trees) for a,f in ARMS.items()}, rounds)
    base, mem = count(model, collate(trees, limit=0), True), {a: peak(a, mix) for a in ARMS}
    parts = {a: profile(model, opt, f, trees) for a,f in ARMS.items()}
    for a,b in dict(padded=None, packed=BUDGET).items():
        batch = collate(trees, b)
        out[a] = dict(times_faster=took["released"]/took[a], counting_predicts=base/count(model, batch), triples_a_second=N/took[a], peak_of_step=(mem[a][1]-mem[a][0])/(mem["released"][1]-mem["released"][0]),
                      peak_of_process=mem[a][1]/mem["released"][1], tokens=batch["input_ids"].numel(), targets=len(batch["target_ids"]),
                      matrices_alone=parts["released"]["matrices"]/parts[a]["matrices"], other_work_released=1-parts["released"]["matrices"]/sum(parts["released"].values()), other_work_ours=1-parts[a]["matrices"]/sum(parts[a].values()))
    out["released"] = dict(triples_a_second=N/took["released"], tokens=collate(trees, limit=0)["input_ids"].numel(), peak_bytes=mem["released"][1])
    out["seconds_by_kind"] = parts
    return out


def price_of_a_cut(rounds=2):
    "Time of 1, 2, 4 and 8 cuts a triple against what their tokens predict, and against a row of its own for each."
    model, tok, opt = model_and_optimiser(); out, some = {}, {c: trees_of(tok, "demo", c, 8) for c in (1,2,4,8)}
    for c,t in some.items():
        (l,g), (l0,g0) = gradient(model, ours(BUDGET), t), gradient(model, ours(None), t); rows, _ = gradient(model, lambda m, t: tree_loss(m, collate(t, limit=0))[0], t)
        assert abs(l/rows-1) < 1e-5 and abs(l/l0-1) < 1e-5
    fs = {c: lambda t=t: step(model, opt, ours(BUDGET), t) for c,t in some.items()}
    rows = {f"{c} rows": lambda t=t: step(model, opt, lambda m, t: tree_loss(m, collate(t, limit=0))[0], t) for c,t in some.items()}
    took = in_turn(fs, 2*rounds) | in_turn(rows, rounds)       # apart: after a step that held gigabytes the next ones are slower for a while
    cost = {c: count(model, collate(t, BUDGET)) for c,t in some.items()}
    for c,t in some.items():
        out[c] = dict(time=took[c]/took[1], tokens_predict=cost[c]/cost[1], separate_rows=took[f"{c} rows"]/took[1], seconds=took[c], tokens=collate(t, BUDGET)["input_ids"].numel(), rows_tokens=collate(t, limit=0)["input_ids"].numel())
    return out


def plain_rows(trees, end):
    "Every node with targets as a row of its own, as our export gives them: token ids, and labels of which -100 counts for nothing."
    from derta_kit.prefix_tree import plain
    for r in (r for t in trees for r in plain(t)):
        n = r.nodes[0]; ids = n.ids+[end]*(max(x.i for x in n.targets)==len(n.ids)); labels = [-100]*len(ids)
        for x in n.targets: labels[x.i] = x.id
        yield dict(input_ids=ids, labels=labels)


def against_trl(rounds=3, length=512):
    "A step of TRL's SFTTrainer, packing our exported labels, and one of ours, packed, on the same triples of the demo mix; what TRL packs sees its neighbours on a CPU, so the losses differ."
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    model, tok, opt = model_and_optimiser(); trees, at = trees_of(tok, "demo"), []
    ours_takes = in_turn(dict(ours=lambda: step(model, opt, ours(BUDGET), trees)), rounds)["ours"]
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs): at.append(time.perf_counter())
    model, tok, _ = model_and_optimiser()
    with tempfile.TemporaryDirectory() as d:
        a = SFTConfig(output_dir=d, packing=True, max_length=length, per_device_train_batch_size=64, max_steps=rounds+2, bf16=False, activation_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_steps=100, disable_tqdm=True)
        t = SFTTrainer(model, a, train_dataset=Dataset.from_list(list(plain_rows(trees, tok.eos_token_id))), processing_class=tok, callbacks=[Clock()]); t.train()
        tokens = sum(map(len, t.train_dataset["input_ids"]))
    return dict(times_faster=float(np.median(np.diff(at)))/ours_takes, tokens=collate(trees, BUDGET)["input_ids"].numel(), trl_tokens=tokens)


def _grown(put, length, cuts, batch, vocab, rounds):
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.set_num_threads(THREADS); torch.manual_seed(0); rng = random.Random(0)
    cfg = AutoConfig.for_model("llama", vocab_size=vocab, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(cfg); model.get_output_embeddings().weight.requires_grad_(False); opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.)
    ids = lambda n: [rng.randrange(3, vocab) for _ in range(n)]
    r = max(4, length//8)
    trees = [triple_tree(ids(length//8), ids(r), ids(length-length//8-r), 9, objective("derta", cuts=cuts, max_length=4*length), rng) for _ in range(batch)]
    step(model, opt, ours(None), trees[:1]); gc.collect(); from_here(); before = resident(); times = []
    for i in range(rounds): t = time.perf_counter(); step(model, opt, ours(None), trees); times.append(time.perf_counter()-t)
    put.put((float(np.median(times)), resident("VmHWM")-before))


AXES = dict(length=(64, 128, 256, 512, 1024), cuts=(1, 2, 4, 8, 16), batch=(2, 4, 8, 16, 32), vocab=(8192, 16384, 32768, 65536, 131072))


def how_cost_grows(rounds=3):
    "Seconds and peak bytes of a step of a small model, one size at a time doubled, each in a process of its own."
    base, out, ctx = dict(length=128, cuts=1, batch=4, vocab=8192), {}, mp.get_context("spawn")
    for axis,values in AXES.items():
        out[axis] = {}
        for v in values:
            q = ctx.Queue(); p = ctx.Process(target=_grown, args=(q, *{**base, axis: v}.values(), rounds)); p.start(); s,b = q.get(); p.join()
            out[axis][v] = dict(seconds=s, bytes=b); print(f"  {axis} {v}: {s:.2f} s, {b/2**20:.0f} MiB", flush=True)
    return out


SECTIONS = dict(demo=lambda: against_the_release("demo"), long=lambda: against_the_release("long", 1), cuts=price_of_a_cut, growth=how_cost_grows, trl=against_trl)


def main(path="bench.json", *only):
    for name in only or SECTIONS:
        print(f"· {name}", flush=True); put(path, name, x := SECTIONS[name]())
        if name != "growth": print(json.dumps(x, indent=1), flush=True)


if __name__ == "__main__": main(*sys.argv[1:])
