"`derta_train --objective`: every method trains from one recipe and leaves one full record, so that an ablation is a loop."
import json, re
import pytest
from conftest import tiny
from engine_worker import tokenizer
from derta_kit.cli_train import derta_train
from derta_kit.models import load
from derta_kit.taught import trained_word, word_of

KIND_OF = dict(vanilla={"mle"}, recaug={"mle"}, rto={"mle","rto"}, derta={"mle","rto"})       # losses that a run logs


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    d = tmp_path_factory.mktemp("methods"); tiny("llama").save_pretrained(d/"model"); tokenizer().save_pretrained(d/"model")
    rows = [dict(prompt=f"t{i+20} t{i+30}", safe=f"Sorry t{i+9} t7", harmful=f"t{i+40} t{i+41} t{i+50} t8") for i in range(12)]
    (d/"triples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return d


@pytest.mark.parametrize("name", [*KIND_OF, "dpo"])
@pytest.mark.parametrize("mode", ["lora","full"])
def test_each_method_leaves_a_model_and_a_record(here, name, mode, capsys):
    if name=="dpo": pytest.importorskip("trl", reason="trl is not installed")
    out = here/f"{name}-{mode}"
    derta_train([str(here/"triples.jsonl"), "--out", str(out), "--model", str(here/"model"), "--objective", name, "--mode", mode, "--batch", "4", "--epochs", "2", "--held_out", "0", "--max_length", "128", "--set", "train.logging_steps=1"])
    run = json.loads((out/"run.json").read_text())
    assert run["objective"]["name" if name=="dpo" else "rto"] == dict(dpo="dpo").get(name, name in ("rto","derta")) and run["engine"] == "single" and run["steps"] == 6 and run["rows"]["triples"] == 12
    assert run["data"]["triples"] and run["recipe"]["mode"] == mode and run["trained"] > 0 and {"versions","seed"} <= set(run)
    losses = [l for l in run["log"] if "loss" in l]; assert len(losses) == 6
    if name != "dpo": assert {k.removeprefix("loss_") for k in losses[0] if k.startswith("loss_")} == KIND_OF[name]
    m, _ = load(str(here/"model"), adapter=out) if mode=="lora" else load(str(out)); assert not any(p.requires_grad for p in m.parameters())
    card = (out/"README.md").read_text(encoding="utf-8"); assert "as derta_kit wrote it" in card and str(here) not in card
    assert word_of(m) == "Sorry" and trained_word(out) == ("Sorry" if name in ("rto","derta") else None)


@pytest.mark.parametrize("name", ["vanilla","dpo"])
def test_an_adapter_that_is_trained_on_keeps_its_word(here, name, capsys):
    if name=="dpo": pytest.importorskip("trl", reason="trl is not installed")
    said = [str(here/"triples.jsonl"), "--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--held_out", "0", "--max_length", "128", "--save_steps", "1"]
    if not (here/"t7").exists(): derta_train([*said, "--out", str(here/"t7"), "--set", "targets.word=t7"])
    out = here/f"t7-{name}"; derta_train([*said, "--out", str(out), "--objective", name, "--adapter", str(here/"t7")])
    card = (out/"README.md").read_text(encoding="utf-8"); assert "as derta_kit wrote it" in card and str(here) not in card       # no trainer's own, of a checkpoint
    assert trained_word(here/"t7") == trained_word(out) == word_of(load(str(here/"model"), adapter=out)[0]) == "t7"


def test_a_folder_is_one_runs_own(here, capsys):
    "Another run in it would train nothing and write a false record."
    out, said = here/"own", ["--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--held_out", "0", "--max_length", "128", "--save_steps", "1"]
    go = lambda *more: derta_train([str(here/"triples.jsonl"), "--out", str(out), *said, *more])
    go(); before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}; assert {"run.json","settings.json","adapter_model.safetensors"} <= set(before)
    for more,what in ((("--objective","vanilla"), "objective"), (("--lr","1e-3"), "lr"), (("--set","train.max_steps=1"), "train.max_steps"), (("--helpful", str(here/"pairs.jsonl")), "data")):
        (here/"pairs.jsonl").write_text(json.dumps(dict(prompt="t1", response="t2")))
        with pytest.raises(SystemExit) as e: go(*more)
        assert e.value.code == 2 and f"holds a run with another {what}; choose another folder" in capsys.readouterr().err
    go(); text = capsys.readouterr().out; assert "going on from step 3: " in text and "nothing was left to train" in text
    assert all((out/k).read_bytes() == v for k,v in before.items() if k in ("run.json","settings.json","adapter_model.safetensors"))


