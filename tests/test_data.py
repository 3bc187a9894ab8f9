"Readers and writers: every bad line is named, nothing is half-written, the release's files are read."
import json, os
import pytest
from conftest import SHARED
from hypothesis import given, settings, strategies as st
import numpy as np
from derta_kit.data import DataError, Triple, demo_data, read_jsonl, read_triples, redact, redact_tokens, write_jsonl
from derta_kit.probe import RefusalCurve

OK = '{"prompt": "a", "safe": "b", "harmful": "c"}'


@pytest.mark.parametrize("line,field,says", [
    (b'{"prompt": "a", "safe": "", "harmful": "c"}', "safe", "empty"),
    (b'{"prompt": "a", "safe": "  ", "harmful": "c"}', "safe", "empty"),
    (b'{"prompt": "a", "harmful": "c"}', "safe", "missing"),
    (b'{"prompt": "a", "safe": null, "harmful": "c"}', "safe", "empty; leave the row out, or have it filled in: derta_data complete SOURCE --field safe"),
    (b'{"prompt": "a", "safe": 3, "harmful": "c"}', "safe", "expected text"),
    (b'{"prompt": "a", "safe": "b", "harmful": "c", "category": 4}', "category", "expected text"),
    (b'{"prompt": "a", "safe": "\\ud800", "harmful": "c"}', "safe", "surrogate"),
    (b'[1, 2]', None, "expected an object"),
    (b'{"prompt": "a", "sa', None, "not valid JSON"),
    (b'{"prompt": "a\xff", "safe": "b", "harmful": "c"}', None, "UTF-8"),
], ids=["empty","blank","missing","null","number","category","surrogate","list","cut off","encoding"])
def test_bad_line_is_named(tmp_path, line, field, says):
    p = tmp_path/"x.jsonl"; p.write_bytes(OK.encode()+b"\n"+line+b"\n"+OK.encode())
    with pytest.raises(DataError, match=says) as e: read_triples(p)
    assert (e.value.file, e.value.line, e.value.field) == (str(p), 2, field) and "line 2" in str(e.value)
    kept = []
    with pytest.warns(UserWarning, match="1 bad row skipped, 2 triples kept"): ds = read_triples(p, on_error="skip", problems=kept)
    assert len(ds) == 2 and kept[0].line == 2


def test_first_line_bad(tmp_path):
    p = tmp_path/"x.jsonl"; p.write_text('{"safe": "b", "harmful": "c"}')
    with pytest.raises(DataError, match="line 1, field 'prompt'"): read_triples(p)
    p.write_text('{"prompt": "a", "harmful": "c"}'); assert read_triples(p)[0]["safe"] == ""       # a gap, as one of r̂ is
    p.write_text('{"ask": "a", "tell": "b"}')
    with pytest.raises(DataError, match="unknown layout.*ask, tell.*columns=dict"): read_triples(p)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"): read_triples(tmp_path/"no.jsonl")
    (tmp_path/"x.jsonl").write_text("")
    with pytest.raises(DataError, match="no triple"): read_triples(tmp_path/"x.jsonl")


def test_layouts_agree(tmp_path):
    t = Triple("How do I sneak out?", "Sorry, no.", "Wait until\nnight.")
    write_jsonl([t], tmp_path/"ours.jsonl")
    (tmp_path/"raw.json").write_text(json.dumps([dict(instruction=t.prompt, output=t.harmful, safe_response=t.safe)]))
    end = "<|end_of_text|>"; q = f"[INST] {t.prompt} [\\INST]"
    rows = [dict(prefix=q, text=f" {t.harmful}{end}", safe="true"), dict(prefix=q+" Wait", text=f" {t.safe}{end}", safe="false"), dict(prefix="[INST] Hi [\\INST]", text=" Hello."+end, safe="false")]
    write_jsonl(rows, tmp_path/"training.jsonl")
    for f in ("ours.jsonl","raw.json","training.jsonl"):
        r = read_triples(tmp_path/f)[0]
        assert (r["prompt"], r["safe"], r["harmful"]) == (t.prompt, t.safe, t.harmful), f
    assert len(read_triples(tmp_path)) == 3


