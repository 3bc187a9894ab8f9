"Decoding and completion: the same greedy text as generate, killed and gone on with, servers that stall and die."
import json, os, random, re, signal, socket, subprocess, sys, threading, time, urllib.request
import pytest
from conftest import Replies, said, tiny
from derta_kit.cli_data import derta_data
from derta_kit.complete import Answers, Endpoint, Local, Request, WORDINGS, ask, complete
from derta_kit.data import read_triples
from derta_kit.decode import decode
from derta_kit.models import generate, prompt_ids, text_ids
from derta_kit.refusals import find_refusal


def test_slots_give_what_generate_gives(demo, demo_data):
    model, tok = demo
    rows = [prompt_ids(tok, r["prompt"]) for r in demo_data["helpful"].select(range(0, 898, 110))]
    want = [generate(model, tok, [r], 20)[0] for r in rows]
    for slots in (1, 4, 64): assert [c.text for c in decode(model, tok, rows, max_new_tokens=20, slots=slots)] == want


def test_rows_that_end_are_replaced_and_known(demo):
    model, tok = demo
    rows = [prompt_ids(tok, f"Say only the word {w}.") for w in ("yes","no","cat","dog","sun")]
    got = decode(model, tok, rows, max_new_tokens=40, slots=2)
    for r,c in zip(rows, got):
        text = generate(model, tok, [r], 40)[0]
        assert c.text == text and c.ended == (len(tok(text, add_special_tokens=False)["input_ids"]) < 40)


def test_points(demo, demo_data):
    model, tok = demo
    r = demo_data["harmful_eval"][3]; q, h = prompt_ids(tok, r["prompt"]), text_ids(tok, r["harmful"])
    ks = [0, 1, 7, 30, len(h)]
    got = decode(model, tok, [q+h, q], [(0, len(q)+k) for k in ks]+[(1, len(q))], 12, slots=3)
    assert [c.text for c in got] == [generate(model, tok, [q+h[:k]], 12)[0] for k in ks] + [got[0].text]
    for bad in (0, 999):
        with pytest.raises(ValueError, match=f"cannot be continued after {bad}"): decode(model, tok, [q], [(0, bad)])
    assert decode(model, tok, []) == []


@pytest.mark.parametrize("kind,kw", [("llama",{}), ("qwen3",{}), ("mistral",dict(sliding_window=8)), ("gemma3_text",dict(sliding_window=8)), ("mamba",{})])
def test_any_cache(kind, kw, demo):
    tok, model = demo[1], tiny(kind, **kw)
    rows = [[5,6,7,8,9], [9,8,7], list(range(10,30))]
    assert [c.text for c in decode(model, tok, rows, max_new_tokens=10, slots=2)] == [generate(model, tok, [r], 10)[0] for r in rows]


def test_sampled_text_belongs_to_its_key(demo):
    model, tok = demo
    rows = [prompt_ids(tok, p) for p in ("Tell me a story about a fox.", "Hello!", "What is rain?")]
    a = decode(model, tok, rows, max_new_tokens=10, temperature=.9, top_p=.9, seed=1, keys="abc")
    b = decode(model, tok, rows[::-1], max_new_tokens=10, temperature=.9, top_p=.9, seed=1, keys="cba", slots=1)
    c = decode(model, tok, rows, max_new_tokens=10, temperature=.9, top_p=.9, seed=2, keys="abc")
    assert [x.text for x in a] == [x.text for x in b[::-1]] != [x.text for x in c]


ROWS = [dict(prompt=f"How do I sneak into {w}?", safe="", harmful="") for w in ("a cinema","a club","a pool","a ferry","a zoo","a gym")]


def test_wordings_are_refusals_and_drawn_by_prompt():
    assert all(find_refusal(w).start == 0 for w in WORDINGS)
    ds = complete(ROWS, "safe")
    assert ds["safe"][:] == complete(ROWS[::-1], "safe")["safe"][:][::-1] and len(set(ds["safe"][:])) > 1
    kept = complete([dict(ROWS[0], safe="Sorry, mine.")], "safe"); assert kept[0]["safe"] == "Sorry, mine."


class Fake:
    "A backend that says what it is told to."
    name = "fake"
    def __init__(self, f): self.f, self.asked = f, []
    def ask(self, requests, done):
        for i,r in enumerate(requests): self.asked.append(r); done(i, self.f(r))


