"What the explorer sends to a browser and what it keeps back; live generation against plain greedy; the monitor in a terminal."
import json, re, unicodedata
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from derta_kit.models import generate, prompt_ids, text_ids
from derta_kit.probe import RefusalCurve, refusal_curve, talk, token_text
from derta_kit.strip import TokenStrip, _looks, _model_view, _parts, _view, readable, save_page, visible
from derta_kit.widgets import Explorer, TrainingMonitor


@given(st.text())
@settings(deadline=None)
def test_what_is_shown_cannot_steer_the_page(text):
    v = visible(text)
    assert v and not [c for c in v if unicodedata.category(c) in ("Cc","Cf","Cn","Co","Cs","Zl","Zp")] and visible(v) == v
    assert not [c for c in readable(text) if c not in "\n\t" and unicodedata.category(c) in ("Cc","Cf","Cn","Co","Cs","Zl","Zp")]


@given(st.lists(st.sampled_from([" Sure", ",", " I'm", " sorry", ", but", " I", " can't", " help", ".", "\n", "", "</script>"]), max_size=12))
@settings(deadline=None)
def test_masks_fit_their_text(tokens):
    v, text = _view([], tokens, 10), "".join(tokens)
    assert len(v["tokens"]) == len(v["open"]) == len(tokens)
    for t,m,o in zip(tokens, v["tokens"], v["open"]): assert m == visible(t) if o else set(m) == {"▒"}
    assert "".join(p for _,p in _parts(text, True)).split() == text.split()
    assert all(k=="refusal" or re.fullmatch(r"\[\d+ words? masked\] ", p) for k,p in _parts(text, False))


def test_every_token_of_the_vocabulary_has_a_text(demo):
    tok = demo[1]
    texts = [token_text(tok, i) for i in range(0, len(tok), 7)]; assert not any("\ufffd" in t for t in texts) and any(t.startswith("⟨") for t in texts)


@pytest.fixture()
def x(demo, demo_data): return Explorer(demo, examples=demo_data["harmful_eval"].select(range(3)), max_tokens=40, openers=None)


def state(x): return json.dumps([{k: v for k,v in w.get_state().items() if k not in ("_esm","_css")} for w in x.children], default=str)


def test_what_is_synced_holds_no_hidden_word(x, demo_data):
    x.go_on(3); x.start(5); x.wait(3); x.halt()
    asked = " ".join(e["prompt"] for e in x.examples)        # questions are shown
    words = {w for w in (demo_data["harmful_eval"][0]["harmful"]+" "+x.response).split() if len(w) > 5 and w.isalpha() and w not in asked}
    s = state(x); assert len(words) > 8 and not [w for w in words if w in s]
    sent = []; x.strip.send = sent.append; x._hear(dict(type="text", view="v"))
    assert sent[0]["view"]=="v" and [t.strip() for t in sent[0]["tokens"][:3]] == [visible(token_text(x.tok, i)).strip() for i in x.ids[:3]] and "▒" not in json.dumps(sent)


def test_shown_when_asked_for(demo): x = Explorer(demo, "Hi", "nice weather today", openers=None, show_harmful=True); assert "weather" in state(x)


def test_numbers_are_those_of_the_probe(x, demo, demo_data):
    row = demo_data["harmful_eval"][0]; c = refusal_curve(*demo, row["prompt"], row["harmful"], max_tokens=40, openers=["Sorry", "I'm sorry"])
    y = Explorer(demo, row["prompt"], row["harmful"], openers=["Sorry", "I'm sorry"], max_tokens=40); df = y.to_frame()
    assert np.allclose(df.prob, c.prob, rtol=1e-4) and np.allclose(df.opener_mass, c.opener_mass, rtol=1e-3) and np.allclose(y.strip.view["models"][0]["prob"], c.prob, rtol=1e-3)
    assert y.table().loc["model", "best rank"] == c.rank.min()


def test_live_is_greedy_and_takes_what_is_forced(x, demo):
    model, tok = demo; q = prompt_ids(tok, x.prompt.value)
    x.start(4); x.wait(6); x.halt()
    new = tok.decode(x.ids[4:], skip_special_tokens=True); assert generate(model, tok, [q+x.ids[:4]], max(2, len(x.ids)-4))[0].startswith(new[:60]) and len(new) > 3
    x.force(6, " Well, hmm"); x.wait(2); x.halt()
    put = text_ids(tok, " Well, hmm"); assert x.ids[6:6+len(put)] == put and x.strip.view["forced"] == list(range(6, 6+len(put))) and len(x.tracks["model"]) == len(x.ids)


def test_live_ends_with_the_response_and_its_end_is_no_text(x):
    x.force(3, x.tok.eos_token_id); x.wait()
    assert x.ids[3:] == [x.tok.eos_token_id] and x.tok.eos_token not in x.response and x.depth.max == 4
    x.measure(x.asked, x.response); assert len(x.ids) == 3 and not x.strip.live
    x.start(2, most=3); x.wait(); assert len(x.ids) <= 5