def test_training_layout_errors(tmp_path):
    p = tmp_path/"t.jsonl"
    for row,says in ((dict(prefix="Hi", text="x", safe="true"), "field 'prefix'"), (dict(prefix="[INST] Hi [\\INST]", text="x", safe="yes"), "field 'safe'"),
                     (dict(prefix="[INST] Hi [\\INST]", text="x", safe="true"), "no safe response")):
        write_jsonl([row], p)
        with pytest.raises(DataError, match=says): read_triples(p)


def test_release_file(tmp_path):
    f = SHARED/"derta"/"example_data_to_read.json"
    if not f.exists(): pytest.skip("../shared/data is absent: the release's example file cannot be read")
    with pytest.raises(DataError, match="no safe response") as e: read_triples(f)      # one sample of each use, of different questions
    assert e.value.line == 4
    rows = [json.loads(l) for l in f.read_text().splitlines()]                        # the second question's safe response, and a harmful one for it
    rows[3]["prefix"] = rows[1]["prefix"]
    write_jsonl(rows, tmp_path/"x.jsonl"); t = read_triples(tmp_path/"x.jsonl")
    assert len(t) == 1 and t[0]["safe"].startswith("I'm sorry") and rows[3]["text"].startswith(" "+t[0]["harmful"])


def test_writing_is_whole_or_not(tmp_path):
    p = tmp_path/"a.jsonl"; write_jsonl([dict(a=1)], p)
    def rows(): yield dict(a=2); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_jsonl(rows(), p)
    assert read_jsonl(p)[0] == dict(a=1) and os.listdir(tmp_path) == ["a.jsonl"]


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(["prompt","safe","harmful","prefix","text","output"]), s, max_size=4), max_leaves=8))
def test_any_json_is_a_triple_or_a_named_error(value):
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        p = f"{d}/x.jsonl"; open(p, "w").write(json.dumps(value))
        try: assert all(r["prompt"].strip() for r in read_triples(p))
        except DataError as e: assert p in str(e)


def test_demo_data_is_what_the_card_says():
    dd = demo_data()
    from derta_kit.build import questions
    from derta_kit.refusals import find_refusal
    q = questions()
    assert len(q["harmful"]) >= 12 and len({r["safe"] for r in dd["triples"]}) >= 24
    kinds = lambda s: {k: sum(r["kind"]==k for r in dd[s]) for k in ("ordinary","lookalike","everyday","border") if any(r["kind"]==k for r in dd[s])}
    assert (len(dd["triples"]), len(dd["harmful_eval"])) == (1071, 60)
    assert kinds("helpful") == dict(ordinary=299, lookalike=100, everyday=491, border=1554) and kinds("benign_eval") == dict(ordinary=60, lookalike=100)
    assert len({r["prompt"] for s in dd.values() for r in s}) == sum(map(len, dd.values()))
    assert not any(find_refusal(r["harmful"]) for s in ("triples","harmful_eval") for r in dd[s])


def test_redact(): assert "knife" not in redact("the knife") and redact("the knife", show_harmful=True) == "the knife"


def test_tokens_are_hidden_but_for_the_sentence_that_refuses():
    t = ["Take", " the", " long", "-handled", " knife", ".", " Sorry", ",", " but", " I", " can", "'t", " help", " with", " that", ".", " Then", "\n"]
    assert redact_tokens(t, show_harmful=True) == t
    hidden = redact_tokens(t); assert hidden[6:16] == t[6:16] and all(set(h) == {"▒"} and len(h) <= 6 for h in hidden[:6]+hidden[16:])
    c = RefusalCurve("q", t, np.zeros(18), np.ones(18), np.zeros(18)); assert c.to_frame().token.tolist() == hidden and c.to_frame(show_harmful=True).token.tolist() == t
    assert "knife" not in c._repr_html_()
