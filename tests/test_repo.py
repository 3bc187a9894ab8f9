"The house: direction of imports, README and sidebar in step, guides of one form, one idea a cell, commands that speak plainly."
import ast, importlib, inspect, json, os, re, shlex, subprocess, sys
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
import pytest
from fastcore.docments import docments
from conftest import ROOT, said

ORDER = [m[1] for f in sorted((ROOT/"nbs").glob("[0-9]*.ipynb")) if (m := re.search(r"#\\?\| default_exp (\w+)", f.read_text(encoding="utf-8")))]      # a notebook's number is its floor in the house


def ours(tree):
    "Modules of the kit that a module's text imports: `from .data import x`, `from derta_kit.data import x`, `from derta_kit import data`, `import derta_kit.data`."
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from (a.name.split(".")[1] for a in n.names if a.name.startswith("derta_kit."))
        elif isinstance(n, ast.ImportFrom):
            m = ("derta_kit."+(n.module or "")).rstrip(".") if n.level else n.module
            if m=="derta_kit": yield from (a.name for a in n.names if a.name!="__version__")
            elif m.startswith("derta_kit."): yield m.split(".")[1]


def test_a_module_imports_only_from_those_above_it():
    seen = 0
    for f in (ROOT/"derta_kit").glob("*.py"):
        if f.stem.startswith("_"): continue
        for m in ours(ast.parse(f.read_text())):
            seen += 1
            assert ORDER.index(m) < ORDER.index(f.stem), f"{f.name} imports {m}"
    assert seen > 200, "imports were not recognised"


def test_what_is_exported_is_used():
    "By a cell beside the one that defines it, a guide, a test or an example."
    texts = ["".join(c["source"]) for f in (ROOT/"nbs").rglob("*.ipynb") for c in json.loads(f.read_text(encoding="utf-8"))["cells"]]
    texts += [f.read_text(encoding="utf-8") for d in ("tests","examples") for f in (ROOT/d).glob("*.py")]
    words = Counter(w for t in texts for w in set(re.findall(r"\w+", t)))
    assert not [f"{m}.{n}" for m in ORDER for n in importlib.import_module(f"derta_kit.{m}").__all__ if words[n] < 2]


def test_every_notebook_names_its_kernel():
    "Without a name JupyterLab asks for one each time the notebook is opened."
    assert not [f.name for f in (ROOT/"nbs").rglob("*.ipynb") if "kernelspec" not in json.loads(f.read_text(encoding="utf-8"))["metadata"]]


def test_modules_are_of_a_size_that_fits_in_one_head():
    for f in (ROOT/"derta_kit").glob("*.py"):
        lines = [l for l in f.read_text(encoding="utf-8").splitlines() if l.strip() and not l.startswith("# %%")]
        if not f.stem.startswith("_"): assert len(lines) <= 250, f"{f.name} is probably two ideas"


def ideas(source):
    "Lines of a cell, without its parameters and fields (a table, as the docs show them) and the inside of long strings (templates, prompts)."
    lines, out = [l for l in source.splitlines() if not l.startswith("#|")], set()
    for n in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(n, ast.FunctionDef): out |= {a.lineno for a in ast.walk(n.args) if isinstance(a, ast.arg)} - {n.lineno}
        if isinstance(n, ast.ClassDef): out |= {x.lineno for x in n.body if isinstance(x, ast.AnnAssign)}
        if isinstance(n, (ast.Constant, ast.JoinedStr)): out |= set(range(n.lineno+1, n.end_lineno+1))
    return len(lines)-len(out)


def test_an_exported_cell_holds_one_idea():
    for f in (ROOT/"nbs").glob("*.ipynb"):
        for i,c in enumerate(json.loads(f.read_text())["cells"]):
            s = "".join(c["source"])
            if c["cell_type"]=="code" and s.startswith("#| export"): assert ideas(s) <= 25, f"{f.name}, cell {i}: {ideas(s)} lines; cut it where the idea changes, and say why before each"


