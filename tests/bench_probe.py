"`make bench` for the probes: one forward pass against asking prefix by prefix, openers as branches against one by one, rollouts off one cache against separate generations."
import json, sys, time
import numpy as np, torch
from derta_kit.data import demo_data
from bench import from_here, put, resident
from derta_kit.models import generate, load, prompt_ids, text_ids
from derta_kit.probe import refusal_curve, refusal_curves, rollouts
from derta_kit.refusals import refusal_token_id

FIVE = ("Sorry", "I'm sorry", "I cannot", "I can't", "I apologize")


def timed(f, n=3):
    out = []
    for _ in range(n): t = time.perf_counter(); x = f(); out.append(time.perf_counter()-t)
    return sorted(out)[n//2], x


@torch.inference_mode()
def one_by_one(model, tok, q, r, openers=(), step=1):
    "P, rank and opener mass at every `step`th position, a plain forward pass for each question asked."
    sorry, seqs = refusal_token_id(tok), sorted({tuple(text_ids(tok, s+o)) for o in openers for s in ("", " ")}); prob, rank, mass = [], [], []
    for t in range(0, len(r), step):
        d = model(torch.tensor([q+r[:t]])).logits[0,-1].float().log_softmax(-1); prob.append(d[sorry].exp().item()); rank.append((d > d[sorry]).sum().item()+1)
        if seqs: mass.append(sum(model(torch.tensor([q+r[:t]+list(s)])).logits[0,-len(s)-1:-1].float().log_softmax(-1).gather(1, torch.tensor(s)[:,None]).sum().exp().item() for s in seqs))
    return map(np.array, (prob, rank, mass))


def main(path=None):
    model, tok = load("demo"); row = max(demo_data()["harmful_eval"], key=lambda r: len(text_ids(tok, r["harmful"])))
    r = text_ids(tok, row["harmful"]+" "+row["harmful"])[:128]; text = tok.decode(r); r = text_ids(tok, text)[:128]; q, out = prompt_ids(tok, row["prompt"]), {}
    refusal_curve(model, tok, row["prompt"], text, max_tokens=8)
    ours, c = timed(lambda: refusal_curve(model, tok, row["prompt"], text, max_tokens=128)); plain, (prob, rank, _) = timed(lambda: one_by_one(model, tok, q, r), 1)
    assert np.abs(c.prob-prob).max() < 1e-5 and (c.rank==rank).mean() > .98
    out["curve_times_faster"] = plain/ours
    ours, c = timed(lambda: refusal_curve(model, tok, row["prompt"], text, max_tokens=128, openers=FIVE)); plain, (_, _, mass) = timed(lambda: one_by_one(model, tok, q, r, FIVE, 4), 1)
    assert np.abs(c.opener_mass[::4]-mass).max() < 1e-5
    print(f"probability and rank: {out['curve_times_faster']:.0f} times", flush=True)
    out["openers_times_faster"] = 4*plain/ours       # every fourth position is asked: all take minutes
    at = list(range(0, 128, 8)); ours, said = timed(lambda: rollouts(model, tok, row["prompt"], r, at, 32), 1)
    plain, want = timed(lambda: [generate(model, tok, [q+r[:k]], 32)[0] for k in at], 1)
    out["rollouts_times_faster"] = plain/ours; out["rollouts_same_text"] = float(np.mean([a.text==b for a,b in zip(said, want)]))
    peak = lambda n: (refusal_curves(model, tok, [row["prompt"]]*n, [text]*n, max_tokens=64, batch_tokens=1024), resident("VmHWM")/2**20)[1]
    from_here()
    for n in (16, 64, 128): out[f"peak_mb_{n}_responses"] = peak(n)
    for k,v in out.items(): print(f"{k}: {v:.1f}")
    if path: put(path, "probe", out)


if __name__ == "__main__": main(*sys.argv[1:])
