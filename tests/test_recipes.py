"Recipes say where they are wrong; every one that comes with the kit is read, planned and checked against the paper."
import subprocess, sys
import pytest
from conftest import ROOT
from derta_kit.objectives import Objective
from derta_kit.plan import SHAPES, empty_model, memory, model_config, peak, plan, shape
from derta_kit.records import DataError
from derta_kit.recipes import accumulation, dealt, arguments, loading, make_recipe, read_recipe, targets
from derta_kit.train import DertaArguments

BOOKS = sorted((ROOT/"scripts"/"recipes").glob("*.yaml"))


def bad(tmp_path, text, sets=()):
    p = tmp_path/"r.yaml"; p.write_text(text)
    with pytest.raises(DataError) as e: read_recipe(p, sets)
    return e.value


def test_errors_name_file_line_and_key(tmp_path):
    ok = "data: a\nout: b\n"
    for text,line,key in ((ok+"lr: fast", 3, "lr"), (ok+"\n\nmode: lorra", 5, "mode"), (ok+"lora:\n  rank: 3", 4, "lora.rank"), (ok+"lr: 1\nlr: 2", 4, "lr"), (ok+"learning: 1", 3, "learning"),
                          (ok+"batch: 0", 3, "batch"), (ok+"lr: .nan", 3, "lr"), (ok+"train:\n  logging: 1", 4, "train.logging"), (ok+"epochs: [1]", 3, "epochs"), (ok+"checkpointing: maybe", 3, "checkpointing"), (ok+"load:\n  trust_remote_code: true", 4, "load.trust_remote_code"),
                          (ok+"load:\n  dtype: float16", 4, "load.dtype"), (ok+"train:\n  output_dir: x", 4, "train.output_dir")):
        e = bad(tmp_path, text); assert (e.line, e.field) == (line, key) and e.file.endswith("r.yaml"), e
    assert bad(tmp_path, "data: a\n").field == "out"
    assert bad(tmp_path, "- a\n").line == 1 and bad(tmp_path, ok+"a: [").line
    e = bad(tmp_path, ok+"max_steps: 4"); assert "did you mean 'train.max_steps'" in str(e)
    assert bad(tmp_path, ok+"epochs: 0").field == "epochs"
    e = bad(tmp_path, ok+"lr: 1", ["lr=fast"]); assert (e.file, e.field) == ("--set", "lr")
    assert bad(tmp_path, ok, ["lr"]).file == "--set"


def test_no_is_a_word_where_a_strategy_is_asked_for(tmp_path):       # YAML reads it as False
    (p := tmp_path/"r.yaml").write_text("data: a\nout: b\ntrain:\n  eval_strategy: no\n  bf16: no\n")
    assert read_recipe(p).train == dict(eval_strategy="no", bf16=False) and read_recipe(p, ["train.save_strategy=no"]).train["save_strategy"] == "no"


def test_a_batch_that_does_not_divide_a_step_is_made_smaller_and_said():
    r = make_recipe(dict(data="a", out="b", step=128, batch=8))
    with pytest.warns(UserWarning, match="batch: 4 rows at a time instead of 8, so that a step of 128"): a = arguments(r, 32)
    assert (a["per_device_train_batch_size"], a["gradient_accumulation_steps"]) == (4, 1)
    with pytest.raises(ValueError, match="128 rows a step cannot be dealt out to 3 devices"): arguments(r, 3)


def test_sixteen_recipes_there_are(): assert {f.stem for f in BOOKS} == {f"{m}-{w}-{s}" for m in ("llama3-8b","llama3-70b","mistral-7b","mixtral-8x7b") for w in ("full","lora") for s in ("paper","ours")}


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_a_recipe_becomes_arguments(book, tmp_path):
    r = read_recipe(book)
    assert accumulation(r, 8)*8*r.batch == 128 == r.step and r.epochs == 2
    for world in (1, 32, 64, 128): assert accumulation(r, world)*world*dealt(r, world).batch == 128, "a step is the same on any number of devices"
    a = arguments(r, 8, cpu=True); a.pop("engine")
    DertaArguments(output_dir=str(tmp_path), report_to="none", **a); loading(r); o = targets(r)
    assert r.model in SHAPES and f"runs/{book.stem}" == r.out
    if "paper" in book.stem:
        assert o.recipe == "paper" and (o.rto_weight, o.cuts, r.budget) == (1, 1, 0) and o.word == Objective().word
        if r.mode == "full": assert (r.lr, r.schedule, r.warmup, r.weight_decay, r.max_length, o.rto_keep) == (2e-5, "cosine", .03, 2e-5, 1024, .05)
        else: assert (r.lr, r.schedule, r.warmup, r.max_length, r.lora, r.batch) == (1e-4, "linear", 0, 512, dict(r=96, lora_alpha=16, lora_dropout=.05), 8)


