"The head as each model has it, and the router's own loss: against the model's own forward."
import random
import pytest, torch
from conftest import tiny
from test_exact import check, equation2, triples
from derta_kit.loss import real_tokens, router_logits, router_loss, step_total, target_logprobs, tree_loss
from derta_kit.objectives import objective, sft_tree, triple_tree
from derta_kit.prefix_tree import collate


def trees(seed, n=3, **o):
    rng = random.Random(seed)
    return [t for q,r,h in triples(rng, n) for t in (triple_tree(q, r, h, 9, objective("derta", **o), rng), sft_tree(q, r))]


def own_loss(model, batch):
    "The loss of the model's own forward on plain rows, its labels made from the batch."
    B, L = batch["input_ids"].shape; more = torch.zeros(B, 1, dtype=torch.long)
    labels = torch.full((B, L+1), -100)
    for p,i in zip(batch["target_pos"].tolist(), batch["target_ids"].tolist()): labels[p//L, p%L+1] = i
    return model(input_ids=torch.cat([batch["input_ids"], more], 1), attention_mask=torch.cat([batch["attention_mask"], more], 1), labels=labels)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_router_loss_on_plain_rows_is_the_models_own(kind):
    kw = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32) if kind == "qwen3_moe" else {}
    model = tiny(kind, output_router_logits=True, router_aux_loss_coef=.5, **kw)
    batch = collate(trees(1), limit=0)
    out = own_loss(model, batch); out.loss.backward()
    want = {n: p.grad.clone() for n,p in model.named_parameters() if p.grad is not None}; model.zero_grad()
    loss, _ = tree_loss(model, batch); loss.backward()
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-5) and out.aux_loss > .1
    scale = max(g.abs().max() for g in want.values())
    for n,p in model.named_parameters():
        if n in want: assert (p.grad-want[n]).abs().max() <= 1e-5*scale, n
    assert any("gate" in n and "expert" not in n and g.abs().max() > 0 for n,g in want.items())


@pytest.mark.parametrize("budget", [None, 96])
def test_router_loss_of_trees_counts_each_token_once(budget):
    model, ts = tiny("mixtral", output_router_logits=True, router_aux_loss_coef=.5), trees(2, cuts=2)
    batch = collate(ts, budget)
    with router_logits(model) as kept: target_logprobs(model, batch)
    n = real_tokens(batch)
    assert budget or n.sum(1).tolist() == [len(t) for t in ts]
    share = torch.zeros(4); prob = torch.zeros(4); rows = 0                     # by hand: per expert the share of choices and the mean probability
    for layer in kept[-1]:
        p = layer.softmax(-1)[n.flatten().bool()]; rows += len(p); prob += p.sum(0)
        share += torch.nn.functional.one_hot(p.topk(2).indices, 4).sum((0,1))
    assert router_loss(model, kept[-1], n).item() == pytest.approx(.5*4*(share/rows*prob/rows).sum().item(), rel=1e-5)


def test_router_loss_is_weighed_like_the_targets_of_a_step():
    model, ts = tiny("mixtral", output_router_logits=True, router_aux_loss_coef=.5), trees(3)
    a, b = collate(ts[:2]), collate(ts[2:]); total = step_total([a, b])
    plain = tiny("mixtral")
    aux = lambda x: (tree_loss(model, x, total=total)[0]-tree_loss(plain, x, total=total)[0]).item()
    def own(x):
        with router_logits(model) as kept: target_logprobs(model, x)
        return router_loss(model, kept[-1], real_tokens(x)).item()
    wa, wb = (step_total([x]).item()/total.item() for x in (a, b))
    assert wa+wb == pytest.approx(1) and aux(a)+aux(b) == pytest.approx(wa*own(a)+wb*own(b), rel=1e-4)


def test_no_router_loss_unless_the_configuration_asks():
    batch = collate(trees(4)); off, on = tiny("mixtral"), tiny("mixtral", output_router_logits=True, router_aux_loss_coef=.5)
    assert tree_loss(on, batch)[0] > tree_loss(off, batch)[0]+.1


def test_biased_head_that_is_trained():
    model, rng = tiny("phi"), random.Random(5)
    assert model.lm_head.bias is not None
    torch.nn.init.normal_(model.lm_head.bias)
    q, r, h = next(iter(triples(rng, 1)))
    t = triple_tree(q, r, h, 9, objective("derta"), rng)
    check(model, [t], equation2(model, q, r, h, [x.at for x in t.nodes[2:]], 9))


def test_quantised_head(tmp_path):
    "A head of 4 bits is called, not multiplied with; gradients flow through it to the body."
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    tiny("llama", hidden_size=64, intermediate_size=128, head_dim=32).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["none"]))
    assert type(model.lm_head).__name__ == "Linear4bit"
    norm = model.model.norm.weight.requires_grad_(True)
    batch = collate(trees(6))
    loss, _ = tree_loss(model, batch, chunk=7); loss.backward(); got, norm.grad = norm.grad, None
    out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0,1).float().log_softmax(-1)
    want = -(out[batch["target_pos"], batch["target_ids"]]*batch["target_weight"]).sum()/batch["target_weight"].sum(); want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5) and (got-norm.grad).abs().max() <= 1e-4*norm.grad.abs().max()


@pytest.mark.parametrize("kw,frozen,calls", [({}, True, 1), ({}, False, 0), (dict(kind="gemma2", final_logit_softcapping=5.), True, 0)], ids=["frozen","trained","capped"])
def test_a_frozen_plain_head_is_gone_through_once(kw, frozen, calls, monkeypatch):
    "Its shorter way gives the gradient of the other; a head that is trained, or caps its logits, cannot take it."
    import derta_kit.loss as L
    kw = dict(kw); model, batch = tiny(kw.pop("kind", "llama"), **kw), collate(trees(2)); went = []
    model.get_output_embeddings().weight.requires_grad_(not frozen); body = next(p for n,p in model.named_parameters() if "q_proj" in n)
    shorter = L._FrozenHead.apply; monkeypatch.setattr(L._FrozenHead, "apply", lambda *a: (went.append(1), shorter(*a))[1])
    def run(): model.zero_grad(); loss, _ = tree_loss(model, batch, chunk=7); loss.backward(); return loss.item(), body.grad.clone()
    loss, grad = run(); assert len(went) == calls
    model.get_output_embeddings().weight.requires_grad_(True)
    other, want = run(); assert loss == pytest.approx(other, rel=1e-5) and (grad-want).abs().max() <= 1e-5*want.abs().max() and len(went) == calls
