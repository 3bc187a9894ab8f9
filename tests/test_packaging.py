"What a person gets who installs the kit: sdist and wheel built from a copy, their files, and the wheel at work outside the repository."
import configparser, os, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "{'sdist': …, 'wheel': …}; the wheel is made from the sdist, so that a file which MANIFEST.in forgets is missed here."
    pytest.importorskip("build", reason="build is not installed"); pytest.importorskip("setuptools", reason="without setuptools here, a build would need the network")
    src, out = tmp_path_factory.mktemp("src")/"kit", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, src, ignore=lambda d, names: {n for n in names if n.startswith(".") or n in ("nbs","runs","tests","build","dist","_proc","_docs","__pycache__") or n.endswith(".egg-info")} if Path(d)==ROOT else {n for n in names if n=="__pycache__"})
    r = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(src)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-1500:] + r.stderr[-1500:]
    return dict(sdist=next(out.glob("*.tar.gz")), wheel=next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def names(dist): return set(zipfile.ZipFile(dist["wheel"]).namelist())


def test_wheel_holds_library_data_and_widgets_and_nothing_else(names):
    want = {f"derta_kit/{p.relative_to(ROOT/'derta_kit')}" for p in (ROOT/"derta_kit").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert any(n.endswith(".js") for n in want) and any(n.endswith("triples.jsonl") for n in want)
    assert {n for n in names if ".dist-info/" not in n} == want


def test_sdist_holds_what_a_build_and_a_reader_need(dist):
    have = {n.partition("/")[2] for n in tarfile.open(dist["sdist"]).getnames()}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "constraints.txt", "examples/own_run.py", "scripts/launch.sh"} <= have
    assert not any(n.startswith(("tests", "nbs", ".venv", "runs")) for n in have)


def test_metadata_says_what_settings_say(dist, names):
    from email.parser import Parser
    with zipfile.ZipFile(dist["wheel"]) as z:
        info = next(n.split("/")[0] for n in names if ".dist-info/" in n)
        meta, points = Parser().parsestr(z.read(f"{info}/METADATA").decode()), z.read(f"{info}/entry_points.txt").decode()
    cfg = configparser.ConfigParser(delimiters=["="]); cfg.read(ROOT/"settings.ini"); cfg = cfg["DEFAULT"]
    assert (meta["Name"], meta["Version"], meta["Requires-Python"]) == (cfg["lib_name"], cfg["version"], f">={cfg['min_python']}")
    assert {"dpo","trl","eval","endpoint","cluster","dev"} <= set(meta.get_all("Provides-Extra"))
    assert [c for c in meta.get_all("Classifier") if ":: Python ::" in c] == ["Programming Language :: Python :: 3.11"]          # as far as tried
    assert any(r.startswith("deepspeed") and "linux" in r and "cluster" in r for r in meta.get_all("Requires-Dist"))
    for line in cfg["console_scripts"].split(): assert line.replace("=", " = ") in points


def test_extras_named_in_messages_exist():
    import re
    cfg = configparser.ConfigParser(delimiters=["="]); cfg.read(ROOT/"settings.ini")
    told = {m for f in (ROOT/"derta_kit").glob("*.py") for m in re.findall(r"pip install '\.\[(\w+)\]'", f.read_text(encoding="utf-8"))}
    assert told and {f"{m}_requirements" for m in told} <= set(cfg["DEFAULT"])


def test_the_wheel_works_from_another_folder(dist, tmp_path):
    "Installed without its dependencies beside those that are here; data, widget and commands come from the wheel."
    r = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path/"site"), str(dist["wheel"])], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-800:]
    code = ("import derta_kit, sys; assert derta_kit.__file__.startswith(sys.argv[1]), derta_kit.__file__\n"
            "from derta_kit.data import demo_data; from derta_kit.widgets import Explorer; from derta_kit.cli import derta_demo\n"
            "print({k: len(v) for k,v in demo_data().items()})")
    env = {k: v for k,v in os.environ.items() if k!="PYTHONPATH"} | dict(PYTHONPATH=str(tmp_path/"site"), OMP_NUM_THREADS="1")
    r = subprocess.run([sys.executable, "-c", code, str(tmp_path/"site")], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0 and "'triples'" in r.stdout, r.stderr[-1500:]