@pytest.mark.parametrize("name,billions", list(zip(SHAPES, (8.03, 70.55, 7.24, 46.70))))
def test_parameters_of_known_shapes(name, billions): assert sum(p.numel() for p in empty_model(model_config(name)).parameters())/1e9 == pytest.approx(billions, abs=.01)


def recipe(**kw): return make_recipe(dict(dict(data="-", out="-", model="meta-llama/Meta-Llama-3-8B"), **kw))


def test_a_plan_says_that_it_cannot_fit_and_what_would():
    p = plan(recipe(mode="full", precision="mixed", batch=16, max_length=1024), 1, "h100")
    assert not p.fits and "CANNOT FIT" in str(p) and p.would and "devices with engine=fsdp2" in str(p)
    assert plan(recipe(mode="qlora", batch=1, max_length=512, checkpointing=True), 1, "rtx4090").fits


def test_what_would_fit_fits():
    p = plan(recipe(mode="full", precision="mixed", batch=16, max_length=1024), 1, "h100")
    n = next(int(w.split()[0]) for w in p.would if "devices" in w)
    assert plan(recipe(mode="full", precision="mixed", batch=4, max_length=1024, checkpointing=True, engine="fsdp2"), n, "h100").fits


def test_sharding_divides_and_offload_empties():
    one, eight = (memory(recipe(mode="full", precision="mixed", engine=e), model_config("meta-llama/Meta-Llama-3-8B"), n) for e,n in (("auto", 1), ("fsdp2", 8)))
    for k in ("gradients", "optimiser"): assert eight[k] == pytest.approx(one[k]/8)
    off = memory(recipe(mode="full", precision="mixed", engine="fsdp2"), model_config("meta-llama/Meta-Llama-3-8B"), 8, offload=True)
    assert off["weights"] == off["gradients"] == off["optimiser"] == 0 < off["gathered"]


@pytest.mark.parametrize("kw", [{}, dict(step=12), dict(step=12, epochs=1.5), dict(epochs=3), dict(train=dict(max_steps=5)), dict(batch=100)], ids=str)
def test_a_plan_counts_steps_as_the_trainer_does(kw, tmp_path):
    from conftest import tiny
    from derta_kit.objectives import TreeDataset
    from derta_kit.train import DertaTrainer
    from derta_kit.models import load
    r, tok = make_recipe(dict(dict(data="-", out=str(tmp_path), batch=4, max_length=64), **kw)), load("demo")[1]
    rows = [dict(prompt=f"Why {i}?", safe="Sorry, no.", harmful="some words") for i in range(29)]
    a = arguments(r, 1); a.update(save_strategy="no", use_cpu=True)
    t = DertaTrainer(tiny("llama", vocab_size=49152), DertaArguments(output_dir=r.out, report_to="none", **a), TreeDataset(tok, rows, objective=targets(r)), tok)
    assert plan(r, 1, "cpu", rows=29).tokens["steps"] == t.set_initial_training_values(t.args, t.get_train_dataloader())[-1]


def test_columns_of_ones_own(tmp_path):
    import json
    from derta_kit.cli_train import _data, parse
    (tmp_path/"mine.jsonl").write_text(json.dumps(dict(q="How?", good="Sorry, no.", bad="some words"))+"\n")
    r, _ = parse([str(tmp_path/"mine.jsonl"), "--out", "out", "--columns", "prompt=q,safe=good,harmful=bad"])
    assert r.columns == dict(prompt="q", safe="good", harmful="bad") and _data(r)[0][0]["safe"] == "Sorry, no."
    (tmp_path/"r.yaml").write_text(f"data: {tmp_path}/mine.jsonl\nout: b\ncolumns:\n  prompt: q\n  safe: good\n  harmfull: bad\n")
    with pytest.raises(DataError, match="line 6, field 'columns.harmfull': no such key; did you mean 'harmful'"): parse([str(tmp_path/"r.yaml")])
    with pytest.raises(ValueError, match="expected prompt=NAME"): parse(["t.jsonl", "--out", "out", "--columns", "prompt"])


