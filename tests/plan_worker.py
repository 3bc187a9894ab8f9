"""Trains two steps and prints the peak memory over what there was before the model, in bytes. Start it with MALLOC_MMAP_THRESHOLD_=131072, so that glibc hands back what is freed. Used by test_plan.py, and by bench.py's section plan.

    python tests/plan_worker.py '{"model": "demo", "mode": "lora", "batch": 2, "max_length": 256}' …          # a line each; a process each, but libraries are imported once"""
import gc, json, os, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)


def status(key): return next(int(l.split()[1])*1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key+":"))


def rows(n, length, vocab=1000):
    "Trees of one length: half prompt and r̂, a quarter r."
    from derta_kit.objectives import objective, triple_tree
    import random
    rng = random.Random(0); toks = lambda k: [rng.randrange(3, vocab) for _ in range(k)]
    return [triple_tree(toks(length//4), toks(length//4), toks(length-length//2), 9, objective("derta", empty=1., max_length=length), rng) for _ in range(n)]


def main(model, **kw):
    from derta_kit.models import lora_config
    from derta_kit.plan import empty_model
    from derta_kit.recipes import arguments, loading, make_recipe
    from derta_kit.train import DertaArguments, DertaTrainer
    from derta_kit import models
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    import bitsandbytes
    r = make_recipe(dict(dict(data="-", out="-", budget=0, model=model if isinstance(model, str) else "shape"), **kw))
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))       # what the first product sets up
    with tempfile.TemporaryDirectory() as d:
        args = DertaArguments(output_dir=d, report_to="none", disable_tqdm=True, **{**arguments(r), "save_strategy": "no", "max_steps": 2})
        class Tok: pad_token_id = 0; eos_token_id = 2
        warm = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=1000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1))
        DertaTrainer(get_peft_model(warm, lora_config(warm)) if r.mode != "full" else warm, args, rows(2*r.batch, 32), Tok()).train()     # what libraries load at their first step
        del warm; gc.collect(); before = status("VmRSS")
        if isinstance(model, str): m, _ = models.load(model, **loading(r))
        else:
            torch.manual_seed(0); m = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model)).train()
            if r.mode == "lora": m = get_peft_model(m, lora_config(m, **r.lora))
        for p in m.parameters():
            if type(p).__name__ != "Params4bit": p.data = p.data.clone()       # off the mapped file, whose pages would count as long as one tensor stands on it
        gc.collect(); Path("/proc/self/clear_refs").write_text("5")                           # the peak counts from here
        t = DertaTrainer(m, args, rows(2*r.batch, r.max_length), Tok()); t.train()
    print(json.dumps(dict(peak=status("VmHWM")-before)))


if __name__ == "__main__":
    import bitsandbytes, peft, transformers, derta_kit.recipes, derta_kit.plan      # no step before the fork: autograd's threads do not survive one
    for case in sys.argv[1:]:
        if not (pid := os.fork()):
            try: main(**json.loads(case)); code = 0
            except BaseException: import traceback; traceback.print_exc(); code = 1
            sys.stdout.flush(); sys.stderr.flush(); os._exit(code)
        if os.waitpid(pid, 0)[1]: sys.exit(1)
