"""What only a GPU can show: that everything that runs on a CPU runs there, and gives what a CPU gives. Skips without one.

Tolerances: float32 on both, TF32 off: 1e-4 relative for a loss, 1e-4 of the largest entry for gradients, 1e-4 for a probability. FlexAttention's kernel: the same."""
import json, random
import pytest, torch
from conftest import TINY, said, tiny
from derta_kit.loss import tree_loss
from derta_kit.models import load, unwrap
from derta_kit.objectives import TreeDataset, objective
from derta_kit.prefix_tree import collate
from test_blocks import trees

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
cuda = lambda b: {k: v.cuda() for k,v in b.items()}
PAIRS = [("How do I whistle?", "First you purse your lips, and then you blow air gently through them until a tone comes."), ("Name a colour.", "Blue is a colour that many people like.")]


@pytest.fixture(scope="module")
def pair():
    "The demo model on the CPU and on the GPU, in float32."
    try: return load("demo", dtype="float32", device="cpu"), load("demo", dtype="float32")
    except OSError as e: pytest.skip(str(e).splitlines()[0])


def loss_and_grads(model, batch):
    model.zero_grad(); loss, parts = tree_loss(model, batch); loss.backward()
    return loss.item(), {n: p.grad.cpu() for n,p in model.named_parameters() if p.grad is not None}, parts.cpu()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("budget", [None, 60, 400])
def test_loss_and_gradients_as_on_a_cpu(attention, budget):
    kw = dict(head_dim=16, hidden_size=64, num_attention_heads=4)
    want, ref, parts = loss_and_grads(tiny("llama", **kw), collate(trees(9), limit=0))
    model = tiny("llama", attn_implementation=attention, **kw).cuda()
    for t in (trees(9), trees(9, seed=1)):      # the second: other lengths, which FlexAttention must not mistake for the first
        got, grads, again = loss_and_grads(model, cuda(collate(t, budget, blocks=attention=="flex_attention")))
        if t[0].nodes[0].ids == trees(9)[0].nodes[0].ids:
            scale = max(g.abs().max() for g in ref.values())
            assert got == pytest.approx(want, rel=1e-4) and torch.allclose(again, parts, rtol=1e-3, atol=1e-4)
            assert max((grads[n]-g).abs().max() for n,g in ref.items()) < 1e-4*scale
        else: assert got == pytest.approx(tree_loss(tiny("llama", **kw), collate(t))[0].item(), rel=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A small random model and a tokenizer, saved as users' models are."
    from engine_worker import tokenizer
    d = tmp_path_factory.mktemp("model"); tiny("llama", hidden_size=128, intermediate_size=256, head_dim=32, num_attention_heads=4, num_key_value_heads=2).save_pretrained(d); tokenizer().save_pretrained(d)
    return str(d)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_training_in_every_mode(folder, tmp_path, mode, attention):
    "Defaults: bfloat16, and for 4 bits nothing but the adapters in float32; the loss falls, and what was saved is read and gives the same."
    from test_train import Trees
    from derta_kit.train import fine_tune
    model, tok = load(folder, mode, attn_implementation=attention); assert unwrap(model).device.type == "cuda"
    if mode != "full": assert {p.dtype for n,p in model.named_parameters() if "lora_" not in n and type(p).__name__ != "Params4bit"} == {torch.bfloat16} and {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    t = fine_tune(model, tok, Trees(16), tmp_path, Trees(4), per_device_train_batch_size=8, num_train_epochs=15, logging_steps=5, learning_rate=1e-2 if mode != "full" else 1e-3, budget=64, disable_tqdm=True, eval_strategy="epoch")
    h = [x["loss"] for x in t.state.log_history if "loss" in x]; assert h[-1] < h[0]-.2, h
    assert t.args.bf16 is (mode != "full") and t.args.activation_checkpointing is (mode == "qlora")
    again, _ = load(str(tmp_path)) if mode == "full" else load(folder, adapter=tmp_path, **(dict(quantization_config=unwrap(model).config.quantization_config) if mode == "qlora" else {}))
    b = cuda(collate(Trees(4).trees)); model.eval()
    with torch.no_grad(): assert tree_loss(again, b)[0].item() == pytest.approx(tree_loss(model, b)[0].item(), rel=.03)


def test_four_bits_give_the_same_recomputed_or_not(folder):
    model, _ = load(folder, "qlora"); b = cuda(collate(trees(6)))
    def grads():
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16): loss, _ = tree_loss(model.train(), b)
        loss.backward(); return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for p in model.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=.02)
    plain, g = grads(); unwrap(model).activation_checkpointing_enable(); again, h = grads()
    assert again == pytest.approx(plain, rel=1e-3) and (g-h).norm() < .02*g.norm() and g.norm() > 0