def test_code_that_the_docs_hide_is_folded_in_jupyterlab():
    for f in (ROOT/"nbs").rglob("[!.]*.ipynb"):
        if ".ipynb_checkpoints" in f.parts or "runs" in f.parts: continue
        for i,c in enumerate(json.loads(f.read_text(encoding="utf-8"))["cells"]):
            if "".join(c["source"]).startswith(("#| hide","#| echo: false")): assert c["metadata"].get("jupyter", {}).get("source_hidden"), f"{f.name}, cell {i}: fold it (View, Collapse Selected Code), so that a reader meets prose first"


def public(cls):
    "What a class of the kit adds or changes for its user; methods that a base outside defines are described there."
    outside = [b for b in cls.__mro__[1:] if not b.__module__.startswith("derta_kit.")]
    for k,f in vars(cls).items():
        if k=="__init__" and is_dataclass(cls) or not inspect.isfunction(f) or (k.startswith("_") and k not in ("__init__","__call__")): continue
        if k in ("__init__","__call__") or not any(k in vars(b) for b in outside): yield f"{cls.__name__}.{k}", f


def test_every_public_function_says_what_it_does_and_takes():
    for name in ORDER:
        m = importlib.import_module(f"derta_kit.{name}")
        mine = {k: o for k in m.__all__ if getattr(o := getattr(m, k), "__module__", None)==m.__name__}
        todo = {k: o for k,o in mine.items() if inspect.isfunction(o)} | {k: f for o in mine.values() if inspect.isclass(o) for k,f in public(o)}
        for k,o in mine.items():
            if inspect.isclass(o): assert o.__doc__ and not o.__doc__.startswith(f"{k}("), f"{name}.{k} has no docstring"
            if is_dataclass(o): assert not (dumb := [f.name for f in fields(o) if f.name in vars(o).get("__annotations__", {}) and not f.metadata and not docments(o).get(f.name)]), f"{name}.{k}: what is {', '.join(dumb)}?"
        for k,f in todo.items():
            assert f.__doc__ or k.endswith("__init__"), f"{name}.{k} has no docstring"
            dumb = [p for p in inspect.signature(f).parameters if p != "self" and not docments(f, args_kwargs=True).get(p)]
            assert not dumb, f"{name}.{k}: what is {', '.join(dumb)}? Say so in a comment behind it, on a line of its own"


ORDERS = (("model","tokenizer","prompt","response"), ("tokenizer","triples","helpful","seed"), ("tokenizer","rows"), ("tokenizer","cases"), ("models","prompts","responses"), ("model","tokenizer","prompts","responses"), ("prompt","safe","harmful"), ("questions","path"))
SAID_OTHERWISE = dict(ds="triples, rows or dataset", o="objective", e="evaluation", rec="record", tok="tokenizer", lm="model", fname="path", filename="path", verbose="desc", batchsize="batch_size", bs="batch_size", reveal="show_harmful", output_dir="out")


def test_names_and_their_order_are_the_same_everywhere():
    for name in ORDER:
        m = importlib.import_module(f"derta_kit.{name}")
        for k,o in ((k, getattr(m, k)) for k in m.__all__):
            for n,f in [(k, o)] if inspect.isfunction(o) else public(o) if inspect.isclass(o) and o.__module__==m.__name__ else []:
                ps = [p for p in inspect.signature(f).parameters if p != "self"]; need = [p for p,v in inspect.signature(f).parameters.items() if v.default is v.empty]
                assert not (odd := SAID_OTHERWISE.keys() & {*ps}), f"{name}.{n}: {', '.join(f'{p} is called {SAID_OTHERWISE[p]} elsewhere' for p in odd)}"
                for order in ORDERS:
                    has = [p for p in ps if p in order and (p in need or p in ("helpful","seed"))]
                    assert has == sorted(has, key=order.index), f"{name}.{n}: elsewhere the order is {', '.join(order)}"


