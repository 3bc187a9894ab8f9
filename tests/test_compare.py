"Models switched in place are the models themselves; bands hold what they should."
import numpy as np, pytest, torch
from derta_kit.compare import Comparison, Models, assistant_header, compare, recheck_curve
from derta_kit.models import load, prompt_ids
from derta_kit.probe import RefusalCurve, refusal_curve


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    out = {}
    for seed,name in enumerate(("a","b")):
        m, _ = load("demo", "lora"); torch.manual_seed(seed)
        for n,p in m.named_parameters():
            if "lora_B" in n: torch.nn.init.normal_(p, std=.02)
        out[name] = tmp_path_factory.mktemp(name); m.save_pretrained(out[name])
    return out


def test_switching_adapters_gives_each_its_own_curves(adapters, demo, demo_data):
    rows = demo_data["harmful_eval"].select(range(3)); p, r = rows["prompt"][:], rows["harmful"][:]
    c = compare({"b": adapters["b"], "base": None, "a, lr 0.1": adapters["a"]}, p, r, max_tokens=30, batch_tokens=128)
    for name,adapter in {"a, lr 0.1": adapters["a"], "b": adapters["b"], "base": None}.items():
        m, tok = load("demo", adapter=adapter)
        want = refusal_curve(m, tok, p[1], r[1], max_tokens=30)
        assert np.allclose(c.curves[name][1].prob, want.prob, rtol=1e-3, atol=1e-7) and (c.curves[name][1].rank == want.rank).mean() > .9
    assert set(c.kl) == {"a, lr 0.1","b"} and all((k > -1e-5).all() for n in c.kl for k in c.kl[n])
    df = c.to_frame(); assert len(df) == 3*sum(min(30, len(x)) for x in c.curves["base"]) and {"kl","prob","model"} <= set(df)


def test_whole_models_and_errors(demo):
    c = compare(dict(one=demo, two=demo), ["Hi"], ["Hello there."]); assert not c.kl and np.allclose(c.curves["one"][0].prob, c.curves["two"][0].prob)
    with pytest.raises(ValueError, match="2 prompts and 1 response"): compare(dict(one=demo), ["a","b"], ["c"])
    with pytest.raises(ValueError, match="response 1 is empty"): compare(dict(one=demo), ["a"], [""])


def test_bands_cover_the_mean():
    rng = np.random.default_rng(0)
    cs = [RefusalCurve("p", ["x"]*8, rng.uniform(size=8), np.ones(8), np.zeros(8)) for _ in range(40)]
    d = Comparison(dict(m=cs), {}).mean("prob", "m")
    assert len(d) == 8 and (d.low <= d["mean"]).all() and (d["mean"] <= d.high).all() and .1 < (d.high-d.low).mean() < .3


def test_header(demo):
    tok = demo[1]; assert prompt_ids(tok, "x")[-len(assistant_header(tok)):] == assistant_header(tok)
    from copy import deepcopy
    bare = deepcopy(tok); bare.chat_template = None; assert "INST" in bare.decode(assistant_header(bare))
    long = recheck_curve(*demo, "Hi", "word "*60, step=16); assert np.allclose(long, recheck_curve(*demo, "Hi", "word "*60, step=60), rtol=1e-3)


def test_a_folder_without_an_adapter_is_said_and_not_looked_for_at_the_hub(tmp_path):
    with pytest.raises(ValueError, match="holds no adapter"): Models(dict(base=None, mine=tmp_path/"typo"))


def test_no_two_models_look_alike():
    "In any picture; and the same model looks the same in all pictures of a page."
    import numpy as np, pandas as pd
    from types import SimpleNamespace
    from derta_kit import pages, plots, strip, tables
    names = ["base","mine","derta","q4","vanilla","e1","e2","e3"]; looks = plots._styles(names)
    assert len({s["color"] for s in looks.values()}) == 8 and plots._styles(["derta"])["derta"] == looks["derta"] == plots._styles(["x","derta"])["derta"] and len({(s["color"], str(s["ls"])) for s in plots._styles([f"m{i}" for i in range(20)]).values()}) == 20
    assert [l.get_color() for l in plots.bias_figure({n: np.zeros(4) for n in names}).axes[0].lines] == [looks[n]["color"] for n in names]
    assert {n: x["color"] for n,x in strip._looks(names).items()} == {n: s["color"] for n,s in looks.items()}
    few = ["mine","base","derta"]; rows = pd.DataFrame([dict(model=m, attack=a, setting="", question=f"q{i}", case=f"{a}{i}", response="a b c d", refused=pd.NA if m=="mine" else True, word=1, unsafe=True, error="") for m in few for a in ("none","prefill") for i in range(3)]).astype(dict(refused="boolean", unsafe="boolean"))
    e = SimpleNamespace(rows=rows, record=dict(models={m: dict(word="I" if m=="mine" else "Sorry", **(dict(curves=[[.1,.2]]) if m!="base" else {})) for m in few}))
    figs, want = pages.figures(e), plots._styles(few)
    assert [l.get_color() for l in figs["curves"].axes[0].lines] == [want["mine"]["color"], want["derta"]["color"]] and figs["curves"].axes[0].get_legend_handles_labels()[1] == ["mine: 'I'", "DeRTa: 'Sorry'"]
    assert [l.get_color() for l in figs["where refusals stand"].axes[0].lines] == [want["base"]["color"], want["derta"]["color"]]
    bars = figs["attack success"].axes[0].containers; from matplotlib.colors import to_hex
    assert [to_hex(b[0].get_facecolor()).upper() for b in bars if hasattr(b, "patches")] == [want[m]["color"].upper() for m in few]
