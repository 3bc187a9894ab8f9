"""The loss and every gradient against equation 2, written here from the formula, one sequence at a time, with logits at every position.

Tolerance: 1e-5 relative in float32 (for a gradient: of the largest entry of all gradients, since sums run in another order)."""
import random
import pytest, torch
from conftest import KINDS, tiny
from derta_kit.loss import tree_loss
from derta_kit.models import prompt_ids, response_end, text_ids
from derta_kit.objectives import RTO, TreeDataset, objective, sft_tree, triple_tree
from derta_kit.prefix_tree import collate, tree_limit
from derta_kit.refusals import refusal_token_id


def logprobs(model, ids): return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def equation2(model, q, r, h, cuts, sorry, w=1.):
    "−Σ_k log P(r | q, r̂<k) − w·Σ_t log P(sorry | q, r̂<t), t from the first position of r̂ to its end."
    total = 0.
    for k in cuts:
        ctx = q + h[:k]; lp = logprobs(model, ctx + r)
        for i,tok in enumerate(r): total = total - lp[len(ctx)+i-1, tok]
    for t in range(len(h)+1): total = total - w*logprobs(model, q + h[:t])[-1, sorry]
    return total


def check(model, trees, want, *layouts, **kw):
    "The loss and its gradients in each of `layouts` (or in one, as keywords) against the plain ones."
    model.zero_grad(); want.backward()
    ref = {n: p.grad.clone() for n,p in model.named_parameters() if p.grad is not None}
    scale = max(g.abs().max() for g in ref.values())
    for layout in layouts or [kw]:
        model.zero_grad(); loss, _ = tree_loss(model, collate(trees, **layout), norm="tree", chunk=7); loss.backward()
        assert abs(loss.item()/want.item()-1) < 1e-5, layout
        got = {n: p.grad for n,p in model.named_parameters() if p.grad is not None}
        assert got.keys() == ref.keys() and scale > 0
        for n in ref: assert (got[n]-ref[n]).abs().max() <= 1e-5*scale, (n, layout)


def triples(rng, n=3): return [([rng.randrange(3,128) for _ in range(rng.randint(a, b))] for a,b in ((4,9),(3,6),(5,14))) for _ in range(n)]


@pytest.mark.parametrize("layout", [dict(), dict(budget=64), dict(limit=0)], ids=["padded","packed","plain rows"])
@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_tiny(kind, cuts, layout):
    model, rng, want, trees = tiny(kind), random.Random(1), 0., []
    assert tree_limit(model) >= 200
    for q,r,h in triples(rng):
        t = triple_tree(q, r, h, 9, objective("derta", cuts=cuts, rto_weight=.5), rng)
        trees.append(t); want = want + equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9, .5)
        assert len(t.nodes) == 2+cuts
    check(model, trees, want/len(trees), **layout)


def test_demo_model(demo_data, cuts=2):
    from derta_kit.models import load
    model, tok = load("demo", "lora", lora=dict(r=4))
    with torch.no_grad():
        for n,p in model.named_parameters():
            if "lora_B" in n: p.normal_(std=.02, generator=torch.Generator().manual_seed(0))
    model.eval()
    rows = [dict(r, harmful=" ".join(r["harmful"].split()[:12])) for r in demo_data["triples"].select(range(2))]
    ds, sorry, want = TreeDataset(tok, rows, objective=objective("derta", cuts=cuts)), refusal_token_id(tok), 0.
    trees = [ds[i] for i in range(2)]
    for t,row in zip(trees, rows):
        q, r, h = prompt_ids(tok, row["prompt"]), text_ids(tok, row["safe"])+response_end(tok), text_ids(tok, row["harmful"])
        want = want + equation2(model, q, r, h, [x.at for x in t.nodes[2:]], sorry)
    check(model, trees, want/2, dict(), dict(budget=512))


@pytest.mark.parametrize("kind,kw", [("llama", dict(tie_word_embeddings=True)), ("gemma2", dict(final_logit_softcapping=5., sliding_window=200, query_pre_attn_scalar=16, attn_logit_softcapping=None)),
                                     ("granite", dict(logits_scaling=4.)), ("cohere", dict(logit_scale=.5))], ids=["tied","capped","scaled down","scaled"])
def test_heads(kind, kw):
    model, rng = tiny(kind, **kw), random.Random(2)
    q, r, h = next(iter(triples(rng, 1)))
    t = triple_tree(q, r, h, 9, objective("derta", cuts=2), rng)
    check(model, [t], equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9))


def test_frozen_head_and_bias():
    "The head's own gradient trick, for a frozen head with a bias, and other weights for each target."
    model, rng = tiny("llama"), random.Random(3)
    model.lm_head = torch.nn.Linear(32, 128, bias=True).requires_grad_(False)
    q, r, h = next(iter(triples(rng, 1)))
    t = triple_tree(q, r, h, 9, objective("derta", rto_weight=.3), rng)
    check(model, [t], equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9, .3))


def test_eager_attention():
    model, rng = tiny("llama"), random.Random(4)
    model.set_attn_implementation("eager")
    assert tree_limit(model) == float("inf")
    q, r, h = next(iter(triples(rng, 1)))
    t = triple_tree(q, r, h, 9, objective("derta", cuts=2), rng)
    check(model, [t], equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9))


@pytest.mark.parametrize("kind,kw", [("mamba", dict(num_attention_heads=None)), ("mistral", dict(sliding_window=6))])
def test_models_that_cannot_take_a_tree_get_plain_rows(kind, kw):
    model, rng = tiny(kind, **kw), random.Random(5)
    q, r, h = next(iter(triples(rng, 1)))
    t = triple_tree(q, r, h, 9, objective("derta", cuts=2), rng)
    limit = tree_limit(model)
    assert limit < t.longest()
    check(model, [t], equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9), limit=limit)


def test_token_mean_is_the_released_loss():
    "All weights 1: the mean over labelled tokens of a micro-batch, as cross_entropy with ignored labels gives it on padded rows."
    model, rng = tiny("llama"), random.Random(6)
    (q,r,h), (p,a,_) = triples(rng, 2)
    tree = triple_tree(q, r, h, 9, objective("derta"), rng); k = tree.nodes[2].at
    ids = [q+h[:k]+r, q+h+[2], p+a]
    labels = [[-100]*(len(q)+k)+r, [-100]*len(q)+[9]*(len(h)+1), [-100]*len(p)+a]
    L = max(map(len, ids)); pad = lambda x, v: torch.tensor([s+[v]*(L-len(s)) for s in x])
    out = model(pad(ids, 0), attention_mask=(pad(labels, -1) != -1).long()).logits
    want = torch.nn.functional.cross_entropy(out[:,:-1].reshape(-1,128), pad(labels, -100)[:,1:].reshape(-1), ignore_index=-100)
    loss, parts = tree_loss(model, collate([tree, sft_tree(p, a)]), norm="token")
    assert abs(loss.item()/want.item()-1) < 1e-5
    assert parts[RTO,2] == len(h)+1