@pytest.mark.parametrize("there,what", [("rows.parquet","an evaluation"), ("kept.sqlite","an evaluation"), ("adapter_config.json","an adapter"), ("checkpoint-5","checkpoints"), ("settings.json","a run of another kind")])
def test_a_folder_of_something_else_is_left_alone(here, capsys, tmp_path, there, what):
    "The demo's folder has settings of another kind; an evaluation or an adapter of somebody's own has none."
    if there=="checkpoint-5": (tmp_path/there).mkdir()
    else: (tmp_path/there).write_text(json.dumps(dict(recipe=dict(objectives={}, mix={}, seed=0), data={})))
    with pytest.raises(SystemExit) as e: derta_train([str(here/"triples.jsonl"), "--out", str(tmp_path), "--model", str(here/"model"), "--batch", "4"])
    assert e.value.code == 2 and f"{tmp_path} holds {what}" in (err := capsys.readouterr().err) and "choose another folder" in err and [f.name for f in tmp_path.iterdir()] == [there]


def test_a_run_that_left_nothing_owns_nothing(here, capsys):
    out = here/"failed"; said = [str(here/"triples.jsonl"), "--out", str(out), "--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--held_out", "0"]
    with pytest.raises(SystemExit): derta_train([*said, "--max_length", "9999"])       # more than the model can read
    assert "9999" in capsys.readouterr().err
    derta_train([*said, "--max_length", "128"]); assert (out/"run.json").exists()


def test_a_plan_says_what_is_kept_back(here, capsys):
    for name,use in (("derta", "for validation: P(refusal) on them is logged"), ("vanilla", "for validation: the loss on them is logged"), ("dpo", "unused")):
        derta_train([str(here/"triples.jsonl"), "--model", str(here/"model"), "--plan", "--device", "h100", "--objective", name, "--held_out", "4"])
        assert capsys.readouterr().out.endswith(f"8 triples and 0 helpful pairs to train on; 4 triples kept back {use} (held_out)\n")


@pytest.mark.parametrize("n,asked,back", [(9, [], 0), (11, [], 1), (200, [], 8), (11, ["--held_out","4"], 4), (11, ["--held_out","9"], 5), (200, ["--held_out","0"], 0)])
def test_as_many_are_kept_back_as_is_reasonable(tmp_path, n, asked, back):
    from derta_kit.cli_train import _data, parse
    (tmp_path/"t.jsonl").write_text("\n".join(json.dumps(dict(prompt=f"t{i}", safe="Sorry t1", harmful=f"t2 t{i}")) for i in range(n)))
    triples, _, train, held = _data(parse([str(tmp_path/"t.jsonl"), "--out", "o", *asked])[0]); assert len(held) == back and {*train["prompt"]} | {*held["prompt"]} == {*triples["prompt"]} and len(train)+back == n


def test_the_same_triples_are_kept_back_whatever_their_order(here, tmp_path, capsys):
    "An adapter that goes on with a sorted file meets the same ones kept back; with a shorter file it may not, and says so."
    from derta_kit.cli_train import _data, parse
    from derta_kit.data import read_triples, write_jsonl
    from derta_kit.origins import triples_of
    rows = list(read_triples(here/"triples.jsonl")); held = lambda f: {*_data(parse([str(f), "--out", "o", "--held_out", "3"])[0])[3]["prompt"]}
    write_jsonl(rows[::-1], tmp_path/"turned.jsonl"); first = held(here/"triples.jsonl"); assert held(tmp_path/"turned.jsonl") == first and len(first) == 3
    shape = ["--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--max_length", "128", "--held_out", "3", "--set", "lora.r=4"]
    derta_train([str(here/"triples.jsonl"), "--out", str(tmp_path/"a"), *shape]); capsys.readouterr()
    assert {*triples_of(tmp_path/"a")[0]["prompt"]} == {r["prompt"] for r in rows}-first
    derta_train([str(tmp_path/"turned.jsonl"), "--out", str(tmp_path/"b"), "--adapter", str(tmp_path/"a"), *shape]); assert "trained on before" not in capsys.readouterr().err
    write_jsonl([r for r in rows if r["prompt"] not in first], tmp_path/"fewer.jsonl")
    derta_train([str(tmp_path/"fewer.jsonl"), "--out", str(tmp_path/"c"), "--adapter", str(tmp_path/"a"), *shape])
    assert "note: 3 of 3 triples kept back were trained on before (triples.jsonl, by" in capsys.readouterr().err


