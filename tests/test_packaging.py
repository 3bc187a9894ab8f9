"What a person gets who installs the kit: sdist and wheel built from a copy, their files, and the wheel at work outside the repository."
import ast, configparser, json, os, re, shutil, subprocess, sys, tarfile, zipfile
from importlib import metadata
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as plain
from packaging.version import Version
from conftest import ROOT

EXTRAS = ["cluster","dev","dpo","endpoint","eval"]
TRIED = {"lm-eval": "0.4.13", "deepspeed": "0.19.8"}       # beside what constraints.txt pins, which is what CI runs with


def settings():
    cfg = configparser.ConfigParser(delimiters=["="]); cfg.read(ROOT/"settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def asked(*extras):
    "The requirements in settings.ini: those of the kit, or of extras."
    return [Requirement(r) for e in extras or ("",) for r in settings()[f"{e}_requirements" if e else "requirements"].split()]


def pins(): return {plain(k): v for k,v in (l.split("==") for l in (ROOT/"constraints.txt").read_text().split())}


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
    cfg = settings()
    assert (meta["Name"], meta["Version"], meta["Requires-Python"]) == (cfg["lib_name"], cfg["version"], f">={cfg['min_python']}")
    assert sorted(meta.get_all("Provides-Extra")) == EXTRAS == sorted(k.removesuffix("_requirements") for k in cfg if k.endswith("_requirements"))
    assert [c.split()[-1] for c in meta.get_all("Classifier") if ":: Python ::" in c] == ["3.11", "3.12", "3.13"]          # as far as tried
    assert any(r.startswith("deepspeed") and "linux" in r and "cluster" in r for r in meta.get_all("Requires-Dist"))
    for line in cfg["console_scripts"].split(): assert line.replace("=", " = ") in points


def test_extras_named_in_messages_exist():
    told = {m for f in (ROOT/"derta_kit").glob("*.py") for m in re.findall(r"pip install '\.\[(\w+)\]'", f.read_text(encoding="utf-8"))}
    assert told and told <= set(EXTRAS)


def test_what_is_imported_is_asked_for():
    "Not left to come with something else. An import inside a function may be of an extra."
    named, dists = lambda *e: {plain(r.name) for r in asked(*e)}, metadata.packages_distributions()
    for f in (ROOT/"derta_kit").glob("*.py"):
        for n in ast.walk(ast.parse(f.read_text(encoding="utf-8"))):
            there = [n.module] if isinstance(n, ast.ImportFrom) and not n.level else [a.name for a in n.names] if isinstance(n, ast.Import) else []
            for m in {x.partition(".")[0] for x in there} - sys.stdlib_module_names - {"derta_kit"}:
                ok = named() | (named("cluster","dpo","endpoint","eval") if n.col_offset else set())
                assert {plain(d) for d in dists.get(m, [m])} & ok, f"{f.name} imports {m}, which settings.ini does not ask for"


def test_lower_bounds_were_tried():
    "Each is a version that tests ran with: the pinned one, as CI installs it, or one named in TRIED."
    have = {**pins(), **TRIED}
    for r in asked() + asked(*EXTRAS):
        low = [s.version for s in r.specifier if s.operator in (">=","==")]
        assert len(low) == 1 and Version(low[0]) == Version(have[plain(r.name)]), f"{r}: tried is {have.get(plain(r.name))}"


def test_constraints_pin_all_that_is_installed():
    "SECURITY.md says so. What torch's CUDA build brings is its own."
    pinned, todo, seen = pins(), [(r, "") for r in asked("dev","dpo","endpoint") + asked()], set()
    while todo:
        r, extra = todo.pop(); name = plain(r.name)
        if (name, *r.extras) in seen or r.marker and not r.marker.evaluate(dict(extra=extra)) or name.startswith(("nvidia-","cuda-","triton")): continue
        seen.add((name, *r.extras))
        try: d = metadata.distribution(name)
        except metadata.PackageNotFoundError: pytest.skip(f"{name} is not installed")
        assert name in pinned, f"{name} comes with an installation, and constraints.txt does not pin it"
        todo += [(Requirement(x), e) for x in d.requires or [] for e in ["", *r.extras]]


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    "`installed(program, *args, cwd)` runs one in an environment of its own: the wheel is installed there, its dependencies are those that are here, and the repository cannot be imported."
    env = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    r = subprocess.run([sys.executable, "-m", "pip", "--python", str(env/"bin"/"python"), "install", "-q", "--no-deps", "--no-index", str(dist["wheel"])], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-800:]
    site = next(env.glob("lib/python*/site-packages"))
    (site/"here.pth").write_text("\n".join(p for p in sys.path if p.endswith(("site-packages","dist-packages"))))    # *.pth files there, an editable install's too, are not read
    clean = {k: v for k,v in os.environ.items() if k not in ("PYTHONPATH","VIRTUAL_ENV")} | dict(OMP_NUM_THREADS="1")
    def run(program, *args, cwd): return subprocess.run([str(env/"bin"/program), *args], cwd=cwd, env=clean, capture_output=True, text=True)
    run.site = site
    return run


def test_the_wheel_works_from_another_folder(installed, tmp_path):
    "Modules, data, widget and commands come from the wheel."
    code = ("import derta_kit, sys; from pathlib import Path; at = Path(derta_kit.__file__).parent; print(at, *sys.path, sep='\\n')\n"
            "import importlib, pkgutil\n"
            "for m in pkgutil.iter_modules([str(at)]): assert importlib.import_module('derta_kit.'+m.name).__file__.startswith(str(at))\n"
            "from derta_kit.data import demo_data; from derta_kit.strip import TokenStrip; import json\n"
            "print(json.dumps([{k: len(v) for k,v in demo_data().items()}, len(str(TokenStrip._esm)), len(str(TokenStrip._css))]))")
    r = installed("python", "-c", code, cwd=tmp_path); assert r.returncode == 0, r.stderr[-1500:]
    at, *path, said = r.stdout.strip().splitlines()
    assert Path(at) == installed.site/"derta_kit" and str(ROOT) not in path
    data, js, css = json.loads(said)
    assert set(data) == {"triples","helpful","harmful_eval","benign_eval"} and all(data.values()) and js > 1000 and css > 100
    for line in settings()["console_scripts"].split(): assert (installed.site.parents[2]/"bin"/line.partition("=")[0]).exists()


def test_the_demo_runs_from_the_wheel(installed, tmp_path):
    "The main job from an empty folder, as far as `--quick` goes. A minute on one core, once."
    r = installed("derta_demo", "--quick", cwd=tmp_path)
    assert r.returncode == 0 and "The report: runs/demo/report.html" in r.stdout, r.stderr[-1500:]
    assert [f.name for f in tmp_path.iterdir()] == ["runs"] and "data:image/png;base64," in (tmp_path/"runs/demo/report.html").read_text(encoding="utf-8")
    assert set(json.loads((tmp_path/"runs/demo/report.json").read_text(encoding="utf-8"))["scores"]) == {"base","vanilla","derta"}


@pytest.mark.parametrize("python", ["false", ""])
def test_make_stops_where_python_is_too_old(python, tmp_path):
    "`false` is what any Python that is too old says to the question; with none named, none is found in an empty PATH."
    if not (make := shutil.which("make")): pytest.skip("make is not installed")
    for f in ("Makefile","settings.ini"): shutil.copy(ROOT/f, tmp_path)
    for f in ("setup.py","constraints.txt"): (tmp_path/f).touch()
    r = subprocess.run([make, "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode and "derta_kit needs Python 3.11 or newer, and " in r.stderr and "PYTHON=/path/to/python3.11" in r.stderr and not (tmp_path/".venv").exists()
