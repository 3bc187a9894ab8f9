"Two processes give the losses of one, under DDP and FSDP2, for every kind of head; what cannot be had stops the run."
import importlib.util, json, os, socket, subprocess, sys
import pytest, torch
from conftest import ROOT, tiny
from derta_kit.engines import EngineError, check_shardable, choose_engine, engine_of

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1"}
DEEPSPEED = dict(DS_ACCELERATOR="cpu", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3", ACCELERATE_DEEPSPEED_ZERO3_INIT="true", ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
                 ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="none", ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE="none", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1")
CASES = {   # name → what the worker is told
    "full": dict(), "uneven": dict(n=10, gradient_accumulation_steps=2, per_device_train_batch_size=2), "tree norm": dict(norm="tree", budget=96),
    "frozen head": dict(mode="head"), "lora": dict(mode="lora"), "tied": dict(config=dict(tie_word_embeddings=True)), "tied lora": dict(mode="lora", config=dict(tie_word_embeddings=True)),
    "capped": dict(kind="gemma2", config=dict(final_logit_softcapping=5., sliding_window=200, query_pre_attn_scalar=16, attn_logit_softcapping=None)),
    "experts": dict(kind="mixtral", config=dict(output_router_logits=True), norm="tree"), "plain rows": dict(limit=0, n=9), "checkpointed": dict(gradient_checkpointing=True),
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
        assert ran == engine and len(want) > 1 and got == pytest.approx(want, rel=1e-4), key