def test_readme_is_in_step_with_index(tmp_path):
    from make_readme import render
    text, pictures = render()
    assert (ROOT/"README.md").read_text() == text, "run `make readme`"
    for name,data in pictures.items(): assert (ROOT/name).read_bytes() == data, "run `make readme`"


def test_notebooks_hold_no_errors_and_no_machine_paths():
    for f in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in str(f): continue
        assert f.stat().st_size < 1e6, f"{f.name} holds more than a megabyte: drop widgets or pictures from its outputs"
        for c in json.loads(f.read_text())["cells"]:
            for o in c.get("outputs", []):
                assert o["output_type"] != "error", f"{f.name}: a cell holds an error"
                assert not any(p in json.dumps(o) for p in ("/work/", "/root/", "/home/")), f"{f.name}: an output holds a path of the machine it ran on"


def test_saved_widgets_are_those_shown_and_hold_the_present_script():
    from tidy_widgets import tidy
    for f in (ROOT/"nbs").rglob("*.ipynb"):
        nb = json.loads(f.read_text())
        if "widgets" in nb["metadata"]: assert tidy(json.loads(f.read_text())) == nb, f"run tests/tidy_widgets.py {f.relative_to(ROOT)}"


def test_every_notebook_is_in_the_sidebar_and_in_the_readme():
    from make_docs import sidebar
    there = {str(f.relative_to(ROOT/"nbs")) for f in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(f)}
    named, readme = sidebar(), (ROOT/"README.md").read_text(encoding="utf-8")
    assert sorted(named) == sorted(there)
    assert not [f for f in there-{"index.ipynb"} if f.removesuffix(".ipynb") not in readme]
    guides = [f for f in named if f.startswith("guides/")]
    assert sorted(guides, key=readme.index) == guides, "README and sidebar name the guides in another order"


@pytest.mark.parametrize("f", sorted((ROOT/"nbs"/"guides").glob("*.ipynb")), ids=lambda f: f.stem)
def test_a_guide_says_what_one_has_at_its_end_and_where_to_go_next(f):
    nb = json.loads(f.read_text(encoding="utf-8")); text = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"]=="markdown"]
    assert re.match(r"# .+\n\n> At the end you will have ", text[0]) and "## Where next" in text[-1] and any("The same from a script" in t for t in text)
    taken = re.findall(r"^ *from derta_kit[\w.]* import (.*)", "\n".join("".join(c["source"]) for c in json.loads(f.read_text(encoding="utf-8"))["cells"]), re.M)
    assert not [t for t in taken if re.search(r"(^|,\s*)_", t)], "a guide takes what the library keeps to itself"


def run(*a, **k): return subprocess.run([str(Path(sys.executable).parent/a[0]), *a[1:]], capture_output=True, text=True, **k)


@pytest.mark.parametrize("cmd", ["derta_demo","derta_data","derta_train","derta_probe","derta_eval"])
def test_help(cmd):
    r = run(cmd, "--help"); assert r.returncode == 0 and "usage" in r.stdout and len(r.stdout.splitlines()) > 6


def test_bad_input_is_one_line_and_an_exit_code(tmp_path):
    (tmp_path/"x.jsonl").write_text('{"prompt": "a", "safe": "b", "harmful": ""}')
    r = run("derta_data", "convert", "x.jsonl", "--out", "y.jsonl", cwd=tmp_path)
    assert r.returncode == 2 and "x.jsonl, line 1, field 'harmful': empty; leave the row out, or have it filled in: derta_data complete SOURCE --field harmful" in r.stderr and "Traceback" not in r.stderr and not (tmp_path/"y.jsonl").exists()
    r = run("derta_data", "check", "x.jsonl", cwd=tmp_path)         # says what is missing, all of it
    assert r.returncode == 0 and "1 row has no harmful response; to have it filled in: derta_data complete x.jsonl --field harmful" in r.stdout and "no safe response" not in r.stdout
    r = run("derta_train", "x.jsonl", "--out", "out", cwd=tmp_path)
    assert r.returncode == 2 and "field 'harmful'" in r.stderr and not (tmp_path/"out").exists()


