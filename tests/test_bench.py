"""The benchmarks that CI does not run are tried on something tiny, so that they start where a GPU is at hand."""
import json, os, subprocess, sys
from pathlib import Path
import pytest

HERE = Path(__file__).parent


def test_the_gpu_bench_in_a_tiny_shape(tmp_path):
    pytest.importorskip("trl"); pytest.importorskip("bitsandbytes")
    p = subprocess.run([sys.executable, HERE/"bench_gpu.py", tmp_path/"out.json", "--tiny"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    assert p.returncode == 0, p.stderr[-2000:]
    got = json.loads((tmp_path/"out.json").read_text())["runs"][0]["rows"]["64"]
    assert {"released", "padded, sdpa", "packed, sdpa", "packed, as PEFT prepares", "TRL, packing"} <= set(got) and all(r["triples_a_second"] > 0 for r in got.values())
    assert all("mfu" in r for r in got.values()) and got["packed, sdpa"]["tokens"] <= got["padded, sdpa"]["tokens"] < got["released"]["tokens"]
