"FlexAttention block masks: the same rule as the dense mask, and the same loss through a model that takes them."
import random
import pytest, torch
from conftest import tiny
from derta_kit.loss import real_tokens, tree_loss
from derta_kit.objectives import TreeCollator, objective, sft_tree, triple_tree
from derta_kit.prefix_tree import Tree, _starts, block_mask, collate, pack, takes_blocks, tree_limit, tree_mask


def trees(n=5, seed=0):
    rng = random.Random(seed); ids = lambda a,b: [rng.randrange(3,128) for _ in range(rng.randint(a,b))]
    return [triple_tree(ids(4,9), ids(3,6), ids(5,20), 9, objective("derta", cuts=1+i%3), rng) if i%4 else sft_tree(ids(3,9), ids(2,9)) for i in range(n)]


def random_tree(rng, nodes):
    "Any shape: several roots, branches in any order and at any place, nodes of no tokens."
    t = Tree()
    for k in range(nodes):
        p = rng.randrange(-1, k); t.add([rng.randrange(3, 128) for _ in range(rng.choice([0, 1, 2, 5, 9]) if p >= 0 else rng.randint(1, 6))], p, rng.randint(0, len(t.nodes[p].ids)) if p >= 0 else None)
    return t


@pytest.mark.parametrize("seed", range(40))
def test_a_row_by_its_paths(seed):
    "Token by token: it sees the tokens of its own path that come before it, and itself; and stands where its path says."
    rng = random.Random(seed); t = random_tree(rng, rng.randint(1, 9)); n = len(t)+rng.choice([0, 3]); off, pos = _starts(t); want = torch.eye(n, dtype=torch.bool); at = {}
    def path(k, i): return (path(t.nodes[k].parent, t.nodes[k].at) if t.nodes[k].parent >= 0 else []) + [(k, j) for j in range(i)]
    for k,x in enumerate(t.nodes): at |= {(k, j): off[k]+j for j in range(len(x.ids))}
    assert sorted(at.values()) == list(range(len(t)))
    b = collate([t])
    for (k,j),row in at.items():
        seen = path(k, j+1); want[row, [at[s] for s in seen]] = True
        assert b["position_ids"][0, row] == len(seen)-1 and b["input_ids"][0, row] == t.nodes[k].ids[j]
    assert (tree_mask(t, n) == want).all() and (b["attention_mask"][0,0] == want[:len(t),:len(t)]).all()


@pytest.mark.parametrize("budget", [None, 60, 400])
def test_the_rule_is_the_dense_mask(budget):
    rows = pack(trees(), budget) if budget else trees()
    b, want = collate(trees(), budget, blocks=True), collate(trees(), budget)["attention_mask"]
    L = want.shape[-1]; B, _, I, J = torch.meshgrid(torch.arange(len(rows)), torch.arange(1), torch.arange(L), torch.arange(L), indexing="ij")
    m = block_mask(b); assert "attention_mask" not in b and (m.mask_mod(B, 0, I, J) == want).all()
    assert m.shape == (len(rows), 1, *[-(-L//128)*128]*2), "whole blocks: a row below 128 would be sent to FlexAttention's decoding kernel, which fails on a GPU"


@pytest.fixture()
def uncompiled(monkeypatch):
    "FlexAttention's plain form: what it computes, without the kernel that a GPU has."
    from torch.nn.attention.flex_attention import flex_attention
    import transformers.integrations.flex_attention as T
    monkeypatch.setattr(T, "compile_friendly_flex_attention", lambda *a, training=False, **k: flex_attention(*a, **k))


@pytest.mark.filterwarnings("ignore:.*flex_attention.*")
@pytest.mark.parametrize("budget", [None, 60])
@torch.no_grad()
def test_same_loss_as_with_a_dense_mask(uncompiled, budget):
    model = tiny("llama", attn_implementation="sdpa"); want, parts = tree_loss(model, collate(trees(), budget))
    model.set_attn_implementation("flex_attention"); assert takes_blocks(model)
    for blocks in (True, False):                        # a dense mask given to such a model is right too
        got, again = tree_loss(model, collate(trees(), budget, blocks=blocks)); assert abs(got/want-1) < 1e-5 and torch.allclose(parts, again, rtol=1e-4)
    assert tree_limit(model) == float("inf") and TreeCollator(blocks=True)(trees())["until"].shape[0] == 5


def test_which_tokens_are_real():
    "What the router's loss counts: the same tokens with either mask."
    for budget in (None, 60):
        a, b = collate(trees(), budget), collate(trees(), budget, blocks=True); L = a["input_ids"].shape[1]
        assert (real_tokens(b)[:,:L] == real_tokens(a)).all() and not real_tokens(b)[:,L:].any()


@pytest.mark.filterwarnings("ignore")
def test_training_and_looking_by_turns_stays_compiled(monkeypatch):
    "Nine kernels, one more than torch compiles by itself before it goes on without, in silence; traced only, since a CPU has none for gradients."
    import torch.nn.attention.flex_attention as F
    from torch._dynamo.utils import counters
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compiled(f, backend="eager", **kw)); monkeypatch.setattr(F, "_validate_device", lambda *a: None)
    model = tiny("llama", attn_implementation="flex_attention"); ids = lambda n: [5]*n
    def at(rows, length, train):
        t = [Tree() for _ in range(rows)]
        for x in t: x.add(ids(length-20)); x.add(ids(9), 0, length-40, [(1, 7)])
        with torch.set_grad_enabled(train): loss, _ = tree_loss(model.train(train), collate(t, blocks=True))
        if train: loss.backward()
    torch._dynamo.reset(); was = counters["stats"]["unique_graphs"]
    with torch.compiler.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        for train, shapes in [(True, [(1,256), (1,128), (2,128), (2,256)]), (False, [(1,640), (2,256), (4,128)]), (True, [(1,512)]), (False, [(1,128)])]:
            for s in shapes: at(*s, train)
    assert counters["stats"]["unique_graphs"]-was > 8; torch._dynamo.reset()
