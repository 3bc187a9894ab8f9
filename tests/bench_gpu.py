"""QLoRA of the Llama-3-8B shape on one GPU: triples a second, peak memory and MFU of the tree layout, against the method as released and against TRL's SFTTrainer
with packing on our exported labels; FlexAttention's block masks against dense ones; and what PEFT's own preparation of 4-bit models (float32 ends and norms) would cost.
Random weights in the true shape; needs no tokenizer and no network.

    python tests/bench_gpu.py out.json            # on a GPU: some six minutes, added to the runs in out.json; the weights (16 GB) are written to a temporary folder once (TMPDIR)
    python tests/bench_gpu.py out.json --tiny     # anywhere: a tiny shape, to try the path; --profile=FILE writes where the time of a step goes, '--only=released;packed_far, sdpa;twice;TRL' measures these alone (four minutes)
"""
import gc, json, random, sys, tempfile, time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from bench_train import plain_rows
from derta_kit.loss import tree_loss
from derta_kit.models import _bnb, _prepare, atomically, unwrap
from derta_kit.objectives import objective, triple_tree
from derta_kit.plan import memory, peak, shape as sizes
from derta_kit.prefix_tree import collate, takes_blocks
from derta_kit.recipes import make_recipe

SHAPE = dict(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000., tie_word_embeddings=False)
TINY = dict(SHAPE, vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PEAK = 989e12     # dense bf16 operations a second of an H100 or H200 (SXM); MFU is against it
END, RANK = 9, 16


def clear(): gc.collect(); GPU and torch.cuda.empty_cache()
def sync(): GPU and torch.cuda.synchronize()
def put(b): return {k: v.to(DEVICE) for k,v in b.items()}


def model_of(shape):
    "Random weights in bf16 on disk, read and quantised as any model is."
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with DEVICE: m = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape), dtype=torch.bfloat16)
        m.save_pretrained(folder); del m; clear()
        m = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": DEVICE}, quantization_config=_bnb(torch.bfloat16, torch.uint8), attn_implementation="sdpa")
    m = _prepare(m, "qlora", None, dict(r=RANK)); unwrap(m).activation_checkpointing_enable()
    clear(); return m


def trees_of(row, n, vocab, cuts=1):
    "Triples whose row of the released form is `row` tokens on average: q, r̂ and r take 15, 65 and 20% of it, each ±50%."
    rng = random.Random(0); ids = lambda share: [rng.randrange(10, vocab) for _ in range(max(4, int(row*share*rng.uniform(.5, 1.5))))]
    return [triple_tree(ids(.15), ids(.2), ids(.65), END, objective("derta", cuts=cuts, max_length=2*row), rng) for _ in range(n)]


def released(m, trees, budget=None):
    b = put(collate(trees, limit=0)); labels = torch.full_like(b["input_ids"], -100).flatten(); labels[b["target_pos"]] = b["target_ids"]
    logits = m(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0,1), labels)


def ours(m, trees, budget=None): return tree_loss(m, put(collate(trees, budget, blocks=takes_blocks(m))))[0]


@contextmanager
def as_peft_prepares(m):
    "Embedding, norms and head in float32, as `prepare_model_for_kbit_training` leaves them."
    was = [(p, p.dtype) for n,p in unwrap(m).named_parameters() if "lora_" not in n and type(p).__name__ != "Params4bit"]
    for p,_ in was: p.data = p.data.float()
    try: yield
    finally:
        for p,d in was: p.data = p.data.to(d)


def measure(m, loss_of, trees, micro, budget=None, steps=3, autocast=True):
    "Seconds a step, peak bytes and the first loss; one step is all `trees`, `micro` at a time."
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-6)
    def step():
        total = 0.
        for s in range(0, len(trees), micro):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast): loss = loss_of(m, trees[s:s+micro], budget)
            loss.backward(); total += loss.detach()
        opt.step(); opt.zero_grad(set_to_none=True); return total.item()/(len(trees)/micro)
    clear(); first = step(); sync(); GPU and torch.cuda.reset_peak_memory_stats(); t = time.perf_counter()
    for _ in range(steps): step()
    sync(); return (time.perf_counter()-t)/steps, torch.cuda.max_memory_allocated() if GPU else 0, first


def counted(trees, micro, f, budget, blocks):
    "Tokens through the body, and positions through the head."
    groups = [trees[i:i+micro] for i in range(0, len(trees), micro)]; b = [collate(g, budget, blocks=blocks, **({"limit": 0} if f is released else {})) for g in groups]
    tokens = sum(x["input_ids"].numel() for x in b)
    return tokens, tokens if f is released else sum(len(x["target_ids"]) for x in b)


def mfu(shape, tokens, heads, seconds):
    "Of a frozen body: two operations a parameter and token forward, two for the gradient towards the inputs; what is recomputed does not count."
    s = sizes(AutoConfig.for_model("llama", **shape)); return 4*(s.body*tokens+s.head*heads)/seconds/PEAK


