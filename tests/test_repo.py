"The house: direction of imports, README in step, what a wheel holds, commands that speak plainly."
import ast, json, subprocess, sys, zipfile
from pathlib import Path
import pytest
from conftest import ROOT

ORDER = "refusals models records data mix prefix_tree decode complete gates build objectives export card loss engines train dpo recipes plan reliable probe plots compare strip widgets attacks judges evaluate report demo cli cli_train".split()


def test_a_module_imports_only_from_those_above_it():
    for f in (ROOT/"derta_kit").glob("*.py"):
        if f.stem.startswith("_"): continue
        mine = ORDER.index(f.stem)
        for n in ast.walk(ast.parse(f.read_text())):
            names = [n.module] if isinstance(n, ast.ImportFrom) and n.module else [a.name for a in n.names] if isinstance(n, ast.Import) else []
            for m in names:
                if m.startswith("derta_kit."): assert ORDER.index(m.split(".")[1]) < mine, f"{f.name} imports {m}"


def test_modules_are_of_a_size_that_fits_in_one_head():
    for f in (ROOT/"derta_kit").glob("*.py"):
        if not f.stem.startswith("_"): assert len(f.read_text().splitlines()) <= 300, f"{f.name} is probably two ideas"


def test_readme_is_in_step_with_index(tmp_path):
    from make_readme import render
    text, pictures = render()
    assert (ROOT/"README.md").read_text() == text, "run `make readme`"
    for name,data in pictures.items(): assert (ROOT/name).read_bytes() == data, "run `make readme`"


def test_notebooks_hold_no_errors_and_no_machine_paths():
    for f in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in str(f): continue
        for c in json.loads(f.read_text())["cells"]:
            for o in c.get("outputs", []):
                assert o["output_type"] != "error", f"{f.name}: a cell holds an error"
                assert not any(p in json.dumps(o) for p in ("/work/", "/root/", "/home/")), f"{f.name}: an output holds a path of the machine it ran on"


def test_wheel_holds_the_demo_data(tmp_path):
    r = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-800:] + r.stderr[-800:]
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for f in ("triples.jsonl","helpful.jsonl","harmful_eval.jsonl","benign_eval.jsonl","questions.json","CARD.md"): assert f"derta_kit/demo_data/{f}" in names
    assert not any(n.startswith(("tests","nbs")) for n in names)


def run(*a, **k): return subprocess.run([str(Path(sys.executable).parent/a[0]), *a[1:]], capture_output=True, text=True, **k)


@pytest.mark.parametrize("cmd", ["derta_demo","derta_data","derta_train","derta_probe","derta_eval"])
def test_help(cmd):
    r = run(cmd, "--help"); assert r.returncode == 0 and "usage" in r.stdout and len(r.stdout.splitlines()) > 6


def test_bad_input_is_one_line_and_an_exit_code(tmp_path):
    (tmp_path/"x.jsonl").write_text('{"prompt": "a", "safe": "b", "harmful": ""}')
    r = run("derta_data", "check", "x.jsonl", cwd=tmp_path)
    assert r.returncode == 2 and "x.jsonl, line 1, field 'harmful': empty" in r.stderr and "Traceback" not in r.stderr
    r = run("derta_data", "convert", "x.jsonl", "--out", "y.jsonl", cwd=tmp_path)
    assert r.returncode == 2 and not (tmp_path/"y.jsonl").exists()
    r = run("derta_train", "x.jsonl", "out", cwd=tmp_path)
    assert r.returncode == 2 and "field 'harmful'" in r.stderr and not (tmp_path/"out").exists()