@pytest.mark.parametrize("module,args", [("data", ["check","nowhere.jsonl"]), ("data", ["gate","./no/where","--out","o"]), ("eval", ["run","--out","o","--questions","data/nowhere.csv"]), ("eval", ["page","runs/nowhere"]), ("eval", ["compare",".","runs/nowhere"]), ("train", [".","--out","o","--helpful","nowhere.jsonl"]), ("train", ["nowhere.jsonl","--out","o"]), ("train", ["my.yaml"])])
def test_a_missing_file_is_missed_before_the_libraries_are_loaded(module, args, tmp_path):
    code = f"""
import sys
class Heavy:
    def find_spec(self, name, *rest):
        if name in ("torch","transformers","peft","datasets"): raise SystemExit(f"{{name}} was loaded")
sys.meta_path.insert(0, Heavy())
from derta_kit.cli_{module} import derta_{module}
derta_{module}({args})"""
    r = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.startswith("error: ") and r.stderr.endswith((": no such file or folder\n", ": no such folder\n")), r.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args,says", [(["--help"], "usage: derta_train"), (["--learning-rate","3"], "error: --learning-rate: no such option; did you mean --lr?"), (["--max_steps","3"], "did you mean --set train.max_steps=…?"), (["--word","I"], "did you mean --set targets.word=…?"), (["--lr","fast"], "error: --lr: 'fast' is not a number"),
                                       (["--engine","fsdp3"], "use auto, single, ddp, fsdp2, zero3"), (["--max-length","2"], "--max_length: 2: must be a number of 8 or more"), (["--set","lr"], "write key=value")])
def test_options_of_training_need_no_large_library(args, says, tmp_path):
    (tmp_path/"x.csv").write_text("prompt,safe,harmful\nHow?,Sorry.,So.\n")
    code = f"""
import sys
from derta_kit.cli_train import derta_train
try: derta_train(["x.csv", "--out", "out", *{args}])
finally: print("loaded:", [m for m in ("torch","transformers","peft") if m in sys.modules])"""
    r = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert r.returncode == (0 if "--help" in args else 2) and says in r.stdout+r.stderr and "loaded: []" in r.stdout and not (tmp_path/"out").exists(), r.stdout+r.stderr


def test_helpful_pairs_are_checked_too(tmp_path):
    from derta_kit.cli_data import derta_data
    (tmp_path/"p.csv").write_text("prompt,response\nWhy is the sky blue?,It scatters light.\nHow do I boil an egg?,\n"); (tmp_path/"a.jsonl").write_text(json.dumps(dict(instruction="Why?", output="Because.")))
    r = said(derta_data, "check", tmp_path/"p.csv"); assert r.returncode == 0 and r.stdout.startswith("2 helpful pairs, for --helpful; hash ") and "3 words a response" in r.stdout and "1 pair has no response; to have it filled in: derta_data complete" in r.stdout
    r = said(derta_data, "check", tmp_path/"a.jsonl"); assert r.returncode == 0 and r.stdout.startswith("1 helpful pair, for --helpful")