def test_command_line(tmp_path):
    from derta_kit.cli_train import parse
    (tmp_path/"r.yaml").write_text("data: a\nout: b\nlr: 1e-4\nlora:\n  r: 4\n")
    r, rest = parse([str(tmp_path/"r.yaml"), "--objective", "dpo", "--lr", "3e-4", "--set", "lora.r=8", "dpo.beta=0.2", "--plan"])
    assert (r.lr, r.objective, r.lora, r.dpo, rest["plan"]) == (3e-4, "dpo", dict(r=8), dict(beta=.2), True)
    r, _ = parse(["t.jsonl", "--out", "out", "--helpful", "h.jsonl"]); assert (r.data, r.out, r.helpful) == ("t.jsonl", "out", "h.jsonl")
    with pytest.raises(ValueError, match="say where to write: --out, a folder"): parse(["t.jsonl"])
    with pytest.raises(DataError, match="^--lr: 'fast' is not a number"): parse(["t.jsonl", "--out", "out", "--lr", "fast"])      # not a fault of the file
    assert parse(["t.jsonl", "--plan"])[1]["plan"]


@pytest.mark.parametrize("key,means", [("lerning_rate","lr"), ("num_train_epochs","epochs"), ("max_step","train.max_steps"), ("weight_decai","weight_decay"), ("rank","lora.r"), ("lora_alpha","lora.lora_alpha")])
def test_a_key_of_others_is_known_by_its_name_here(key, means):
    with pytest.raises(DataError, match=f"no such key; did you mean '{means}'"): make_recipe(dict(data="x", out="y", **{key: 1}))


def test_preferences_want_small_steps():
    r = make_recipe(dict(data="x", out="y", objective="dpo")); assert (r.lr, r.epochs) == (5e-7, 1)
    assert make_recipe(dict(data="x", out="y", objective="dpo", lr=1e-6)).lr == 1e-6 and make_recipe(dict(data="x", out="y")).lr == 2e-4


def test_bad_input_is_one_line_and_an_exit_code(tmp_path):
    (tmp_path/"r.yaml").write_text("data: a\nout: b\nlr: fast\n")
    p = subprocess.run([sys.executable, "-m", "derta_kit.cli_train", "r.yaml"], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert p.returncode == 2 and "r.yaml, line 3, field 'lr': 'fast' is not a number" in p.stderr and "Traceback" not in p.stderr and not (tmp_path/"b").exists()


def test_four_bits_recompute_unless_told_otherwise():
    from derta_kit.recipes import arguments
    r = lambda **kw: make_recipe(dict(data="x", out="y", **kw))
    assert r(mode="qlora").checkpointing and not r(mode="qlora", checkpointing=False).checkpointing and not r().checkpointing and r(checkpointing=True).checkpointing
    assert arguments(r(mode="qlora"))["activation_checkpointing"]
    with pytest.raises(DataError, match="set checkpointing instead"): r(train=dict(gradient_checkpointing=True))


@pytest.mark.parametrize("precision,mode,gpu,zero,half", [("auto","lora",True,False,True), ("auto","full",True,False,False), ("auto","lora",False,False,False), ("mixed","full",False,False,True), ("bf16","qlora",True,False,True),
                                                          ("fp32","lora",True,False,False), ("auto","full",True,True,True), ("fp32","full",True,True,False)])
def test_what_is_multiplied_in_bfloat16(monkeypatch, precision, mode, gpu, zero, half):
    "Adapters on an accelerator, mixed precision, and whatever DeepSpeed trains."
    from derta_kit.recipes import arguments
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(zero).lower())
    assert arguments(make_recipe(dict(data="x", out="y", precision=precision, mode=mode)), cpu=not gpu)["bf16"] is half
