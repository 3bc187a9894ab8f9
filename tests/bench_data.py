"`make bench` on a large file: rows a second for reading, gating and building trees, and the peak of memory, over ROWS synthetic triples of 3 kB each."
import json, os, random, sys, tempfile, threading, time
from pathlib import Path
from bench import put


def write(path, n, words=400, seed=0):
    "Synthetic triples of no meaning; one in fifty nearly repeats an earlier one, one in a hundred refuses where it should not."
    from derta_kit.data import demo_data
    dd = demo_data(); rng = random.Random(seed); vocab = [w for r in dd["helpful"]["response"] for w in r.split()]       # English words in their own frequencies, in no order
    stock = rng.choices(vocab, k=3_000_000)
    def text(k): by = rng.randint(1, 4000); i = rng.randrange(len(stock)-k*by); return " ".join(stock[i:i+k*by:by])
    last = None
    with open(path, "w") as f:
        for i in range(n):
            row = dict(prompt=f"How do I {text(14)}?", safe=f"Sorry, I can't help with that. {text(50)}.", harmful=("I'm sorry, but I cannot help. " if i%100==7 else "")+text(words)+".", source="synthetic", category=f"c{i%12}")
            if i%50==11: row = {**last, "harmful": last["harmful"].replace(" a", " o", 3)}
            f.write(json.dumps(row)+"\n"); last = row


class Memory(threading.Thread):
    "Peaks while it runs, in bytes: what the process holds itself (anonymous), and with mapped files (resident)."
    def __init__(self): super().__init__(daemon=True); self.peak, self.stop = dict(RssAnon=0, VmRSS=0), threading.Event(); self.start()
    def run(self):
        while not self.stop.wait(.05):
            for l in open("/proc/self/status"):
                k,_,v = l.partition(":")
                if k in self.peak: self.peak[k] = max(self.peak[k], int(v.split()[0])*1024)


def stages(path, every=4):
    import torch, transformers
    from derta_kit.data import read_triples
    from derta_kit.gates import gate
    from derta_kit.models import demo_path
    from derta_kit.objectives import Objective, TreeDataset
    tok = transformers.AutoTokenizer.from_pretrained(demo_path())
    base = Memory(); time.sleep(.3); base.stop.set(); m, out = Memory(), {}
    def timed(name, f, n=None):
        t = time.perf_counter(); r = f(); dt = time.perf_counter()-t
        out[name] = dict(rows_a_second=(n or len(r))/dt, seconds=dt, peak_gb=(m.peak["RssAnon"]-base.peak["RssAnon"])/1e9, peak_with_mapped_gb=(m.peak["VmRSS"]-base.peak["VmRSS"])/1e9)
        print(f"{name:8s} {out[name]['rows_a_second']:9.0f} rows/s  {dt:7.1f} s  peak {out[name]['peak_gb']:.2f} GB above the interpreter's own ({out[name]['peak_with_mapped_gb']:.2f} with mapped file pages)", flush=True)
        return r
    ds = timed("read", lambda: read_triples(path))
    g = timed("gate", lambda: gate(ds), len(ds))
    trees = timed("checked", lambda: TreeDataset(tok, g.kept, objective=Objective(cuts=2, max_length=1024)))
    some = range(0, len(trees), every)             # over the whole file
    timed("trees", lambda: sum(len(trees[i]) for i in some), len(some))
    print(g.table.to_string())
    return dict(rows=len(ds), trees_built=len(some), flagged=g.table["flagged"].to_dict(), **out)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as d:
        write(f"{d}/x.jsonl", n); size = os.path.getsize(f"{d}/x.jsonl")/1e9; print(f"{n} rows, {size:.2f} GB", flush=True)
        out = stages(f"{d}/x.jsonl")
    out["gigabytes"] = size; out["machine"] = dict(cores=os.cpu_count(), threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    if len(sys.argv) > 2: put(sys.argv[2], "data", out)
