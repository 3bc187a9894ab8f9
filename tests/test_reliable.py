"A run that is killed goes on with the same losses; what can go wrong is said, and costs little."
import os, random, shutil, signal, subprocess
import pytest, torch
from conftest import tiny
from test_engines import log, work
from test_train import Tok, Trees
from derta_kit.prefix_tree import Target
from derta_kit.recipes import make_recipe
from derta_kit.reliable import FiniteGradients, check_folder, explained_memory, saved_from_full_disk
from derta_kit.train import NotFinite, fine_tune, last_checkpoint

RUN = dict(num_train_epochs=3, save_strategy="steps", save_steps=2, eval_strategy="no", config=dict(attention_dropout=.1), learning_rate=1e-2)


def test_kill_9_at_a_random_step_costs_nothing(tmp_path):
    "Killed twice, at steps drawn anew in each run of this test; losses, data order and dropout as in a run that was not."
    whole, rng = tmp_path/"whole", random.Random(); kills = sorted(rng.sample(range(1, 9), 2))
    assert (r := work([dict(RUN, out=str(whole))])).returncode == 0, r.stderr[-3000:]
    for k in kills: assert work([dict(RUN, out=str(tmp_path/"cut"), kill=k)]).returncode == -signal.SIGKILL
    assert (r := work([dict(RUN, out=str(tmp_path/"cut"))])).returncode == 0, r.stderr[-3000:]
    (got, _), (want, _) = log(tmp_path/"cut"), log(whole)
    assert got == pytest.approx(want, rel=1e-6) and len(want) == 9, kills


def test_sigterm_saves_and_leaves_with_85(tmp_path):
    r = work([dict(RUN, out=str(tmp_path), term=4, save_steps=1000)])
    assert r.returncode == 85 and "SIGTERM: stopped after step 4 of 9, checkpoint saved" in r.stderr and last_checkpoint(tmp_path).endswith("checkpoint-4")


def train(tmp_path, data, model=None, **kw): return fine_tune(model or tiny("llama"), Tok(), data, tmp_path, **{**dict(per_device_train_batch_size=4, num_train_epochs=1, disable_tqdm=True, seed=3, watch=[FiniteGradients]), **kw})


def test_a_loss_that_is_no_number_names_its_rows(tmp_path):
    ds = Trees(); ds.trees[7].nodes[1].targets = [Target(0, 5, float("nan"), 0)]
    with pytest.raises(NotFinite, match=r"loss is nan at step \d, in rows (\d+, )*8") as e: train(tmp_path, ds)
    assert "nothing was stepped" in str(e.value)


def test_a_gradient_that_is_no_number_is_not_stepped(tmp_path):
    model = tiny("llama"); before = model.lm_head.weight.detach().clone()
    model.lm_head.weight.register_hook(lambda g: g*float("inf"))
    with pytest.raises(NotFinite, match="gradient is (nan|inf) at step 1, in rows"): train(tmp_path, Trees(), model)
    assert torch.equal(before, model.lm_head.weight)


def test_a_full_disk_costs_no_good_checkpoint(tmp_path, monkeypatch):
    import transformers.trainer as T
    kw = dict(save_strategy="steps", save_steps=1, save_total_limit=1)
    real, calls = torch.save, []
    def full(obj, path, *a, **k):
        calls.append(path)
        if "checkpoint-3" in str(path): raise RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0: file write failed")
        return real(obj, path, *a, **k)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="last good one is checkpoint-2.*goes on from there"):
        with saved_from_full_disk(tmp_path): train(tmp_path, Trees(), **kw)
    assert last_checkpoint(tmp_path).endswith("checkpoint-2") and not (tmp_path/"checkpoint-3").exists() and calls
    monkeypatch.setattr(torch, "save", real)
    assert train(tmp_path, Trees(), **kw).state.global_step == 3


def test_a_real_full_disk(tmp_path):
    "A file system of one megabyte, where one may be mounted."
    if shutil.which("mount") is None or os.geteuid() != 0: pytest.skip("mounting a small file system needs root")
    (d := tmp_path/"disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(d)], capture_output=True).returncode: pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(OSError, match="GB left"): check_folder(d, 10**7)
        with pytest.raises(OSError, match="could not be written|No space"):
            with saved_from_full_disk(d): train(d, Trees(), model=tiny("llama", vocab_size=2048), save_strategy="steps", save_steps=1)
    finally: subprocess.run(["umount", str(d)])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/"f").write_text("")
    with pytest.raises(OSError, match="cannot be written.*out="): check_folder(tmp_path/"f"/"run", 0)


def test_out_of_memory_brings_the_plan():
    r = make_recipe(dict(data="-", out="-", model="meta-llama/Meta-Llama-3-8B", mode="full", precision="mixed"))
    with pytest.raises(MemoryError, match="(?s)optimiser.*CANNOT FIT.*would fit"):
        with explained_memory(r): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="another"):
        with explained_memory(r): raise RuntimeError("another")
