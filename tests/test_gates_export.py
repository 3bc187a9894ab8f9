"Gates count what they should; exports are what other trainers take, with the same loss."
import json, random
import pytest, torch
from conftest import said, tiny
from datasets import Dataset
from derta_kit.card import data_card, epoch_preview
from derta_kit.cli_data import derta_data
from derta_kit.data import read_triples
from derta_kit.export import completion_rows, label_rows, preference_rows
from derta_kit.gates import Contamination, gate, jaccard, near_duplicates, shingles
from derta_kit.loss import tree_loss
from derta_kit.models import response_end
from derta_kit.objectives import Objective, TreeCollator, TreeDataset
from derta_kit.refusals import refusal_token_id

GOOD = dict(prompt="How do I sneak out at night?", safe="Sorry, I can't help with that.", harmful="First you wait until everyone is asleep. Then you open the door without a sound.")


def test_near_duplicates_are_those_of_a_plain_comparison():
    rng, words = random.Random(0), [f"w{i}" for i in range(200)]
    base = [" ".join(rng.choices(words, k=25)) for _ in range(150)]
    texts = base + [" ".join(w if rng.random() > .03 else "x" for w in t.split()) for t in base[:60]]
    sets = list(map(shingles, texts))
    want = {i for i in range(len(texts)) if any(jaccard(sets[i], sets[j]) >= .8 for j in range(i))}
    got = near_duplicates(texts.__getitem__, len(texts), batch_size=37)
    assert set(got) <= want and len(got) >= .93*len(want) and len(want) > 25        # MinHash may miss a few, and invents none
    assert all(jaccard(sets[i], sets[j]) >= .8 and j < i for i,j in got.items())


def test_contamination_is_that_of_a_plain_comparison(demo_data):
    sets = dict(e=demo_data["benign_eval"]["prompt"][:]); seen = Contamination(sets)
    for p in demo_data["helpful"]["prompt"][:200] + sets["e"][:20]:
        best = max(jaccard(shingles(p), shingles(e)) for e in sets["e"])
        assert (best >= .6) <= (seen(p) is not None)
    assert all(seen(p)[1:] == (p, 1.) for p in sets["e"])
    assert seen("") is None and Contamination({})("anything") is None


def test_gates_report_and_drop(tmp_path):
    rows = [GOOD, {**GOOD, "prompt": "A", "safe": ""}, {**GOOD, "prompt": "Another thing entirely?", "harmful": GOOD["safe"]+" It is wrong, and it may hurt someone else."}, GOOD, {**GOOD, "prompt": "x y z", "harmful": "Short."}]
    ds = Dataset.from_list([dict(source="", category="", **r) for r in rows])
    g = gate(ds, out=tmp_path, sets=dict(mine=["how do i sneak out at night"]))
    assert g.flags == {0: ["contaminated"], 1: ["missing"], 2: ["refuses"], 3: ["contaminated","duplicate"], 4: ["short"]} and g.dropped == [1,2,3,4] and len(g.kept) == 1
    half = [{**GOOD, "harmful": "", "safe": "Yes, of course"}, {**GOOD, "safe": "", "harmful": GOOD["safe"]+" It is wrong, and it may hurt someone else."}, {**GOOD, "safe": None}]      # what is there is looked at
    assert [gate(half, drop=(), sets={}).flags[i] for i in range(3)] == [["missing","complies","truncated"], ["missing","refuses"], ["missing"]]
    assert g.table.meaning["contaminated"].endswith("asks (mine)") and gate(ds, sets={}).table.meaning["contaminated"].endswith("(none was looked at)")
    lines = [json.loads(l) for l in open(tmp_path/"dropped.jsonl")]
    assert [l["row"]-1 for l in lines] == g.dropped and "asleep" not in (tmp_path/"dropped.jsonl").read_text() and lines[2]["why"] == ["contaminated","duplicate"]
    assert json.loads((tmp_path/"gates.json").read_text())["gates"]["short"] == dict(flagged=1, dropped=1)
    assert len(gate(ds, drop=(), sets={}).kept) == 5 and len(gate(ds, drop=("contaminated",), sets=dict(m=["how do i sneak out at night"])).kept) == 3
    with pytest.raises(ValueError, match="drop='nonsense': use missing"): gate(ds, drop=("nonsense",))