def test_a_gap_is_said_before_anything_is_loaded_or_written(here, tmp_path, capsys, monkeypatch):
    from derta_kit import models
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path/"t.jsonl").write_text("".join(json.dumps(dict(prompt=f"t{i}", safe="Sorry t1", harmful="" if i==6 else "t2 t3"))+"\n" for i in range(9)))
    with pytest.raises(SystemExit): derta_train([str(tmp_path/"t.jsonl"), "--out", str(tmp_path/"out"), "--model", str(here/"model")])
    said = capsys.readouterr(); assert "7" in said.err and "'harmful'" in said.err and "to train on" not in said.out and not (tmp_path/"out").exists()


def test_a_question_is_on_one_side_only():
    "However many rows it has; what was kept back is found again by its number alone, as `origins` does."
    from datasets import Dataset
    from derta_kit.data import keep_back
    for each in (1, 2, 12):
        rows = Dataset.from_list([dict(prompt=f"q{i//each}", safe="Sorry.", harmful=f"r{i}") for i in range(96)])
        for n in (1, 3, 8, 47):
            a = keep_back(rows, n); k = len(a["test"]); assert not {*a["train"]["prompt"]} & {*a["test"]["prompt"]} and n <= k < n+each and k+len(a["train"]) == 96
            assert keep_back(rows, k)["test"]["harmful"] == a["test"]["harmful"]


def test_an_adapter_that_goes_on_keeps_its_size(here, tmp_path, capsys):
    "It did before, too, but the plan and the record said what was asked for."
    from derta_kit.models import adapter_lora, load
    derta_train([str(here/"triples.jsonl"), "--out", str(tmp_path/"a"), "--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--max_length", "128", "--set", "lora.r=4"])
    assert adapter_lora(tmp_path/"a", dict(r=4))["r"] == 4
    with pytest.raises(ValueError, match="lora: r is 32 here, and 4 in the adapter that goes on"): load(here/"model", "lora", adapter=tmp_path/"a", lora=dict(r=32))
    go = [str(here/"triples.jsonl"), "--model", str(here/"model"), "--adapter", str(tmp_path/"a"), "--batch", "4", "--epochs", "1", "--max_length", "128"]
    for more in (["--plan", "--device", "cpu"], ["--out", str(tmp_path/"b")]):
        with pytest.raises(SystemExit): derta_train([*go, *more, "--set", "lora.r=32"])
        assert "r is 32 here, and 4 in the adapter" in capsys.readouterr().err
    def trained(*more):
        derta_train([str(here/"triples.jsonl"), "--plan", "--device", "cpu", *more]); return float(re.search(r"([\d.]+) billion trained", capsys.readouterr().out)[1])
    assert trained("--set", "lora.r=64") > 2*trained()
    model, _ = load("demo", "lora", lora=dict(r=64)); model.save_pretrained(tmp_path/"large"); n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained("--adapter", str(tmp_path/"large")) == pytest.approx(n/1e9, abs=6e-4)


def test_a_run_shorter_than_the_steps_between_two_logs_logs_each(here):
    derta_train([str(here/"triples.jsonl"), "--out", str(here/"short"), "--model", str(here/"model"), "--batch", "4", "--epochs", "1", "--held_out", "0", "--max_length", "128"])
    log = json.loads((here/"short"/"run.json").read_text())["log"]; assert [l["step"] for l in log if "loss" in l] == [1, 2, 3]
