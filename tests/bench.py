"""`make bench`: every figure of speed and memory, each a ratio within one run, into nbs/results/bench.json, which nbs/92_bench shows.

    python tests/bench.py [FILE] [SECTION …]       # demo long cuts growth trl (training) · plan · completion · probe · data
"""
import json, os, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent
TRAIN = ("demo","long","cuts","growth","trl")


def put(path, section, figures):
    "Write one section's figures beside those that are there."
    from derta_kit.models import atomically
    out = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    with atomically(Path(path)) as p: p.write_text(json.dumps({**out, section: figures}, indent=1))


def resident(key="VmRSS"):
    "Bytes this process holds, or (VmHWM) has held since `from_here`. Not `ru_maxrss`: a child inherits its parent's."
    return next(int(l.split()[1])*1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key+":"))


def from_here(): Path("/proc/self/clear_refs").write_text("5")      # the peak counts from now on


def completion(n=96, batch=32):
    "Tokens a second of local completion against a plain `generate` loop over unsorted batches of the same size; greedy, the same text."
    import torch
    from derta_kit.data import demo_data
    from derta_kit.decode import decode
    from derta_kit.models import load, prompt_ids
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
    return dict(times_faster=(t1-t0)/(t2-t1), same_text=sum(c.text==w for c,w in zip(got, want))/len(rows), tokens=sum(c.n for c in got), ended_by_themselves=sum(c.ended for c in got), rows=len(rows))


def planned_and_measured():
    "Bytes a run takes at its fullest: as the plan says without loading a weight, and as a process that trains shows."
    from test_plan import CASES, measure, planned
    return {k: dict(planned=planned(c), measured=m) for (k,c),m in zip(CASES.items(), measure(*CASES.values()))}


INSIDE = dict(plan=planned_and_measured, completion=completion)      # sections that need no process of their own


def main(path=HERE.parent/"nbs"/"results"/"bench.json", *only):
    "Sections whose peak of memory counts run in a process of their own."
    run = lambda *args: subprocess.run([sys.executable, *map(str, args)], check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    for s in only or (*TRAIN, *INSIDE, "probe", "data"):
        if s in INSIDE: put(path, s, x := INSIDE[s]()); print(x, flush=True)
        elif s in TRAIN: run(HERE/"bench_train.py", path, s)
        elif s=="probe": run(HERE/"bench_probe.py", path)
        elif s=="data": run(HERE/"bench_data.py", os.environ.get("ROWS", 100_000), path)
        else: raise SystemExit(f"section {s!r}: use {', '.join(TRAIN)}, plan, completion, probe or data")


if __name__ == "__main__": main(*sys.argv[1:])
