"Keep, of the widget state in notebooks, what their outputs show, with the strip's present script; drop warnings on stderr. Run after executing a notebook with an explorer."
import json, re, sys
from pathlib import Path

STATIC = Path(__file__).parent.parent/"derta_kit"/"static"


def tidy(nb):
    "The notebook's dict, changed in place."
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    for c in nb["cells"]:
        if "outputs" in c: c["outputs"] = [o for o in c["outputs"] if o.get("name") != "stderr"]
    saved = nb["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json")
    if not saved: return nb
    todo, keep = [o["data"]["application/vnd.jupyter.widget-view+json"]["model_id"] for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})], set()
    while todo:
        if (i := todo.pop()) in keep or i not in saved["state"]: continue
        keep.add(i); todo += re.findall(r"IPY_MODEL_(\w+)", json.dumps(saved["state"][i]))
    saved["state"] = {i: s for i,s in saved["state"].items() if i in keep}
    for s in saved["state"].values():
        if "_esm" in s["state"]: s["state"].update(_esm=(STATIC/"explorer.js").read_text(encoding="utf-8"), _css=(STATIC/"explorer.css").read_text(encoding="utf-8"))
    if not keep: nb["metadata"].pop("widgets")
    return nb


if __name__ == "__main__":
    for f in sys.argv[1:]: Path(f).write_text(json.dumps(tidy(json.loads(Path(f).read_text(encoding="utf-8"))), ensure_ascii=False, indent=1, sort_keys=True)+"\n", encoding="utf-8")