def test_gaps_that_stay_are_reported(tmp_path):
    from derta_kit.complete import Answer
    def f(r): return Answer("", error="Timeout") if "zoo" in r.prompt else Answer("Sorry, I can't help with that.") if "gym" in r.prompt else Answer("word "*30)
    failed, b = [], Fake(f)
    with pytest.warns(RuntimeWarning, match="2 of 6 rows still have no harmful response"): ds = complete(ROWS, "harmful", b, tmp_path/"a.sqlite", failed=failed, tries=3)
    assert [bool(x) for x in ds["harmful"]] == [True]*4+[False]*2 and failed == [(4, "Timeout"), (5, "too short")]
    n = len(b.asked); complete(ROWS[:4], "harmful", b, tmp_path/"a.sqlite"); assert len(b.asked) == n           # errors are not kept, answers are
    with pytest.raises(ValueError, match="need a backend"): complete(ROWS, "harmful")
    with pytest.raises(ValueError, match="use harmful, safe or response"): complete(ROWS, "harm", b)
    (tmp_path/"bad.sqlite").write_text("this is no database, it is text that goes on for a while"*20)
    with pytest.raises(OSError, match="cannot be used as a file of answers"): ask(b, [Request("a")], tmp_path/"bad.sqlite")


KILLED = """
import sys, torch; torch.set_num_threads(1)
from derta_kit.complete import Endpoint, Local, complete
from derta_kit.data import write_jsonl
from derta_kit.models import load
rows = [dict(prompt=f"How do I sneak into {w}?", safe="", harmful="") for w in ("a cinema","a club","a pool","a ferry","a zoo","a gym")*(3 if sys.argv[2:] else 1)]
for i,r in enumerate(rows): r["prompt"] += "?"*(i//6)
write_jsonl(complete(rows, "harmful", Endpoint(sys.argv[2], "m", 3) if sys.argv[2:] else Local(*load("demo"), slots=2), sys.argv[1]+".sqlite", max_new_tokens=24, min_words=5), sys.argv[1])
"""


def start(*args): return subprocess.Popen([sys.executable, "-c", KILLED, *map(str, args)], stderr=subprocess.DEVNULL)


def killed_and_gone_on(path, counts, *args):
    "Kill −9 once so many answers are held, start again, …; at last let it end. The file appears only then."
    db = path.with_name(path.name+".sqlite")
    def held():
        try: return len(Answers(db)) if db.exists() else 0
        except OSError: return 0
    for n in counts:
        p = start(path, *args)
        while p.poll() is None and held() < n: time.sleep(.01)
        time.sleep(random.random()*.05)
        p.send_signal(signal.SIGKILL); p.wait()
        assert not path.exists() and held() >= n
    assert start(path, *args).wait(300) == 0
    return path.read_text()


KILLS = int(os.environ.get("DERTA_KILLS", 2))      # more for a long run


def test_a_killed_run_goes_on_to_the_same_file(tmp_path):
    assert start(tmp_path/"whole.jsonl").wait(300) == 0
    counts = sorted(random.choices(range(1, 5), k=KILLS))
    assert killed_and_gone_on(tmp_path/"killed.jsonl", counts) == (tmp_path/"whole.jsonl").read_text()


class Wayward(Replies):
    "Refuses, or says too little, for some prompts and seeds; the same request gets the same answer, in its own time."
    def heard(self, body):
        key = json.dumps([body["messages"], body["seed"]]); rng = random.Random(key)
        time.sleep(random.random()*.1)
        self.say(rng.choice(["I'm sorry, but I cannot help with that at all.", "No.", "one two three four five six "+str(rng.random()), "and so it goes on for a while "+str(rng.random())]))


@pytest.fixture
def wayward(serve): return serve(Wayward)


def test_a_killed_run_against_a_server_goes_on_to_the_same_file(wayward, tmp_path):
    assert start(tmp_path/"whole.jsonl", wayward).wait(300) == 0
    counts = sorted(random.choices(range(1, 18), k=KILLS))
    assert killed_and_gone_on(tmp_path/"killed.jsonl", counts, wayward) == (tmp_path/"whole.jsonl").read_text()
    assert len(read_triples(tmp_path/"whole.jsonl")) == 18


