"The plan's memory against the peak of a process that trains: within 15%."
import json, os, subprocess, sys
import pytest
from conftest import ROOT
from derta_kit.plan import AutoConfig, memory, model_config, peak, shape
from derta_kit.recipes import make_recipe

SMALL = dict(model_type="llama", vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False)
CASES = {"small, full": dict(model=SMALL, mode="full", batch=8, max_length=256), "small, recomputed": dict(model=SMALL, mode="full", batch=8, max_length=256, checkpointing=True), "small, lora": dict(model=SMALL, mode="lora", batch=8, max_length=256),
         "demo, full": dict(model="demo", mode="full", batch=2, max_length=256), "demo, lora": dict(model="demo", mode="lora", batch=4, max_length=256), "demo, qlora": dict(model="demo", mode="qlora", batch=2, max_length=256)}


def measure(case):
    "Peak bytes over what there was before the model."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "GLIBC_TUNABLES": ""}      # huge pages would be counted whole
    r = subprocess.run([sys.executable, str(ROOT/"tests"/"plan_worker.py"), json.dumps(case)], capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    return json.loads(r.stdout.splitlines()[-1])["peak"]


def planned(case):
    r = make_recipe(dict(dict(data="-", out="-", budget=0), **{**case, "model": "x"}))
    config = model_config(case["model"]) if isinstance(case["model"], str) else AutoConfig.for_model(**case["model"])
    return peak(memory(r, config, cpu=True), shape(config, r.mode, r.lora))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_within_15_percent(case):
    assert planned(CASES[case]) == pytest.approx(measure(CASES[case]), rel=.15)