def test_gates_name_rows_and_limits_and_training_names_the_gates(tmp_path):
    from derta_kit.cli_data import derta_data
    from derta_kit.cli_train import _notes
    from derta_kit.data import read_triples
    rows = [dict(prompt=f"How do I skip school {i}?", safe="Sorry, I cannot help.", harmful="Say that you are ill today, and stay at home then." if i < 2 else "Stay.") for i in range(7)]
    (tmp_path/"x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    r = said(derta_data, "check", tmp_path/"x.jsonl"); assert r.returncode == 0 and re.search(r"^short +5 +3, 4, 5 … +r̂ has fewer than 10 words, or r than 3", r.stdout, re.M) and "r: the safe response; r̂: the harmful one" in r.stdout
    triples = read_triples(tmp_path/"x.jsonl"); said_of = lambda n: [*_notes(SimpleNamespace(helpful="x", objective="derta", adapter=""), triples.select(range(n)), ())]; assert "5 of 7 triples would not pass the gates" in said_of(7)[0] and not said_of(2)


def test_what_the_readme_says_of_data_of_ones_own(tmp_path, monkeypatch):
    "Its commands, on a file with the columns that it names; the last one as far as its options."
    from derta_kit.cli import _options
    from derta_kit.cli_data import derta_data
    from derta_kit.cli_eval import eval_run
    from derta_kit.cli_train import derta_train
    block = re.search(r"## With data of your own, by commands.*?```text\n(.*?)```", (ROOT/"README.md").read_text(encoding="utf-8"), re.S)[1]
    _, check, train, ask = (shlex.split(l.partition("   #")[0]) for l in block.splitlines())
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("prompt,safe,harmful\n" + "".join(f"How do I skip school {i}?,Sorry no.,Say that you are ill today.\n" for i in range(12))); Path("pairs.csv").write_text("prompt,response\nWhy?,Because.\n")
    r = said(derta_data, *check[1:]); assert r.returncode == 0 and r.stdout.startswith("12 rows")
    r = said(derta_train, *train[1:]); assert r.returncode == 0 and "triples and 1 helpful pair to train on" in r.stdout
    from derta_kit.cli_train import _measure, parse
    assert shlex.split(_measure(parse(train[1:])[0])) == ask[:6]      # what a run says at its end
    assert _options(eval_run, ask[2:], "derta_eval run")["models"] == "base,mine=runs/mine"


def test_tables_with_gaps_are_completed_in_any_order(tmp_path):
    "Both columns have holes; what is there stays, and bad rows may be skipped."
    from derta_kit.cli_data import derta_data
    from derta_kit.data import read_jsonl
    (tmp_path/"x.csv").write_text("q,good,bad\nHow do I skip school?,Sorry.,\nHow do I get in?,,So.\n,,\n")
    done = ("complete", tmp_path/"x.csv", "--columns", "prompt=q,safe=good,harmful=bad", "--field", "safe", "--wordings", "--out", tmp_path/"half.jsonl")
    r = said(derta_data, *done); assert r.returncode == 2 and "line 4, field 'q': empty" in r.stderr
    r = said(derta_data, *done, "--on_error", "skip"); assert r.returncode == 0, r.stderr
    a, b = read_jsonl(tmp_path/"half.jsonl"); assert a["safe"] == "Sorry." and a["missing"] == ["harmful"] and b["safe"].startswith("Sorry") and b["harmful"] == "So."
    (tmp_path/"pairs.csv").write_text("ask,reply\nWhy is the sky blue?,It scatters light.\nHow do I boil an egg?,\n")
    r = said(derta_data, "complete", tmp_path/"pairs.csv", "--columns", "prompt=ask,response=reply", "--field", "response", "--max_new_tokens", 12, "--out", tmp_path/"full.jsonl"); assert r.returncode == 0, r.stderr
    a, b = read_jsonl(tmp_path/"full.jsonl"); assert a["response"] == "It scatters light." and len(b["response"]) > 3
    from derta_kit.cli_data import _answered
    for row in (dict(instruction="Why?", output="harmful", safe_response="Sorry."), dict(prompt="Why?", response="harmful", is_safe=False), dict(prompt="Why?", safe="Sorry.", harmful="harmful")):      # no helpful answers
        (tmp_path/"t.jsonl").write_text("".join(json.dumps({**row, "is_safe": y} if "is_safe" in row else row)+"\n" for y in (False, True)))
        rows = list(_answered(tmp_path/"t.jsonl", "raise", "", "train")); assert rows[0]["prompt"] == "Why?" and not any(r.get("response") for r in rows)
    (tmp_path/"t.jsonl").write_text(json.dumps(dict(instruction="Why?", output="Because."))); assert _answered(tmp_path/"t.jsonl", "raise", "", "train")[0]["response"] == "Because."
    r = said(derta_data, "gate", tmp_path/"half.jsonl", "--out", tmp_path/"g", "--drop", "missing"); assert r.returncode == 0 and "1 triple written" in r.stdout
    r = said(derta_data, "gate", tmp_path/"g"/"triples.jsonl", "--out", tmp_path/"g"); assert r.returncode == 2 and "that is what is read" in r.stderr


def test_a_command_speaks_of_its_options(tmp_path):
    from derta_kit.cli_data import derta_data
    from derta_kit.cli_train import derta_train
    (tmp_path/"x.csv").write_text("ask,good,bad\nHow?,Sorry.,So.\n"); (tmp_path/"file").write_text("")
    r = said(derta_data, "check", tmp_path/"x.csv"); assert r.returncode == 2 and "which with --columns prompt=…,safe=…,harmful=…, safe and harmful left out" in r.stderr and "dict(" not in r.stderr
    r = said(derta_data, "check", tmp_path/"x.csv", "--on_error", "pass"); assert "error: --on_error pass: use 'raise' or 'skip'" in r.stderr
    r = said(derta_train, tmp_path/"x.csv", "--out", tmp_path/"file"/"out", "--columns", "prompt=ask,safe=good,harmful=bad"); assert r.returncode == 2 and "cannot be written" in r.stderr and "another folder with --out …" in r.stderr
    (tmp_path/"h.csv").write_text("ask,yes\nHow?,So.\n"); data = (tmp_path/"x.csv", "--out", tmp_path/"out", "--columns", "prompt=ask,safe=good,harmful=bad", "--helpful", tmp_path/"h.csv")
    r = said(derta_train, *data); assert r.returncode == 2 and "which with --helpful_columns prompt=…,response=…. Known" in r.stderr and "no helpful pairs" not in r.stderr
    r = said(derta_train, *data, "--helpful_columns", "ask"); assert "error: --helpful_columns ask: expected prompt=NAME,response=NAME, found 'ask'" in r.stderr
    for a in (("mix", tmp_path/"h.csv", "--out", tmp_path/"h.csv"), ("convert", tmp_path/"x.csv", "--out", tmp_path/"x.csv")):
        r = said(derta_data, *a); assert r.returncode == 2 and "that is what is read; choose another name" in r.stderr and (tmp_path/"h.csv").read_text().startswith("ask,yes")
    r = said(derta_data, "mix", tmp_path/"h.csv", "--colum", "prompt=ask,response=yes"); assert r.returncode == 2 and "--colum: no such option; did you mean --columns?" in r.stderr
    r = said(derta_data, "mix", tmp_path/"h.csv", "--out", tmp_path/"m.jsonl"); assert r.returncode == 2 and "which with --columns prompt=…,response=…" in r.stderr
    r = said(derta_data, "mix", tmp_path/"h.csv", "--out", tmp_path/"m.jsonl", "--columns", "prompt=ask,response=yes"); assert r.returncode == 0 and '"response": "So."' in (tmp_path/"m.jsonl").read_text()


@pytest.mark.parametrize("module", ["cli","cli_data","cli_train","cli_eval"])
def test_a_command_tells_openmp_to_spin_shortly_before_torch_is_there(module):
    code = f"""
import os, sys
def done(): sys.exit(os.environ.get("GOMP_SPINCOUNT") != "5000")
class Watch:
    def find_spec(self, name, *args): return done() if name=="torch" else None
sys.meta_path.insert(0, Watch())
import derta_kit.{module}
done()"""
    env = {k: v for k,v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_a_finished_training_ends_its_process_group(monkeypatch, tmp_path):
    from derta_kit import cli_train
    ended = []; (tmp_path/"x.jsonl").write_text("")
    monkeypatch.setattr(cli_train, "run_recipe", lambda r: SimpleNamespace(end=lambda: ended.append(r.out)))
    cli_train.derta_train([str(tmp_path/"x.jsonl"), "--out", str(tmp_path)]); assert ended == [str(tmp_path)]
