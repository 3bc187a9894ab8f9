"The web pages as far as they come without Quarto: `make docs-check`, on a copy."
import json, os, shutil, subprocess, sys
import pytest
from conftest import ROOT
from make_docs import sidebar


def test_the_notebooks_become_pages(tmp_path):
    "Its own checks hold (nothing of the environment or of this machine in a page, everything processed), and a page shows what its module exports. 40 s on one core, most of it nbdev's."
    pytest.importorskip("nbdev", reason="nbdev is not installed")
    kit = tmp_path/"kit"; (kit/"tests").mkdir(parents=True)
    for d in ("nbs","derta_kit"): shutil.copytree(ROOT/d, kit/d, ignore=shutil.ignore_patterns(".ipynb_checkpoints","__pycache__"))
    for f in ("settings.ini","setup.py","README.md","tests/make_docs.py"): shutil.copy(ROOT/f, kit/f)
    r = subprocess.run([sys.executable, "tests/make_docs.py"], cwd=kit, env={**os.environ, "PYTHONPATH": str(kit), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert r.returncode == 0 and f"{len(sidebar())} notebooks processed into _proc" in r.stdout, r.stdout[-500:] + r.stderr[-1500:]
    page = json.loads((kit/"_proc"/"00_refusals.ipynb").read_text(encoding="utf-8"))
    shown = "".join("".join(o.get("data", {}).get("text/markdown", "")) for c in page["cells"] for o in c.get("outputs", []))
    assert "### find_refusal" in shown and "def find_refusal(" in shown and "blob/main/derta_kit/refusals.py#L" in shown, shown[:500]
    assert (kit/"derta_kit"/"_modidx.py").read_text(encoding="utf-8") == (ROOT/"derta_kit"/"_modidx.py").read_text(encoding="utf-8"), "the index of names is not what the library holds: run nbdev_export"
