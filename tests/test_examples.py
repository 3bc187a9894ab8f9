"The examples run as they stand, in a process of their own."
import json, os, subprocess, sys
from conftest import ROOT
from derta_kit.data import write_jsonl


def test_a_run_of_ones_own(tmp_path, demo_data):
    write_jsonl(demo_data["triples"].select(range(6)), tmp_path/"mine.jsonl")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    r = subprocess.run([sys.executable, ROOT/"examples"/"own_run.py", "mine.jsonl", "--out", "out", "--steps", "2"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    assert "from token 2 on" in r.stdout and (tmp_path/"out"/"adapter_model.safetensors").exists()
    assert demo_data["triples"][0]["harmful"] not in r.stdout, "harmful text was printed"
    r = subprocess.run([sys.executable, ROOT/"examples"/"own_run.py", "mine.jsonl", "--out", "out", "--steps", "3"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 2 and "error: out holds a run with another steps; choose another folder" in r.stderr


def test_the_guide_shows_the_script_as_it_is():
    out = [o["text"] for c in json.loads((ROOT/"nbs"/"guides"/"qlora.ipynb").read_text(encoding="utf-8"))["cells"] if "own_run.py" in "".join(c["source"]) for o in c.get("outputs", []) if "text" in o]
    assert (ROOT/"examples"/"own_run.py").read_text(encoding="utf-8").strip() in "".join("".join(t) for t in out)


def test_a_wrong_file_is_named(tmp_path):
    (tmp_path/"mine.jsonl").write_text('{"prompt": "a", "safe": "b", "harmful": ""}\n')
    r = subprocess.run([sys.executable, ROOT/"examples"/"own_run.py", "mine.jsonl", "--out", "out"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.splitlines()[-1].startswith("error: ") and "mine.jsonl, line 1, field 'harmful': empty" in r.stderr and "Traceback" not in r.stderr


def test_too_few_triples_are_said_in_a_sentence(tmp_path, demo_data):
    write_jsonl(demo_data["triples"].select(range(3)), tmp_path/"mine.jsonl")
    r = subprocess.run([sys.executable, ROOT/"examples"/"own_run.py", "mine.jsonl", "--out", "out"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert r.returncode == 2 and "error: 3 triples are too few to keep 4 back and train on the others: at least 5 are needed" in r.stderr and "Traceback" not in r.stderr
