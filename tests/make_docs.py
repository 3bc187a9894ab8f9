"""The notebooks as web pages: `make docs` renders them into _docs with Quarto, `make docs-check` goes as far as one can without it, into _proc.

What `nbdev_docs` does, but for two things: it leaves README.md alone, which make_readme.py writes; and of a notebook it executes the exported cells and
no others, where nbdev also executes every cell that holds an import beside other code, without the cells before it."""
import shutil, subprocess, sys
from pathlib import Path
import nbformat, yaml

ROOT = Path(__file__).parent.parent


def sidebar(items=None):
    "The files that the sidebar names, in its order."
    items = yaml.safe_load((ROOT/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"] if items is None else items
    return [f for i in items for f in ([i] if isinstance(i, str) else sidebar(i["contents"]) if "contents" in i else [i["href"]])]


def process():
    "Hand the notebooks over, and look at what was handed over; returns the folder."
    from nbdev import processors
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs
    nbdevs = processors._do_eval
    processors._do_eval = lambda cell: bool(cell.directives_.keys() & {"export","exports","exporti","exec_doc"} or getattr(cell, "has_sd", False)) and nbdevs(cell)
    _build_modidx()
    cache = Path(proc_nbs(n_workers=0))                    # in this process, where nbdev is as said above
    for f in sidebar():
        page = (cache/f).read_text(encoding="utf-8")
        text = "".join(c.source for c in nbformat.reads(page, as_version=4).cells)
        assert "environ({" not in page, f"{f}: a default of os.environ would be published, with all that it holds"
        assert str(Path.home()) not in page and str(ROOT) not in page, f"{f}: a path of this machine would be published"
        assert text and "#| export\n" not in text and "#| hide\n" not in text, f"{f} was not processed"
    if missing := [f for f in ("_quarto.yml", "nbdev.yml", "sidebar.yml", "styles.css") if not (cache/f).exists()]: sys.exit(f"not handed over: {', '.join(missing)}")
    return cache


if __name__ == "__main__":
    quarto = shutil.which("quarto")
    if sys.argv[1:] == ["render"] and not quarto: sys.exit("make docs needs Quarto: https://quarto.org/docs/get-started/ (make docs-check goes as far as one can without it)")
    cache = process()
    print(f"{len(sidebar())} notebooks processed into {cache.name}")
    if sys.argv[1:] == ["render"]:
        subprocess.run([quarto, "render", "--no-cache"], cwd=cache, check=True)
        shutil.rmtree(ROOT/"_docs", ignore_errors=True); shutil.move(cache/"_docs", ROOT)
        print("rendered: _docs/index.html")
