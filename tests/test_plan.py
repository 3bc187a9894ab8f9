"The plan's memory against the peak of a process that trains: within 15%."
import json, os, subprocess, sys
import pytest
from conftest import ROOT
from derta_kit.plan import AutoConfig, memory, model_config, peak, shape
from derta_kit.recipes import make_recipe

SMALL = dict(model_type="llama", vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False)
CASES = {"small, full": dict(model=SMALL, mode="full", batch=8, max_length=256), "small, recomputed": dict(model=SMALL, mode="full", batch=8, max_length=256, checkpointing=True), "small, lora": dict(model=SMALL, mode="lora", batch=8, max_length=256),
         "demo, full": dict(model="demo", mode="full", batch=2, max_length=256), "demo, lora": dict(model="demo", mode="lora", batch=4, max_length=256), "demo, qlora": dict(model="demo", mode="qlora", batch=2, max_length=256, checkpointing=False)}


def measure(*cases):
    "Peak bytes of each over what there was before the model."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "GLIBC_TUNABLES": ""}      # huge pages would be counted whole
    r = subprocess.run([sys.executable, str(ROOT/"tests"/"plan_worker.py"), *map(json.dumps, cases)], capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    return [json.loads(l)["peak"] for l in r.stdout.splitlines() if l.startswith('{"peak"')]


@pytest.fixture(scope="module")
def measured(): return dict(zip(CASES, measure(*CASES.values())))


def planned(case):
    r = make_recipe(dict(dict(data="-", out="-", budget=0), **{**case, "model": "x"}))
    config = model_config(case["model"]) if isinstance(case["model"], str) else AutoConfig.for_model(**case["model"])
    return peak(memory(r, config, cpu=True), shape(config, r.mode, r.lora))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_within_15_percent(measured, case):
    assert planned(CASES[case]) == pytest.approx(measured[case], rel=.15)


def saved(layers, mode, dtype, autocast, b):
    "Bytes that autograd keeps of the tokens of a forward pass, each storage once."
    import torch
    from peft import get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import AutoModelForCausalLM
    from derta_kit.loss import tree_loss
    from derta_kit.models import lora_config
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SMALL, "num_hidden_layers": layers}), dtype=dtype).train()
    if mode == "lora": m = get_peft_model(m, lora_config(m, r=4))
    kept, n = {}, b["input_ids"].numel()
    def pack(t):
        if n in t.shape: kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)      # no weight has such a side
        return t
    with disable_input_dtype_casting(m, autocast), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=autocast): tree_loss(m, b)
    return sum(n for n,_ in kept.values())


@pytest.mark.parametrize("mode,dtype,autocast,copies", [("full","float32",False,0), ("full","bfloat16",False,2), ("full","float32",True,7), ("lora","float32",False,0), ("lora","bfloat16",True,2), ("lora","float32",True,5)])
def test_what_a_layer_keeps(mode, dtype, autocast, copies):
    "Against autograd's own saved tensors: within 3%, in every arithmetic."
    import torch
    from plan_worker import rows
    from derta_kit.plan import layer_keeps
    from derta_kit.prefix_tree import collate
    b = collate(rows(1, 187)); n = b["input_ids"].numel()
    got = (saved(3, mode, getattr(torch, dtype), autocast, b) - saved(1, mode, getattr(torch, dtype), autocast, b))/2/n
    assert layer_keeps(shape(AutoConfig.for_model(**SMALL), mode, dict(r=4)), mode, n, copies)*(2 if autocast or dtype == "bfloat16" else 4) == pytest.approx(got, rel=.03)