def test_a_request_that_failed_is_asked_again_as_it_was(tmp_path):
    "A run during which the server was away ends, once it is back, in the file of a run during which it was not."
    from derta_kit.complete import Answer
    def f(r): return Answer(f"{r.begin} {r.seed} "+"word "*30) if r.seed else Answer("I'm sorry, I cannot help with that.")
    whole = complete(ROWS, "harmful", Fake(f), tmp_path/"a.sqlite")
    def away(r): return Answer("", error="APIConnectionError") if "zoo" in r.prompt or "gym" in r.prompt and r.seed else f(r)
    b = Fake(away)
    with pytest.warns(RuntimeWarning, match="2 of 6 rows.*2 × APIConnectionError"): half = complete(ROWS, "harmful", b, tmp_path/"b.sqlite")
    assert sum("zoo" in r.prompt for r in b.asked) == 1 and sum(map(bool, half["harmful"])) == 4
    assert complete(ROWS, "harmful", Fake(f), tmp_path/"b.sqlite")[:] == whole[:]


def test_progress_says_rows_rate_and_time_left(tmp_path, capsys):
    from derta_kit.complete import Answer
    def f(r): time.sleep(.12); return Answer("word "*30)
    complete(ROWS, "harmful", Fake(f), tmp_path/"a.sqlite"); err = capsys.readouterr().err
    assert re.search(r"harmful responses: +\d+%.*\d/6 \[\d\d:\d\d<\d\d:\d\d, .*(row/s|s/row), \d+ words/s", err), err
    complete(ROWS+[dict(ROWS[0], prompt="And now?")], "harmful", Fake(f), tmp_path/"a.sqlite"); assert "6/7" in capsys.readouterr().err      # those of before count as done


class Flaky(Replies):
    "Busy, broken, stalled or garbled for the first tries of each prompt, then right."
    seen, lock, flying, most = {}, threading.Lock(), 0, 0
    def heard(self, body):
        q = body["messages"][-1]["content"] if body["messages"][-1]["role"]=="user" else body["messages"][-2]["content"]
        with Flaky.lock: n = Flaky.seen[q] = Flaky.seen.get(q, 0)+1; Flaky.flying += 1; Flaky.most = max(Flaky.most, Flaky.flying)
        try:
            time.sleep(.05)
            if "busy" in q and n < 3: return self.reply(429, dict(error=dict(message="slow down")), {"Retry-After": "0.05"})
            if "broken" in q and n < 3: return self.reply(500, dict(error="x"))
            if "stall" in q and n < 2: time.sleep(1.5); return
            if "never" in q: return self.reply(400, dict(error=dict(message="no such thing")))
            if "garbled" in q: return self.reply(200, "<html>")
            if "empty" in q: return self.reply(200, dict(id="1", object="chat.completion", created=0, model="m", choices=[]))
            self.say(f" answer to {q}", "length" if "long" in q else "stop")
        finally:
            with Flaky.lock: Flaky.flying -= 1


@pytest.fixture
def flaky(serve):
    Flaky.seen, Flaky.most = {}, 0
    return serve(Flaky)


def test_endpoint_retries_and_names_what_fails(flaky, tmp_path):
    e = Endpoint(flaky, "m", concurrency=4, retries=3, timeout=1.)
    qs = ["plain", "busy", "broken", "stall", "never", "garbled", "empty", "long", *map(str, range(8))]
    out = dict(zip(qs, ask(e, [Request(q) for q in qs], tmp_path/"a.sqlite")))
    assert all(out[q].text == f" answer to {q}" and not out[q].error for q in qs if q not in ("never","garbled","empty"))
    assert "BadRequest" in out["never"].error and out["garbled"].error and "no text" in out["empty"].error and not out["long"].ended
    assert 2 <= Flaky.most <= 4 and Flaky.seen["busy"] == 3
    seen = dict(Flaky.seen); ask(e, [Request("plain"), Request("7")], tmp_path/"a.sqlite"); assert Flaky.seen == seen
    assert ask(Endpoint(flaky, "m", retries=0), [Request("x", begin="Sure,")])[0].text == "Sure, answer to x"


def test_endpoint_that_is_not_there(tmp_path):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    with pytest.raises(OSError, match="no server answers there"): complete(ROWS, "harmful", Endpoint(f"http://127.0.0.1:{port}/v1", "m", concurrency=2, retries=0), tmp_path/"a.sqlite")
    with pytest.raises(ValueError, match="give the whole address"): Endpoint("127.0.0.1:8000", "m")
    assert Endpoint("http://x/v1", "m", extra=dict(top_k=5)).name != Endpoint("http://x/v1", "m").name           # another question, another file entry
    assert "Connection" in ask(Endpoint(f"http://127.0.0.1:{port}/v1", "m", retries=0), [Request("x")])[0].error


