"""QLoRA of the Llama-3-8B shape on one GPU: triples a second, peak memory and MFU of the tree layout, against the method as released and against TRL's SFTTrainer
with packing on our exported labels. Random weights in the true shape; needs no tokenizer and no network.

    python tests/bench_gpu.py out.json            # on a GPU: some minutes; the weights (16 GB) are written to a temporary folder once
    python tests/bench_gpu.py out.json --tiny     # anywhere: a tiny shape, to try the path
"""
import gc, json, random, sys, tempfile, time
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from bench_train import plain_rows
from derta_kit.loss import tree_loss
from derta_kit.models import _bnb, _prepare, atomically, unwrap
from derta_kit.objectives import objective, triple_tree
from derta_kit.prefix_tree import collate, takes_blocks

SHAPE = dict(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000., tie_word_embeddings=False)
TINY = dict(SHAPE, vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
GPU = torch.cuda.is_available()
PEAK = 989e12     # dense bf16 operations a second of an H100 or H200 (SXM); MFU is against it
END = 9


def weights(folder, shape):
    "Random weights in bf16 on disk, so that they are read and quantised as any model is."
    with torch.device("cuda" if GPU else "cpu"): m = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape), dtype=torch.bfloat16)
    m.save_pretrained(folder); del m; gc.collect(); GPU and torch.cuda.empty_cache()


def model_of(folder, attention):
    torch.manual_seed(0); dev = torch.device("cuda" if GPU else "cpu")
    m = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": dev}, quantization_config=_bnb(torch.bfloat16, torch.uint8), attn_implementation=attention)
    m = _prepare(m, "qlora", None, dict(r=16)); m.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    return m, torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4)


def trees_of(row, n, vocab, cuts=1):
    "Triples whose row of the released form is `row` tokens on average: q, r̂ and r take 15, 65 and 20% of it, each ±50%."
    rng = random.Random(0); ids = lambda share: [rng.randrange(10, vocab) for _ in range(max(4, int(row*share*rng.uniform(.5, 1.5))))]
    return [triple_tree(ids(.15), ids(.2), ids(.65), END, objective("derta", cuts=cuts, max_length=2*row), rng) for _ in range(n)]


def released(m, trees, budget=None):
    b = put(collate(trees, limit=0), m); labels = torch.full_like(b["input_ids"], -100).flatten(); labels[b["target_pos"]] = b["target_ids"]
    logits = m(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0,1), labels)


def ours(m, trees, budget=None): return tree_loss(m, put(collate(trees, budget, blocks=takes_blocks(m)), m))[0]
def put(b, m): return {k: v.to(unwrap(m).device) for k,v in b.items()}
def sync(): GPU and torch.cuda.synchronize()


def measure(m, opt, loss_of, trees, micro, budget=None, steps=4):
    "Seconds a step and peak bytes; one step is all `trees`, `micro` at a time."
    def step():
        for s in range(0, len(trees), micro): loss_of(m, trees[s:s+micro], budget).backward()
        opt.step(); opt.zero_grad(set_to_none=True)
    step(); sync(); GPU and torch.cuda.reset_peak_memory_stats(); t = time.perf_counter()
    for _ in range(steps): step()
    sync(); return (time.perf_counter()-t)/steps, torch.cuda.max_memory_allocated() if GPU else 0


def trl(folder, trees, row, micro, steps=4):
    "The same by TRL's SFTTrainer, packing our exported labels."
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    at = []
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs): sync(); at.append(time.perf_counter())
    m, _ = model_of(folder, "flash_attention_2" if GPU and _has_flash() else "sdpa"); rows = list(plain_rows(trees*(steps+1), END))
    with tempfile.TemporaryDirectory() as d:
        a = SFTConfig(output_dir=d, packing=True, max_length=row, per_device_train_batch_size=micro, max_steps=-1, num_train_epochs=1, gradient_checkpointing=True, bf16=GPU, use_cpu=not GPU, report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True)
        tr = SFTTrainer(m, a, train_dataset=Dataset.from_list(rows), processing_class=_Tok(), callbacks=[Clock()]); GPU and torch.cuda.reset_peak_memory_stats()
        tr.train(); tokens = sum(map(len, tr.train_dataset["input_ids"]))/(steps+1)
        s = (at[-1]-at[0])/(len(at)-1)*len(at)/(steps+1)        # of all `trees` once; the first step, which warms up, is left out
        return dict(triples_a_second=len(trees)/s, peak_gb=torch.cuda.max_memory_allocated()/2**30 if GPU else 0, tokens=tokens, mfu=mfu(m, tokens, s))


def _has_flash():
    from transformers.utils import is_flash_attn_2_available
    return is_flash_attn_2_available()


def _Tok():
    "A tokenizer that TRL asks only for its special tokens."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": END}, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>")


def mfu(m, tokens, seconds):
    "Of a frozen body: two forward's worth of operations for the forward, two for the gradient towards the inputs; what is recomputed does not count."
    n = sum(p.numel()*(2 if p.__class__.__name__=="Params4bit" else 1) for k,p in unwrap(m).named_parameters() if "lora_" not in k and "embed" not in k)
    return 4*n*tokens/seconds/PEAK


def main(path, tiny=False):
    shape, out = TINY if tiny else SHAPE, dict(device=torch.cuda.get_device_name() if GPU else "cpu", torch=torch.__version__, tiny=tiny, rows={})
    with tempfile.TemporaryDirectory() as folder:
        weights(folder, shape)
        for row in (64,) if tiny else (512, 1024):
            n, micro = (4, 2) if tiny else (16, 8 if row==512 else 4); trees, got = trees_of(row, n, shape["vocab_size"]), {}
            for att in ("sdpa", "flex_attention") if GPU else ("sdpa",):
                m, opt = model_of(folder, att)
                arms = dict(released=(released, None), padded=(ours, None), packed=(ours, 2*row), packed_far=(ours, 4*row)) if att=="sdpa" else dict(padded=(ours, None), packed=(ours, 2*row), packed_far=(ours, 4*row))
                for name,(f,b) in arms.items():
                    try: s, peak = measure(m, opt, f, trees, micro, b)
                    except torch.OutOfMemoryError as e: got[f"{name}, {att}"] = dict(error=str(e).splitlines()[0]); gc.collect(); torch.cuda.empty_cache(); continue
                    tokens = sum(collate(trees[i:i+micro], b, **({"limit": 0} if f is released else {}))["input_ids"].numel() for i in range(0, n, micro))
                    got[f"{name}, {att}"] = dict(triples_a_second=n/s, peak_gb=peak/2**30, tokens=tokens, mfu=mfu(m, tokens, s)); print(row, name, att, got[f"{name}, {att}"], flush=True)
                del m, opt; gc.collect(); GPU and torch.cuda.empty_cache()
            try:
                got["TRL, packing"] = trl(folder, trees, row, micro); print(row, "TRL", got["TRL, packing"], flush=True)
            except ImportError as e: got["TRL, packing"] = dict(error=str(e))
            gc.collect(); GPU and torch.cuda.empty_cache(); out["rows"][row] = got
            with atomically(path) as p: p.write_text(json.dumps(out, indent=1))


if __name__ == "__main__": main(Path(sys.argv[1]), "--tiny" in sys.argv)
