"Is the library what the notebooks export, and are the notebooks clean? Changes nothing; prints what is not in step and exits 1."
import subprocess, sys
from pathlib import Path

root = Path(__file__).parent.parent
files = lambda: {p: p.read_bytes() for p in [*root.glob("derta_kit/*.py"), *root.glob("nbs/**/*.ipynb")] if ".ipynb_checkpoints" not in str(p)}
bin = Path(sys.executable).parent
before = files()
for cmd in ("nbdev_export", "nbdev_clean"): subprocess.run([bin/cmd], cwd=root, check=True)
after = files()
bad = sorted(str(p.relative_to(root)) for p in {*before, *after} if before.get(p) != after.get(p))
for p,b in before.items(): p.write_bytes(b)
for p in after.keys() - before.keys(): p.unlink()
if bad: sys.exit("not in step (run nbdev_export and nbdev_clean, and commit both): " + ", ".join(bad))
print(f"in step and clean: {len(before)} files")
