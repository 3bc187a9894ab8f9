"What is submitted to a cluster: shell, SLURM and accelerate files, and the whole launch of two nodes, here."
import json, os, re, shutil, signal, subprocess, sys, time
import pytest, torch, yaml
from conftest import ROOT, tiny
from engine_worker import tokenizer
from test_engines import port

SHELL = sorted([*(ROOT/"scripts").glob("*.sh"), *(ROOT/"scripts").glob("*.slurm")])
KNOWN = dict(job_name=r"\w+", nodes=r"\d+", ntasks_per_node="1", gpus_per_node=r"\d+", cpus_per_task=r"\d+", mem=r"\d+", time=r"\d+:\d\d:\d\d", requeue="", open_mode="append", signal=r"TERM@\d+", output=r"slurm-%x-%j\.out", exclusive="")


@pytest.mark.parametrize("f", SHELL, ids=lambda p: p.name)
def test_bash_reads_it(f): subprocess.run(["bash", "-n", str(f)], check=True)


@pytest.mark.parametrize("f", SHELL, ids=lambda p: p.name)
def test_shellcheck_is_content(f):
    if not shutil.which("shellcheck"): pytest.skip("shellcheck is not installed")
    r = subprocess.run(["shellcheck", "-x", str(f)], cwd=ROOT, capture_output=True, text=True); assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("f", [f for f in SHELL if f.suffix == ".slurm"], ids=lambda p: p.name)