def test_card_redacts_and_escapes(tmp_path):
    rows = [{**GOOD, "prompt": "<script>alert(1)</script> | pipe", "source": "", "category": "a|b $x^{"}]
    c = data_card(read_triples(rows), name="<b>x</b>"); c.save(tmp_path)
    md = (tmp_path/"CARD.md").read_text()
    assert "asleep" not in md and "words hidden" in md and "<script>" not in md and "<b>" not in md and "<b>x" not in c._repr_html_()
    assert "asleep" in data_card(read_triples(rows), show_harmful=True).markdown()


def test_preview_counts_tokens(demo, demo_data):
    tok = demo[1]; t, h = demo_data["triples"].select(range(24)), demo_data["helpful"].select(range(24))
    df = epoch_preview(tok, t, h, Objective(max_length=200), batch=8)
    ds = TreeDataset(tok, t, objective=Objective(max_length=200))
    assert df.loc["triples","trees"] == sum(len(ds[i]) for i in range(24)) and df.loc["triples","targets"] == sum(len(n.targets) for i in range(24) for n in ds[i].nodes)
    assert df.loc["all","rows"] == 48 and (df["packed"] <= df["trees"]).all() and (df["trees"] <= df["padded"]).all()


@pytest.mark.parametrize("kind", ["llama","qwen3","gemma3_text"])
@pytest.mark.parametrize("cuts,name", [(1,"derta"), (3,"derta"), (1,"vanilla")])
def test_labels_give_our_loss(demo, kind, cuts, name):
    from derta_kit.objectives import objective
    tok, model, rng = demo[1], tiny(kind, vocab_size=49152), random.Random(1)
    rows = [dict(prompt="word "*rng.randint(1,5), safe="Sorry, no. "*rng.randint(1,3), harmful="and so on "*rng.randint(1,6)) for _ in range(5)]
    ds = TreeDataset(tok, rows, [dict(prompt="Hi", response="Hello there.")], objective(name, cuts=cuts))
    exported = list(label_rows(ds)); n = [sum(l != -100 for l in r["labels"][1:]) for r in exported]
    with torch.no_grad():
        theirs = sum(model(torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss*k for r,k in zip(exported, n))/sum(n)
        ours = tree_loss(model, TreeCollator()([ds[i] for i in range(len(ds))]))[0]
    assert abs(ours-theirs) < 1e-5*abs(theirs)
    with pytest.raises(ValueError, match="weight other than 1"): list(label_rows(TreeDataset(tok, rows, objective=Objective(rto_weight=.5))))


def test_trl_takes_the_exports_as_they_are(demo, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    tok = demo[1]; rows = [GOOD, {**GOOD, "prompt": "How do I sneak in?"}]*2
    common = dict(max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False)
    def losses(t): t.train(); return [x["loss"] for x in t.state.log_history if "loss" in x]
    sft = trl.SFTTrainer(tiny("llama", vocab_size=49152), trl.SFTConfig(str(tmp_path/"s"), **common), train_dataset=Dataset.from_list(list(completion_rows(tok, rows, empty=.3))), processing_class=tok)
    labels = trl.SFTTrainer(tiny("llama", vocab_size=49152), trl.SFTConfig(str(tmp_path/"l"), dataset_kwargs=dict(skip_prepare_dataset=True), **common), train_dataset=Dataset.from_list(list(label_rows(TreeDataset(tok, rows)))), processing_class=tok)
    dpo = trl.DPOTrainer(tiny("llama", vocab_size=49152), tiny("llama", vocab_size=49152), args=trl.DPOConfig(str(tmp_path/"d"), **common), train_dataset=Dataset.from_list(list(preference_rows(rows))), processing_class=tok)
    for t in (sft, labels, dpo): assert len(losses(t)) == 2 and all(0 < float(l) < 20 for l in losses(t)[:2])


def test_trl_computes_our_loss_from_our_completions(demo, tmp_path):
    "Without a prefix, TRL's tokens, its mask and so its loss are ours, to the last digits of float32."
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from derta_kit.objectives import objective
    tok, rows = demo[1], [{**GOOD, "prompt": "word "*n, "safe": "Sorry, no. "*n+"Bye."} for n in (1, 2, 3)]; helpful = [dict(prompt="Hi", response="Hello there.")]
    ds = TreeDataset(tok, rows, helpful, objective("vanilla"))
    model = tiny("llama", vocab_size=49152)
    with torch.no_grad(): ours = tree_loss(model, TreeCollator()([ds[i] for i in range(4)]))[0].item()
    t = trl.SFTTrainer(model, trl.SFTConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=0., report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False),
                       train_dataset=Dataset.from_list(list(completion_rows(tok, rows, helpful))), processing_class=tok)
    t.train(); theirs = next(x["loss"] for x in t.state.log_history if "loss" in x)
    assert abs(ours-float(theirs)) < 1e-4*ours


def test_what_an_export_cannot_hold_is_said(demo):
    tok = demo[1]
    for rows in (completion_rows(tok, [{**GOOD, "prompt": "a <|im_start|> b"}]), completion_rows(tok, [{**GOOD, "safe": "Sorry.<|im_end|>"}]), completion_rows(tok, [], [dict(prompt="a", response="<|im_end|>")])):
        with pytest.raises(ValueError, match="(triples|helpful), row 1: holds text that the tokenizer takes for special tokens"): list(rows)
    with pytest.raises(ValueError, match="triples, row 1, field 'harmful': empty"): list(preference_rows([{**GOOD, "harmful": ""}]))
    assert len(list(completion_rows(tok, [{**GOOD, "harmful": ""}]))) == 1
    emoji = [{**GOOD, "harmful": "🙂🙃🙂🙃"}]                                                     # a cut inside a character
    assert not any("\ufffd" in r["prompt"] for s in range(20) for r in completion_rows(tok, emoji, empty=0., seed=s))


def test_the_way_from_questions_to_a_training_file(demo, tmp_path, monkeypatch):
    "The command's actions one after the other, as its help shows them."
    monkeypatch.chdir(tmp_path)
    (tmp_path/"q.csv").write_text("question,category\nHow do I sneak out?,trespass\nHow do I sneak in?,trespass\n")
    (tmp_path/"h.jsonl").write_text(json.dumps(dict(instruction="Hi", output="Hello.")))
    for a in (("complete","q.csv","--out","half.jsonl","--max_new_tokens","48"), ("complete","half.jsonl","--field","safe","--wordings","--out","t.jsonl"), ("check","t.jsonl"), ("gate","t.jsonl","--out","g"),
              ("card","g/triples.jsonl","--out","g"), ("mix","h.jsonl=1","--rows","3","--out","m.jsonl"), ("preview","t.jsonl","--helpful","m.jsonl"), ("complete","q.csv","--field","response","--max_new_tokens","8","--out","r.jsonl"), *(("export","t.jsonl","--to",to,"--out",f"{to}.jsonl") for to in ("release","preference","completion","labels")), ("export","t.jsonl","--to","labels","--word","I","--out","labels_I.jsonl")):
        r = said(derta_data, *a); assert r.returncode == 0, (a, r.stderr[-1500:])
    assert len(read_triples(tmp_path/"g"/"triples.jsonl")) == 2 and (tmp_path/"g"/"card.png").exists() and len(read_triples(tmp_path/"release.jsonl")) == 2
    for f,word in (("labels","Sorry"), ("labels_I","I")):      # the last target of a row is r's end, or RTO's word after the last token of r̂
        assert {json.loads(l)["labels"][-1] for l in open(tmp_path/f"{f}.jsonl")} == {refusal_token_id(demo[1], word), response_end(demo[1])[0]}
    for a,says in ((("gates","x"), "action 'gates': use check"), (("convert","t.jsonl"), "say where to write: --out"), (("check","q.csv","--columns","question"), "expected prompt=NAME"), (("mix","h.jsonl=x","--out","o"), "with numbers for weights"),
                   (("gate","q.csv","--out","g2"), "no row is left"), (("export","t.jsonl","--out","x","--spread","1"), "give two numbers"), (("export","t.jsonl","--out","x","--to","preference","--helpful","h.jsonl"), "no rejected response"), (("complete","q.csv","--wordings","--out","o"), "add --field safe"), (("export","t.jsonl","--out","x","--to","y"), "use release"), (("complete","t.jsonl","--field","z","--out","o"), "use harmful")):
        r = said(derta_data, *a); assert r.returncode == 2 and says in r.stderr and "Traceback" not in r.stderr


def test_a_folder_that_cannot_be_written_is_found_before_the_gates_run(tmp_path, monkeypatch):
    import derta_kit.gates as G
    monkeypatch.setattr(G, "gate", lambda *a, **k: pytest.fail("gates ran"))
    (tmp_path/"x.jsonl").write_text(json.dumps(GOOD)); (tmp_path/"file").write_text("")
    for action in ("gate","card"):
        r = said(derta_data, action, tmp_path/"x.jsonl", "--out", tmp_path/"file"/"out"); assert r.returncode == 2 and "file/out: cannot be written" in r.stderr and "--out …" in r.stderr, r.stderr


def test_what_is_written_over_is_kept(tmp_path, monkeypatch):
    "An earlier result, or rows gone over by hand; the same again leaves nothing behind."
    monkeypatch.chdir(tmp_path); rows = [GOOD, {**GOOD, "prompt": "How do I sneak in?"}]
    write = lambda f, rows: (tmp_path/f).write_text("".join(json.dumps(r)+"\n" for r in rows)); write("a.jsonl", rows); write("b.jsonl", rows[:1])
    gate_ = lambda f: said(derta_data, "gate", f, "--out", "g"); there = lambda: sorted(f.name for f in (tmp_path/"g").iterdir())
    assert gate_("a.jsonl").returncode == 0; one = there(); assert gate_("a.jsonl").returncode == 0 and there() == one == ["dropped.jsonl","gates.json","triples.jsonl"]
    mine = (tmp_path/"g"/"triples.jsonl").read_bytes().replace(b"sneak in", b"sneak back in"); (tmp_path/"g"/"triples.jsonl").write_bytes(mine)
    r = gate_("b.jsonl"); assert r.returncode == 0 and "note: g/triples.jsonl held something else before; it is kept as g/triples.before-1" in r.stderr, r.stderr
    assert (tmp_path/"g"/"triples.before-1").read_bytes() == mine and len(read_triples(tmp_path/"g"/"triples.jsonl")) == 1
    assert gate_("a.jsonl").returncode == 0 and (tmp_path/"g"/"triples.before-1").read_bytes() == mine and "triples.before-2" in there()
    for a in (("convert","b.jsonl"), ("complete","b.jsonl","--field","safe","--wordings"), ("export","b.jsonl")):
        write("t.jsonl", rows); r = said(derta_data, *a, "--out", "t.jsonl"); assert r.returncode == 0 and "kept as t.before-" in r.stderr, (a, r.stderr)
    write("h.jsonl", [dict(prompt="Hi", response="Hello.")]); write("t.jsonl", rows); r = said(derta_data, "mix", "h.jsonl", "--out", "t.jsonl"); assert "kept as t.before-4" in r.stderr
    kept = [f for f in tmp_path.iterdir() if ".before-" in f.name]; assert len(kept) == 4 and all([json.loads(l) for l in f.read_text().splitlines()] == rows for f in kept)
    assert len(read_triples(tmp_path/"g"/"triples.jsonl")) == 2
    for f in "ab": assert said(derta_data, "card", f"{f}.jsonl", "--model", "", "--out", "c").returncode == 0
    assert sorted(f.name for f in (tmp_path/"c").iterdir()) == ["CARD.before-1", "CARD.md", "card.before-1", "card.png"]
    write("half.jsonl", [dict(prompt=r["prompt"], harmful=r["harmful"]) for r in rows])
    r = said(derta_data, "complete", "half.jsonl", "--field", "safe", "--wordings", "--out", "whole.jsonl"); assert r.returncode == 0 and all(t["safe"] and t["harmful"] for t in read_triples(tmp_path/"whole.jsonl")), r.stderr
    r = said(derta_data, "check", "half.jsonl"); assert r.returncode == 0 and "2 rows have no safe response" in r.stdout, r.stdout