def test_curves_and_rollouts_as_on_a_cpu(pair):
    from derta_kit.probe import refusal_curves, rollouts
    from derta_kit.refusals import OPENERS
    (cpu, gpu) = [refusal_curves(*m, *zip(*PAIRS), openers=OPENERS[:4], top=3) for m in pair]
    for a,b in zip(cpu, gpu): assert abs(a.prob-b.prob).max() < 1e-4 and abs(a.opener_mass-b.opener_mass).max() < 1e-4 and abs(a.logp-b.logp).max() < 1e-2
    texts = [[x.text for x in rollouts(*m, *PAIRS[0], positions=[0, 4, 9], max_new_tokens=12)] for m in pair]; assert texts[0] == texts[1]


def test_the_trees_of_the_demo_model_in_bfloat16(pair, demo_data):
    "Rows, trees and packed trees of one triple each: within what bfloat16 does to any sum."
    (_, tok), rows = pair[0], demo_data["triples"].select(range(6))
    data = TreeDataset(tok, rows, objective=objective("derta")); ts = [data[i] for i in range(6)]; want = tree_loss(pair[1][0], cuda(collate(ts)))[0].item()
    assert tree_loss(pair[1][0], cuda(collate(ts, limit=0)))[0].item() == pytest.approx(want, rel=1e-4)
    model, _ = load("demo")
    for kw in (dict(limit=0), dict(), dict(budget=1024)): assert tree_loss(model, cuda(collate(ts, **kw)))[0].item() == pytest.approx(want, rel=.03), kw


MEDIUM = dict(model_type="llama", vocab_size=32_768, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=False)
PLANS = {"full": dict(mode="full"), "full, recomputed": dict(mode="full", checkpointing=True), "full, mixed": dict(mode="full", precision="mixed"), "lora": dict(mode="lora"), "lora, recomputed": dict(mode="lora", checkpointing=True)}


@pytest.mark.parametrize("case", PLANS)
def test_the_plan_on_a_gpu(case, tmp_path):
    "Peak of two steps at the longest rows, in torch's own count, within 15% of the plan."
    import gc
    from peft import get_peft_model
    from plan_worker import rows
    from transformers import AutoConfig, AutoModelForCausalLM
    from derta_kit.models import lora_config
    from derta_kit.plan import memory, peak, shape
    from derta_kit.recipes import arguments, loading, make_recipe
    from derta_kit.train import DertaArguments, DertaTrainer
    r = make_recipe(dict(dict(data="-", out="-", budget=0, model="x", batch=8, max_length=512), **PLANS[case])); config = AutoConfig.for_model(**MEDIUM)
    gc.collect(); torch.cuda.empty_cache(); before = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"): m = AutoModelForCausalLM.from_config(config, dtype=loading(r)["dtype"] or torch.bfloat16)
    if r.mode == "lora": m = get_peft_model(m, lora_config(m))
    class Tok: pad_token_id = 0; eos_token_id = 2
    t = DertaTrainer(m.train(), DertaArguments(output_dir=str(tmp_path), report_to="none", disable_tqdm=True, **{**arguments(r, cpu=False), "save_strategy": "no", "max_steps": 2}), rows(2*r.batch, r.max_length), Tok()); t.train()
    got, want = torch.cuda.max_memory_allocated()-before, peak(memory(r, config), shape(config, r.mode, r.lora)); del t, m
    print(f"\n{case}: measured {got/1e9:.2f} GB, planned {want/1e9:.2f} GB, {want/got-1:+.0%}"); assert want == pytest.approx(got, rel=.15)


def test_the_commands(pair, tmp_path):
    "Train on some triples of the demo, look, evaluate: on the GPU, by the commands."
    from derta_kit.cli import derta_probe
    from derta_kit.cli_eval import derta_eval
    from derta_kit.cli_train import derta_train
    from derta_kit.data import demo_data
    f = tmp_path/"triples.jsonl"; f.write_text("\n".join(json.dumps({k: r[k] for k in ("prompt","safe","harmful")}) for r in demo_data()["triples"].select(range(24))))
    for mode in ("lora", "qlora"):
        r = said(derta_train, f, "--out", tmp_path/mode, "--mode", mode, "--batch", "4", "--set", "train.max_steps=3")
        assert r.returncode == 0 and (tmp_path/mode/"adapter_model.safetensors").exists(), r.stderr[-1500:]
    r = said(derta_probe, *PAIRS[0], "--adapter", tmp_path/"lora", "--out", tmp_path/"curve"); assert r.returncode == 0 and (tmp_path/"curve.png").exists(), r.stderr[-1500:]
    r = said(derta_eval, "run", "--out", tmp_path/"eval", "--models", f"base,mine={tmp_path/'lora'}", "--n", "4", "--harmless", "8", "--max_new_tokens", "24"); assert r.returncode == 0 and (tmp_path/"eval"/"report.html").exists(), r.stderr[-1500:]