def test_another_model_speaks_and_another_question_is_measured_first(demo):
    y = Explorer(dict(one=demo, two=demo), "Name a colour.", "My favourite colour is blue", openers=None, max_new_tokens=4)
    y.start(2, model="one", most=2); y.wait(); assert list(y.tracks) == ["one"]
    y.start(2, model="two", most=2); y.wait(); assert list(y.tracks) == ["two"] and len(y.tracks["two"]) == len(y.ids)
    y.measure("Name a colour.", "My favourite colour is blue"); y.prompt.value = "Name a town."; y.go_on(1)
    assert y.asked == "Name a town." and y.tracks["one"].prompt == "Name a town." and set(y.said["1"]) == {"one","two"}
    y.depth.value = 2; y.forced.value = " red"; y.wait(); assert y.forced.value == "" and y.tok.decode(y.ids[2]) == " red"; y.halt()


def test_talk_reads_what_a_plain_pass_gives(demo):
    import torch
    model, tok = demo; ids = prompt_ids(tok, "Name a colour."); said, put = talk(model, tok, ids, max_new_tokens=6), {2: text_ids(tok, "Sorry")[0]}
    mine, read = next(said)
    for t in range(5):
        with torch.no_grad(): lp = model(torch.tensor([ids])).logits[0,-1].log_softmax(-1)
        assert mine == lp.argmax().item() and read["prob"][0] == pytest.approx(lp[text_ids(tok, "Sorry")[0]].exp().item(), rel=1e-3) and read["top"][0][0][2] == mine
        ids.append(put.get(t, mine)); mine, read = said.send(put.get(t))


def test_errors_are_said_not_thrown(x):
    with pytest.raises(ValueError, match="one to three models"): Explorer({str(i): (x.ms.lm, x.tok) for i in range(4)}, "a", "b")
    with pytest.raises(ValueError, match="prompt is empty"): x.measure(" ", "b")
    with pytest.raises(ValueError, match="response 1 is empty"): x.measure("a", "")
    x._try(lambda: x.measure("<i>", "")); assert "is empty" in x.status.value and "<i>" not in x.status.value
    x._try(lambda: x._hear(dict(type="go", at=999))); assert "position 999" in x.status.value
    with pytest.raises(ValueError, match="nothing to save"): Explorer((x.ms.lm, x.tok), examples=[]).save("x.html")


def test_a_static_form_goes_with_it(x, tmp_path, monkeypatch):
    b = x._repr_mimebundle_(); assert {"application/vnd.jupyter.widget-view+json","text/html","image/png"} <= set(b) and "<table" in b["text/html"]
    shown = []; monkeypatch.setattr("derta_kit.widgets.display", lambda d, **kw: shown.append(set(d)-{"text/plain"})); x._ipython_display_()
    assert shown == [{"application/vnd.jupyter.widget-view+json"}, {"image/png"}, {"text/html"}] and "children" not in repr(x)
    assert x.png(tmp_path/"x.png")[:4] == b"\x89PNG" and (tmp_path/"x.png").stat().st_size > 5000


def test_a_page_keeps_its_text_inside_its_script(tmp_path):
    nasty = ["</script>", "<!--", "\u2028", "%(css)s", "\\u003c"]; c = RefusalCurve("</script><b>", nasty, np.zeros(5), np.ones(5), np.zeros(5))
    save_page(TokenStrip(view=_view([_model_view("m", _looks(["m"])["m"], c, show=True)], nasty, 9, show=True)), tmp_path/"x.html", "</script><b>")
    page = (tmp_path/"x.html").read_text(); data = page.split('id="state">')[1].split("</script>")[0]
    assert json.loads(json.loads(data)["state"]["view"])["tokens"] == [visible(t) for t in nasty] and page.count("</script>") == 2


def test_monitor_writes_lines_in_a_terminal(demo_data, tmp_path, capsys):
    from derta_kit.models import load
    from derta_kit.objectives import TreeDataset, objective
    from derta_kit.train import fine_tune
    model, tok = load("demo", "lora", lora=dict(layers_to_transform=[29])); ds = TreeDataset(tok, demo_data["triples"].select(range(4)), objective=objective("derta", max_length=64))
    m = TrainingMonitor(tok, demo_data["harmful_eval"].select(range(2)), every=2, max_tokens=12)
    fine_tune(model, tok, ds, tmp_path, callbacks=[m], max_steps=3, per_device_train_batch_size=2, logging_steps=1, disable_tqdm=True)
    lines = [l for l in capsys.readouterr().out.splitlines() if l.startswith("step ")]
    assert list(m.curves) == [0,2,3] and len(lines) == 3 and "loss_rto" in lines[-1] and [len(c) for c in m.curves[3]] == [12,12]


@pytest.mark.parametrize("text,says", [("SorrySorrySorrySorry", "refuses, and stutters"), ("Sorry, I can't help with that.", "refuses"), ("Sure, here is how.", "goes on")])
def test_a_verdict_tells_a_stutter_from_a_refusal(text, says):
    from derta_kit.strip import _verdict
    assert _verdict(text) == says