def test_the_command_says_with_its_exit_code_that_requests_failed(flaky, tmp_path):
    (tmp_path/"q.csv").write_text("question\nplain thing\nnever\n")
    ask_for = lambda *kw: said(derta_data, "complete", tmp_path/"q.csv", "--field", "response", "--url", flaky, "--model", "m", "--out", tmp_path/"r.jsonl", *kw)
    r = ask_for(); assert r.returncode == 2 and "1 of 2 rows got no answer, the first is row 2: " in r.stderr and "no such thing" in r.stderr and "1 of 2 rows has one now" in r.stdout
    assert len((tmp_path/"r.jsonl").read_text().splitlines()) == 2          # what was answered is written all the same


class Locked(Replies):
    "Wants a key, and remembers what it was shown."
    shown = []
    def heard(self, body):
        Locked.shown.append(key := self.headers["Authorization"])
        self.say("in") if key=="Bearer sk-mine" else self.reply(401, dict(error=dict(message="who are you?")))


def test_a_key_is_shown_to_no_other_server_than_its_own(serve, monkeypatch):
    url, Locked.shown = serve(Locked), []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine"); monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    a, = ask(Endpoint(url, "m", retries=0), [Request("x")])
    assert Locked.shown == ["Bearer none"] and "who are you?" in a.error and "OPENAI_BASE_URL" in a.error and "sk-mine" not in a.error
    assert ask(Endpoint(url, "m", retries=0, api_key="sk-mine"), [Request("x")])[0].text == "in"
    assert Endpoint("https://api.openai.com/v1", "m").settings["api_key"] == "sk-mine"
    assert Endpoint("https://api.openai.com.evil.example/v1", "m").settings["api_key"] == Endpoint("http://api.openai.com/v1", "m").settings["api_key"] == "none"
    monkeypatch.setenv("OPENAI_BASE_URL", url); assert ask(Endpoint(url, "m", retries=0), [Request("x")])[0].text == "in"


def test_transformers_serve(demo, tmp_path):
    "A real server, with the real model: the same greedy text as the local backend."
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    from derta_kit.models import demo_path
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    log = open(tmp_path/"serve.log", "w")
    p = subprocess.Popen([os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", str(demo_path()), "--port", str(port), "--device", "cpu", "--dtype", "float32"], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read(); break
            except OSError: time.sleep(.5); assert p.poll() is None, (tmp_path/"serve.log").read_text()[-2000:]
        url, reqs = f"http://127.0.0.1:{port}/v1", [Request("What is rain?", max_new_tokens=12), Request("Name a color.", max_new_tokens=12)]
        want = [a.text for a in ask(Local(*demo), reqs)]
        assert [a.text for a in ask(Endpoint(url, str(demo_path()), concurrency=2), reqs)] == want
        begun = [Request("What is rain?", begin="Rain is", max_new_tokens=12)]
        assert ask(Endpoint(url, str(demo_path()), tokenizer=demo[1]), begun)[0].text == ask(Local(*demo), begun)[0].text
    finally: p.terminate(); p.wait(20)


def test_empty_cells_of_a_spreadsheet_are_filled(tmp_path):
    "As a person keeps them: full cells stay as they are."
    from conftest import said
    from derta_kit.cli_data import derta_data
    f, out = tmp_path/"mine.csv", tmp_path/"out.jsonl"
    f.write_text("Frage,gut,schlecht\nHow do I whistle?,Sorry no.,First you purse your lips\nWhy do birds sing?,,Because of the spring\n"); names = ("--columns", "prompt=Frage,safe=gut,harmful=schlecht")
    r = said(derta_data, "complete", f, "--out", out, "--field", "safe", "--wordings", *names); assert r.returncode == 0, r.stderr
    got = [json.loads(l)["safe"] for l in out.read_text().splitlines()]; assert got[0] == "Sorry no." and len(got[1]) > 5
    r = said(derta_data, "convert", f, "--out", tmp_path/"x.jsonl", *names); assert r.returncode == 2 and "line 3, field 'gut': empty" in r.stderr        # elsewhere a mistake
