"""Trains a tiny or the demo model under whatever engine the launcher gives, and writes what happened. Used by test_engines.py.

    torchrun --nproc_per_node 2 tests/engine_worker.py '[{"out": …, "engine": "fsdp2", …}, …]'"""
import gc, json, os, signal, sys
from pathlib import Path
import torch
from accelerate import PartialState
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
from conftest import tiny
from test_train import Trees
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from derta_kit.engines import EngineCheck
from derta_kit.models import lora_config
from derta_kit.reliable import LeaveOnSigterm, leave_after
from derta_kit.train import fine_tune


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({**{f"t{i}": i for i in range(127)}, "Sorry": 127}, unk_token="t1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", unk_token="t1")


def model_of(kind, mode, **kw):
    if kind == "demo":
        from derta_kit.models import load
        torch.manual_seed(0)
        if "storage" in kw: kw["storage"] = getattr(torch, kw["storage"])
        return load("demo", mode, lora=dict(r=4), **kw)
    if kw.pop("bias", False): kw["attention_bias"] = True
    if mode != "qlora":
        m = tiny(kind, **kw).train()
        if mode == "head": [p.requires_grad_(False) for p in m.get_output_embeddings().parameters()]
        if mode == "lora":
            from peft import get_peft_model
            torch.manual_seed(0); m = get_peft_model(m, lora_config(m, r=4))
        return m, tokenizer()


def data_of(kind, tok, n):
    if kind != "demo": return Trees(n)
    from derta_kit.data import demo_data
    from derta_kit.objectives import TreeDataset, objective
    rows = [dict(r, harmful=" ".join(r["harmful"].split()[:8]), prompt=" ".join(r["prompt"].split()[:8])) for r in demo_data()["triples"].select(range(n))]
    return TreeDataset(tok, rows, objective=objective("derta"))


class Kill(TrainerCallback):
    "Send this process a signal at the end of a step."
    def __init__(self, step, sig): self.step, self.sig = step, sig
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == self.step: os.kill(os.getpid(), self.sig)


class StopAt(TrainerCallback):
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kw): control.should_training_stop |= state.global_step == self.step


def main(out, engine="auto", kind="llama", mode="full", n=12, stop=None, kill=None, term=None, config={}, **kw):
    torch.use_deterministic_algorithms(True, warn_only=True)
    unset_hf_deepspeed_config()                 # a job before this one may have left it, and then random weights are drawn another way
    m, tok = model_of(kind, mode, **config)
    world = int(os.environ.get("WORLD_SIZE", 1))
    t = fine_tune(m, tok, data_of(kind, tok, n), out, data_of(kind, tok, 5), callbacks=([StopAt(stop)] if stop else []) + ([Kill(kill, signal.SIGKILL)] if kill else []) + ([Kill(term, signal.SIGTERM), LeaveOnSigterm()] if term else []),
                  **{**dict(engine=engine, per_device_train_batch_size=4, per_device_eval_batch_size=2, num_train_epochs=1, logging_steps=1, seed=3, disable_tqdm=True, learning_rate=1e-2, eval_strategy="epoch",
                            lr_scheduler_type="constant"), **kw})
    ran = next(c for c in t.callback_handler.callbacks if isinstance(c, EngineCheck)).ran
    if t.is_world_process_zero(): Path(out, "happened.json").write_text(json.dumps(dict(engine=ran, log=t.state.log_history, world=t.args.world_size)))
    if ran == "zero3": t.model_wrapped.destroy(); t.accelerator.free_memory(); gc.collect()     # its buffers are gigabytes


def work():
    for job in json.loads(sys.argv[1]): main(**job)
    PartialState().destroy_process_group()      # as Trainer.end does


if __name__ == "__main__": leave_after(work)
