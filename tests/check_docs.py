"The web pages as far as one can go without Quarto: every notebook processed as `nbdev_docs` would hand it over, into _proc. `make docs-check`."
import sys
from pathlib import Path
import nbformat, yaml
from nbdev.doclinks import _build_modidx
from nbdev.serve import proc_nbs

ROOT = Path(__file__).parent.parent


def sidebar(items=None):
    "The files that the sidebar names, in its order."
    items = yaml.safe_load((ROOT/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"] if items is None else items
    return [f for i in items for f in ([i] if isinstance(i, str) else sidebar(i["contents"]) if "contents" in i else [i["href"]])]


if __name__ == "__main__":
    _build_modidx()
    cache = Path(proc_nbs(n_workers=1))
    for f in sidebar():
        nb = nbformat.read(cache/f, as_version=4)
        text = "".join(c.source for c in nb.cells)
        assert nb.cells and "#| export\n" not in text and "#| hide\n" not in text, f"{f} was not processed"
    missing = [f for f in ("_quarto.yml", "nbdev.yml", "sidebar.yml", "styles.css") if not (cache/f).exists()]
    if missing: sys.exit(f"not handed over: {', '.join(missing)}")
    print(f"{len(sidebar())} notebooks processed into {cache.relative_to(ROOT)}; Quarto would render them into _docs")
