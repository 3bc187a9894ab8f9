"Two processes give the losses of one, under DDP, FSDP2 and (where DeepSpeed is installed) ZeRO-3, for every kind of head; what cannot be had stops the run."
import importlib.util, json, os, socket, subprocess, sys
import pytest, torch
from conftest import ROOT, tiny
from derta_kit.engines import EngineError, check_shardable, choose_engine, engine_of

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1"}
DEEPSPEED = dict(DS_ACCELERATOR="cpu", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3", ACCELERATE_DEEPSPEED_ZERO3_INIT="true", ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
                 ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="none", ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE="none", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="auto", ACCELERATE_GRADIENT_CLIPPING="auto")
CASES = {   # name → what the worker is told
    "full": dict(), "uneven": dict(n=10, gradient_accumulation_steps=2, per_device_train_batch_size=2), "tree norm": dict(norm="tree", budget=96),
    "frozen head": dict(mode="head"), "lora": dict(mode="lora"), "tied": dict(config=dict(tie_word_embeddings=True)), "tied lora": dict(mode="lora", config=dict(tie_word_embeddings=True)),
    "capped": dict(kind="gemma2", config=dict(final_logit_softcapping=5., sliding_window=200, query_pre_attn_scalar=16, attn_logit_softcapping=None)),
    "experts": dict(kind="mixtral", config=dict(output_router_logits=True), norm="tree"), "plain rows": dict(limit=0, n=9), "checkpointed": dict(activation_checkpointing=True),
}


def port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def work(jobs, n=1, env={}):
    "Run worker jobs in `n` processes; returns the finished process."
    start = [sys.executable] if n == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "--master_port", str(port())]
    return subprocess.run([*start, str(ROOT/"tests"/"engine_worker.py"), json.dumps(jobs)], capture_output=True, text=True, env={**ENV, **env}, timeout=900)


def log(folder, key="loss"):
    h = json.loads((folder/"happened.json").read_text())
    return [x[key] for x in h["log"] if key in x], h["engine"]


def jobs(engine, out, cases=CASES):
    "Worker jobs that take the same steps in two processes, and the environment that their launcher would set."
    on_gpu = dict(use_cpu=False, ddp_backend="gloo") if engine == "zero3" else {}
    return [dict(c, out=str(out/k), engine=engine, per_device_train_batch_size=c.get("per_device_train_batch_size", 4)//2, **on_gpu) for k,c in cases.items()], DEEPSPEED if engine == "zero3" else {}


def needs(engine):
    if engine == "zero3" and not importlib.util.find_spec("deepspeed"): pytest.skip("DeepSpeed is not installed, and ZeRO-3 is its own")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("single")
    r = work([dict(c, out=str(out/k)) for k,c in CASES.items()]); assert r.returncode == 0, r.stderr[-3000:]
    return out


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "zero3"])
def both(request, tmp_path_factory):
    needs(request.param)
    out = tmp_path_factory.mktemp(request.param); todo, env = jobs(request.param, out)
    return request.param, out, work(todo, 2, env)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_of_one(alone, both, case):
    engine, out, r = both
    assert (out/case/"happened.json").exists(), r.stderr[-3000:]
    for key in ("loss", "eval_loss", "grad_norm"):
        (got, ran), (want, _) = log(out/case, key), log(alone/case, key)
        assert ran == engine and want and got == pytest.approx(want, rel=1e-4), key


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_resume_and_a_consolidated_checkpoint(alone, tmp_path, engine):
    "Two processes stop after two steps; two others go on; the result, and the checkpoint on the way, are read by `load`."
    from safetensors.torch import load_file
    from derta_kit.models import load
    needs(engine); env = jobs(engine, tmp_path)[1]
    todo = lambda **kw: jobs(engine, tmp_path, {"run": dict(save_strategy="steps", save_steps=2, num_train_epochs=2, **kw)})[0]
    assert (r := work(todo(stop=2), 2, env)).returncode == 0, r.stderr[-3000:]
    assert (tmp_path/"run"/"checkpoint-2").exists() and json.loads((tmp_path/"run"/"happened.json").read_text())["log"][-1]["step"] == 2
    assert (r := work(todo(), 2, env)).returncode == 0, r.stderr[-3000:]
    (got, ran), (want, _) = log(tmp_path/"run"), log(alone/"full")
    assert ran == engine and got[:3] == pytest.approx(want, rel=1e-4) and len(got) == 6
    model, tok = load(str(tmp_path/"run"))
    saved = load_file(tmp_path/"run"/"model.safetensors")
    assert all(torch.equal(saved[n], p) for n,p in model.named_parameters()) and len(saved) == len(dict(model.named_parameters()))


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])      # one process: test_train
def test_a_finished_run_takes_no_step_more(tmp_path, engine):
    "Three steps of an epoch of six, sharded; the second call takes none, and leaves the same model."
    from safetensors.torch import load_file
    needs(engine)
    todo, env = jobs(engine, tmp_path, {"run": dict(n=24, eval_strategy="no", save_strategy="steps", save_steps=3, max_steps=3)})
    read = lambda: ([x["loss"] for x in json.loads((tmp_path/"run"/"happened.json").read_text())["log"] if "loss" in x], load_file(tmp_path/"run"/"model.safetensors"))
    assert (r := work(todo, 2, env)).returncode == 0, r.stderr[-3000:]
    losses, first = read()
    assert (r := work(todo, 2, env)).returncode == 0, r.stderr[-3000:]
    again, second = read()
    assert losses == again and len(losses) == 3 and all(torch.equal(p, second[n]) for n,p in first.items())