def test_sbatch_directives(f):
    "Every directive is known, well-formed, and before the first command, where sbatch stops reading."
    lines = f.read_text().splitlines(); assert lines[0].startswith("#!")
    first = next(i for i,l in enumerate(lines) if l and not l.startswith("#"))
    at = [i for i,l in enumerate(lines) if l.startswith("#SBATCH")]; assert at and max(at) < first
    got = {m[1].replace("-", "_"): m[2] or "" for i in at if (m := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[i]))}
    assert len(got) == len(at) and all(re.fullmatch(KNOWN[k], v) for k,v in got.items())
    assert {"requeue","signal","open_mode"} <= set(got)
    saves = int(re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", (ROOT/"scripts"/"env.sh").read_text())[1])
    assert int(got["signal"].split("@")[1]) > saves, "SLURM kills before the run has had its time to save"


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-offload", "zero3", "zero3-offload"])
def test_accelerate_reads_its_configuration(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType
    f = ROOT/"scripts"/"accelerate"/f"{name}.yaml"; c = load_config_from_file(str(f))
    assert c.distributed_type == (DistributedType.FSDP if name.startswith("fsdp") else DistributedType.DEEPSPEED) and c.mixed_precision == "no", "the recipe says in what precision"
    off = name.endswith("offload")
    if name.startswith("fsdp"): assert c.fsdp_config["fsdp_version"] == 2 and c.fsdp_config["fsdp_offload_params"] is off and c.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    else: assert c.deepspeed_config["zero_stage"] == 3 and {c.deepspeed_config[k] for k in ("offload_param_device","offload_optimizer_device")} == {"cpu" if off else "none"}


@pytest.mark.parametrize("name", ["fsdp2", "zero3-offload"])
def test_accelerate_sets_up_the_engine_that_the_kit_sees(name):
    "What `accelerate launch` would put into the environment, and what the kit takes it for."
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
    from derta_kit.engines import launched
    try: args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(ROOT/"scripts"/"accelerate"/f"{name}.yaml"), "--module", "derta_kit.cli_train"]))
    except ImportError as e: pytest.skip(str(e))
    args.deepspeed_fields_from_accelerate_config = ""        # what launch_command adds
    env = prepare_multi_gpu_env(args) if name == "fsdp2" else prepare_deepspeed_cmd_env(args)[1]
    assert launched(2, env) == ("fsdp2" if name == "fsdp2" else "zero3")
    if name != "fsdp2": assert {env[f"ACCELERATE_GRADIENT_{k}"] for k in ("ACCUMULATION_STEPS","CLIPPING")} == {"auto"}, "the Trainer stops where these are not what the recipe says"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A tiny model in a folder, triples, and a recipe."
    d = tmp_path_factory.mktemp("small")
    tiny("llama").save_pretrained(d/"model"); t = tokenizer(); t.save_pretrained(d/"model")
    rows = [dict(prompt=f"t{i+20} t{i+30}", safe=f"Sorry t{i+9} t7", harmful=f"t{i+40} t{i+41} t{i+50} t8") for i in range(12)]
    (d/"triples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (d/"recipe.yaml").write_text(f"data: {d}/triples.jsonl\nout: {d}/out\nmodel: {d}/model\nmax_length: 256\nmode: full\nengine: fsdp2\nbatch: 2\nstep: 4\nepochs: 4\nheld_out: 0\nsave_steps: 3\nbudget: 0\ntrain:\n  logging_steps: 1\n")
    return d


def node(small, rank, at, *args, out=subprocess.PIPE, **env):
    return subprocess.Popen(["bash", str(ROOT/"scripts"/"launch.sh"), str(small/"recipe.yaml"), *args], stdout=out, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NODES": "2", "NODE_RANK": str(rank), "GPUS": "1", "HEAD": "127.0.0.1", "PORT": str(at), **env})


def test_two_nodes_meet_train_and_leave_one_record(small):
    "The whole launch of several nodes, with two 'nodes' of one process each."
    at = port(); nodes = [node(small, r, at) for r in (0, 1)]
    said = [n.communicate(timeout=280)[0] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said[0][-2500:] + said[1][-2500:]
    run = json.loads((small/"out"/"run.json").read_text())
    assert run["engine"] == "fsdp2" and run["devices"] == 2 and run["recipe"]["mode"] == "full" and run["steps"] == 12
    from derta_kit.models import load
    load(str(small/"out"))


@pytest.mark.parametrize("engine,mode", [("zero3","full"), ("zero3-offload","lora")])
def test_zero3_by_its_launcher(small, engine, mode):
    "One node of two processes, by accelerate and DeepSpeed, in the arithmetic that a recipe leaves open (bfloat16)."
    pytest.importorskip("deepspeed")
    n = node(small, 0, port(), "--set", f"out={small}/{engine}", "engine=auto", f"mode={mode}", "batch=1", "epochs=1", "train.ddp_backend=gloo", NODES="1", GPUS="2", ENGINE=engine, DS_ACCELERATOR="cpu", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    said = n.communicate(timeout=280)[0]; assert n.returncode == 0, said[-2500:]
    run = json.loads((small/engine/"run.json").read_text()); assert run["engine"] == "zero3" and run["devices"] == 2 and run["steps"] == 3
    from derta_kit.models import load
    load(str(small/"model"), adapter=small/engine) if mode == "lora" else load(str(small/engine))


def test_sigterm_saves_and_asks_to_be_requeued(small):
    "As a scheduler sends it: to the launcher of each node. Which node is told rank 0, and so logs, is up to the rendezvous."
    at, logs = port(), [small/f"node{r}.log" for r in (0, 1)]
    with open(logs[0], "w") as a, open(logs[1], "w") as b: nodes = [node(small, r, at, "--set", f"out={small}/told", "epochs=400", "save_steps=100000", out=f) for r,f in ((0,a), (1,b))]
    end = time.time()+200
    while time.time() < end and not any("'loss'" in l.read_text() for l in logs): time.sleep(.2)
    for n in nodes: n.send_signal(signal.SIGTERM)
    codes = [n.wait(timeout=200) for n in nodes]; said = [l.read_text() for l in logs]
    assert codes == [85, 85], said[0][-2500:] + said[1][-2500:]
    assert any("SIGTERM: stopped after step" in s for s in said) and list((small/"told").glob("checkpoint-*/trainer_state.json"))


def test_ctrl_c_saves_and_the_same_command_goes_on(small):
    "One process, on a terminal: a checkpoint, exit code 130, and nothing lost."
    log, cmd = small/"stopped.log", [os.path.join(os.path.dirname(sys.executable), "derta_train"), str(small/"recipe.yaml"), "--engine", "single", "--set", f"out={small}/stopped", "epochs=400", "save_steps=100000", "step=2"]
    def run(until):
        with open(log, "w") as f: p = subprocess.Popen(cmd, stdout=f, stderr=subprocess.STDOUT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), env={**os.environ, "OMP_NUM_THREADS": "1"})
        end = time.time()+200
        while time.time() < end and p.poll() is None and until not in log.read_text(): time.sleep(.2)
        return p
    p = run("'loss'"); p.send_signal(signal.SIGINT); code = p.wait(timeout=200); said = log.read_text()
    assert code == 130 and re.search(r"Ctrl-C: stopped after step \d+ of \d+, checkpoint saved; the same command goes on from there", said) and "Traceback" not in said, said[-2500:]
    assert list((small/"stopped").glob("checkpoint-*/trainer_state.json"))
    p = run("going on from step"); p.kill(); p.wait(); assert "going on from step" in log.read_text()
