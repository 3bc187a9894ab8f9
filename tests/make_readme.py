"README.md from nbs/index.ipynb by nbconvert: hidden cells left out, pictures as files in assets/. `make readme` writes it; a test keeps it in step."
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

QUIET = "pass  # shown without its code"
ROOT = Path(__file__).parent.parent


def render():
    "(text of README.md, {file name: bytes} of its pictures)."
    nb = nbformat.read(ROOT/"nbs/index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*hide", c.source)]
    nb.metadata["language_info"] = dict(name="python")
    alts = [a[1] if (a := re.search(r'#\|\s*fig-alt: "(.*)"', c.source)) else "figure" for c in nb.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    for c in nb.cells:
        c.metadata["quiet"] = "#| echo: false" in c.source
        c.source = "\n".join(l for l in c.source.splitlines() if not l.startswith("#|"))
        c.outputs = [o for o in c.get("outputs", []) if o.get("name") != "stderr"] if c.cell_type=="code" else []
        if c.cell_type != "code": c.pop("outputs")
        for o in c.get("outputs", []):
            if "image/png" in o.get("data", {}): o.data.pop("text/plain", None)
            if "text/plain" in o.get("data", {}): o.data.pop("text/html", None)
            if "text/markdown" in o.get("data", {}): o.data.pop("text/html", None); o.data.pop("text/plain", None)
        if c.metadata["quiet"]: c.source = QUIET
    text, res = MarkdownExporter(config=Config(ExtractOutputPreprocessor=dict(enabled=True))).from_notebook_node(nb)
    text, pictures = text.replace(f"```python\n{QUIET}\n```\n", ""), {}
    for i,(name,data) in enumerate((res.get("outputs") or {}).items()):
        new = f"assets/readme_{i}{Path(name).suffix}"; text = text.replace(name, new); pictures[new] = data
    text = re.sub(r"!\[png\]", lambda _: f"![{alts.pop(0)}]", text)
    text = re.sub(r"\]\((?!https?:)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)          # links among notebooks
    return re.sub(r"\n{3,}", "\n\n", text).strip()+"\n", pictures


if __name__ == "__main__":
    text, pictures = render()
    (ROOT/"assets").mkdir(exist_ok=True)
    for f in (ROOT/"assets").glob("readme_*"): f.unlink()
    for name,data in pictures.items(): (ROOT/name).write_bytes(data)
    (ROOT/"README.md").write_text(text, encoding="utf-8")