DEMO = dict(kind="demo", n=4, per_device_eval_batch_size=4, eval_strategy="no", max_steps=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def demo_alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    r = work([dict(DEMO, mode=m, out=str(out/m)) for m in ("lora","qlora")]); assert r.returncode == 0, r.stderr[-3000:]
    return out


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_demo_model(demo_alone, tmp_path, engine):
    "LoRA on the demo model, four short triples a step; where it is sharded, on four bits too: the storage that `check_shardable` advises gives the losses of one process."
    cases = dict(lora=dict(DEMO, mode="lora")) | (dict(qlora=dict(DEMO, mode="qlora", config=dict(storage="float32"))) if engine=="fsdp2" else {})
    assert (r := work(jobs(engine, tmp_path, cases)[0], 2)).returncode == 0, r.stderr[-3000:]
    for case in cases:
        (got, ran), (want, _) = log(tmp_path/case), log(demo_alone/case)
        assert ran == engine and got == pytest.approx(want, rel=1e-4) and len(want) == 2, case
        assert (tmp_path/case/"adapter_model.safetensors").exists()


def test_fsdp_argument_on_a_cpu_is_no_ddp(tmp_path):
    "`TrainingArguments(fsdp=…)` on a CPU becomes DDP without a word; here it is FSDP2, or it stops."
    job = dict(out=str(tmp_path), fsdp=True, fsdp_config=dict(version=2), per_device_train_batch_size=2, max_steps=1, eval_strategy="no")
    assert (r := work([job], 2)).returncode == 0, r.stderr[-3000:]
    assert log(tmp_path)[1] == "fsdp2"


def test_another_engine_than_asked_stops_the_run():
    from types import SimpleNamespace as NS
    from derta_kit.engines import EngineCheck
    check = EngineCheck(NS(model_wrapped=tiny("llama")), "fsdp2")
    with pytest.raises(EngineError, match="fsdp2 was asked for, and single has the model"): check.on_train_begin(None, None, None)


@pytest.mark.parametrize("asked,n,env,what", [("fsdp2", 1, {}, "torchrun --nproc_per_node"), ("single", 2, {}, "engine single is one process"), ("zero3", 2, {}, "accelerate launch"),
                                              ("ddp", 2, dict(ACCELERATE_USE_FSDP="true"), "has set up fsdp2"), ("fsdp2", 2, dict(ACCELERATE_USE_DEEPSPEED="true"), "has set up zero3")])
def test_an_engine_that_cannot_be_had(asked, n, env, what):
    with pytest.raises(EngineError, match=what): choose_engine(asked, n, env)


def test_zero3_without_deepspeed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install deepspeed"): choose_engine("auto", 2, dict(ACCELERATE_USE_DEEPSPEED="true"))


def test_four_bits_in_uint8_are_not_sharded():
    from derta_kit.models import load
    model, _ = load("demo", "qlora", lora=dict(r=2, layers_to_transform=[0]))
    with pytest.raises(EngineError, match="issue 3983.*storage="): check_shardable(model, "fsdp2")
    check_shardable(model, "ddp"); assert engine_of(model) == "single"
