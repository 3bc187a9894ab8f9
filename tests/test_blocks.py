"FlexAttention block masks: the same rule as the dense mask, and the same loss through a model that takes them."
import random
import pytest, torch
from conftest import tiny
from derta_kit.loss import real_tokens, tree_loss
from derta_kit.objectives import TreeCollator, objective, sft_tree, triple_tree
from derta_kit.prefix_tree import block_mask, collate, pack, takes_blocks, tree_limit


def trees(n=5, seed=0):
    rng = random.Random(seed); ids = lambda a,b: [rng.randrange(3,128) for _ in range(rng.randint(a,b))]
    return [triple_tree(ids(4,9), ids(3,6), ids(5,20), 9, objective("derta", cuts=1+i%3), rng) if i%4 else sft_tree(ids(3,9), ids(2,9)) for i in range(n)]


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
    assert tree_limit(model) == float("inf") and TreeCollator(blocks=True)(trees())["sees"].shape[0] == 5


def test_which_tokens_are_real():
    "What the router's loss counts: the same tokens with either mask."
    for budget in (None, 60):
        a, b = collate(trees(), budget), collate(trees(), budget, blocks=True); L = a["input_ids"].shape[1]
        assert (real_tokens(b)[:,:L] == real_tokens(a)).all() and not real_tokens(b)[:,L:].any()