def trl(m, trees, row, micro, shape, steps=3):
    "The same by TRL's SFTTrainer, packing our exported labels."
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    at = []
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs): sync(); at.append(time.perf_counter())
    rows = list(plain_rows(trees*(steps+1), END)); clear()
    with tempfile.TemporaryDirectory() as d:
        a = SFTConfig(output_dir=d, packing=True, max_length=row, per_device_train_batch_size=micro, max_steps=-1, num_train_epochs=1, learning_rate=1e-6, activation_checkpointing=True, bf16=GPU, use_cpu=not GPU, report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True)
        tr = SFTTrainer(m, a, train_dataset=Dataset.from_list(rows), processing_class=_Tok(), callbacks=[Clock()]); GPU and torch.cuda.reset_peak_memory_stats()
        tr.train(); tokens = sum(map(len, tr.train_dataset["input_ids"]))/(steps+1)
        s = (at[-1]-at[0])/(len(at)-1)*len(at)/(steps+1)        # of all `trees` once; the first step, which warms up, is left out
        return dict(triples_a_second=len(trees)/s, peak_gb=torch.cuda.max_memory_allocated()/1e9 if GPU else 0, tokens=tokens, mfu=mfu(shape, tokens, tokens, s), attention=unwrap(m).config._attn_implementation)


def _Tok():
    "A tokenizer that TRL asks only for its special tokens."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": END}, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>")


def write_profile(path, m, trees, micro, budget):
    "Where one step's time goes, by kernel."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*GPU) as p: measure(m, ours, trees[:micro], micro, budget, steps=1)
    key = "self_cuda_time_total" if GPU else "self_cpu_time_total"
    Path(path).write_text(p.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90))


def planned(shape, row, micro):
    "What the plan says of the padded arm, GB."
    r = make_recipe(dict(data="-", out="-", model="x", mode="qlora", batch=micro, max_length=row, checkpointing=True, budget=0, lora=dict(r=RANK))); c = AutoConfig.for_model("llama", **shape)
    return lambda tokens: peak(memory(r, c, tokens=tokens), sizes(c, "qlora", r.lora))/1e9


def main(path, tiny=False, profile=None, only=None):
    shape, began, was = TINY if tiny else SHAPE, time.time(), json.loads(path.read_text()) if path.exists() else {}
    if any(r.get("tiny")!=tiny for r in was.get("runs", [])): raise SystemExit(f"{path} holds runs of another shape (--tiny or not); choose another file")
    out = dict(device=torch.cuda.get_device_name() if GPU else "cpu", torch=torch.__version__, tiny=tiny, rows={})
    def tell(row, name, got):
        out["rows"].setdefault(row, {})[name] = got; print(f"{time.time()-began:4.0f} s", row, name, got, flush=True)
        with atomically(path) as p: p.write_text(json.dumps(dict(was, runs=[*was.get("runs", []), out]), indent=1))
    m = model_of(shape); cases = [(64, 4, 2)] if tiny else [(512, 16, 8), (1024, 16, 4)]
    print(f"model ready after {time.time()-began:.0f} s", flush=True)
    for row, n, micro in cases:
        trees, plan = trees_of(row, n, shape["vocab_size"]), planned(shape, row, micro)
        def arm(name, f, budget=None, micro=micro, **kw):
            if only and not any(o in name for o in only): return
            tokens, heads = counted(trees, micro, f, budget, takes_blocks(m))
            try: s, most, loss = measure(m, f, trees, micro, budget, **kw)
            except Exception as e: clear(); return tell(row, name, dict(error=f"{type(e).__name__}: {str(e).splitlines()[0][:300]}"))      # memory, or a kernel that cannot be had: the others go on
            longest = max(collate(trees[i:i+micro], budget, blocks=takes_blocks(m))["input_ids"].numel() for i in range(0, n, micro))
            tell(row, name, dict(triples_a_second=n/s, peak_gb=most/1e9, tokens=tokens, mfu=mfu(shape, tokens, heads, s), loss=loss, **({} if f is released else dict(plan_gb=plan(longest)))))
        arm("released", released); arm("released, twice", released, micro=2*micro)
        for attention in ("sdpa", "flex_attention") if GPU else ("sdpa",):
            unwrap(m).set_attn_implementation(attention)
            for name, budget in dict(padded=None, packed=2*row, packed_far=4*row).items(): arm(f"{name}, {attention}", ours, budget)
            arm(f"twice, {attention}", ours, 8*row if takes_blocks(m) else 4*row, 2*micro)
        unwrap(m).set_attn_implementation("sdpa")
        if profile: write_profile(profile, m, trees, micro, 2*row)
        with as_peft_prepares(m):
            arm("packed, as PEFT prepares", ours, 2*row); arm("packed, as PEFT prepares, in float32", ours, 2*row, autocast=False)
    for (row, n, micro), (name, k) in product(cases, {"TRL, packing": 1, "TRL, packing, twice": 2}.items()) if not only or "TRL" in only else ():              # last: it changes the adapters' type
        try: tell(row, name, trl(m, trees_of(row, n, shape["vocab_size"]), row, k*micro, shape))
        except (ImportError, torch.OutOfMemoryError) as e: tell(row, name, dict(error=f"{type(e).__name__}: {str(e).splitlines()[0][:300]}"))
        clear()


if __name__ == "__main__":
    given = dict(a[2:].partition("=")[::2] for a in sys.argv[2:] if a.startswith("--"))
    main(Path(sys.argv[1]), "tiny" in given, given.get("profile"), given["only"].split(";") if "only" in given else None)
