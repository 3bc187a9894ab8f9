"One step is one step, however it is cut up; a run that was killed goes on."
import json, random, shutil
import pytest, torch
from conftest import tiny
from derta_kit.loss import tree_loss
from derta_kit.objectives import objective, sft_tree, triple_tree
from derta_kit.prefix_tree import collate
from derta_kit.train import DertaArguments, DertaTrainer, fine_tune, last_checkpoint


class Tok:
    "What a Trainer needs of a tokenizer."
    pad_token_id, eos_token_id, bos_token_id = 0, 2, 1
    def save_pretrained(self, *a, **k): pass


class Trees(torch.utils.data.Dataset):
    def __init__(self, n=12):
        rng = random.Random(0); toks = lambda a,b: [rng.randrange(3,128) for _ in range(rng.randint(a,b))]
        self.trees = [triple_tree(toks(3,9), toks(2,12), toks(4,20), 9, objective("derta"), rng) if i%2 else sft_tree(toks(3,9), toks(2,25)) for i in range(n)]
    def __len__(self): return len(self.trees)
    def __getitem__(self, i): return self.trees[i]


def args(tmp, **kw): return DertaArguments(output_dir=str(tmp), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", seed=3, lr_scheduler_type="constant", **kw)


@pytest.mark.parametrize("norm", ["token","tree"])
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulation_gives_the_gradient_of_one_batch(tmp_path, norm, micro):
    "Token counts differ between micro-batches; SGD with lr 1 makes the update the gradient."
    ds = Trees(); model = tiny("llama"); before = {n: p.detach().clone() for n,p in model.named_parameters()}
    loss, _ = tree_loss(model, collate(ds.trees), norm); loss.backward()
    want = {n: p.grad.clone() for n,p in model.named_parameters()}; model.zero_grad()
    t = DertaTrainer(model, args(tmp_path, norm=norm, per_device_train_batch_size=micro, gradient_accumulation_steps=12//micro, max_steps=1, optim="sgd", learning_rate=1., max_grad_norm=0.), ds, Tok())
    t.train(); scale = max(g.abs().max() for g in want.values())
    for n,p in model.named_parameters(): assert ((before[n]-p.detach())-want[n]).abs().max() < 1e-5*scale+2e-7, n
    assert abs(t.state.log_history[-1]["train_loss"]/loss.item()-1) < 1e-5


def test_log_tells_the_losses_apart(tmp_path):
    ds = Trees()
    t = DertaTrainer(tiny("llama"), args(tmp_path, per_device_train_batch_size=4, max_steps=3, logging_steps=1, eval_strategy="steps", eval_steps=3), ds, Tok(), eval_dataset=Trees(4))
    t.train(); h = t.state.log_history
    assert {"loss_helpful","loss_mle","loss_rto","p_refusal"} <= set(h[0]) and any("eval_p_refusal" in x for x in h)
    assert 0 < h[0]["p_refusal"] < 1


def losses(t): return [x["loss"] for x in t.state.log_history if "loss" in x]


def test_resume_gives_the_same_losses(tmp_path):
    kw = dict(per_device_train_batch_size=4, num_train_epochs=3, logging_steps=1, seed=3, disable_tqdm=True, learning_rate=1e-2, save_strategy="steps", save_steps=4)
    whole = fine_tune(tiny("llama"), Tok(), Trees(), tmp_path/"a", **kw)
    shutil.copytree(tmp_path/"a"/"checkpoint-4", tmp_path/"b"/"checkpoint-4")
    (tmp_path/"b"/"checkpoint-8").mkdir(); (tmp_path/"b"/"checkpoint-8"/"trainer_state.json").write_text('{"epoch": 2')      # killed while writing
    (tmp_path/"b"/"checkpoint-6").mkdir()
    assert last_checkpoint(tmp_path/"b").endswith("checkpoint-4")
    again = fine_tune(tiny("llama"), Tok(), Trees(), tmp_path/"b", **kw)
    assert losses(again) == pytest.approx(losses(whole), rel=1e-6) and len(losses(whole)) == 9


@pytest.mark.parametrize("cut", [dict(max_steps=3), dict(num_train_epochs=1)])
def test_a_finished_run_takes_no_step_more(tmp_path, cut):
    kw = dict(per_device_train_batch_size=4, logging_steps=1, seed=3, disable_tqdm=True, learning_rate=1e-2, save_strategy="steps", save_steps=3, **cut)
    first = fine_tune(tiny("llama"), Tok(), Trees(), tmp_path, **kw)
    again = fine_tune(tiny("llama"), Tok(), Trees(), tmp_path, **kw)
    assert again.state.global_step == 3 and losses(again) == losses(first)
    for (n,a),b in zip(first.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), n


def test_a_model_that_is_trained_on_is_looked_at_first(tmp_path):
    "What going on does to a model shows only beside what it was; a run that goes on from its checkpoint was looked at before."
    kw = dict(per_device_train_batch_size=4, max_steps=4, logging_steps=1, disable_tqdm=True, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    steps = lambda t: [x["step"] for x in t.state.log_history if "eval_loss" in x]
    m = tiny("llama"); fresh = fine_tune(m, Tok(), Trees(), tmp_path/"a", Trees(4), **kw); assert steps(fresh) == [2, 4] and m.trained_before
    again = fine_tune(m, Tok(), Trees(), tmp_path/"b", Trees(4), **kw); assert steps(again) == [0, 2, 4]
    looks = lambda t, at: next(x["eval_loss"] for x in t.state.log_history if "eval_loss" in x and x["step"]==at)
    assert looks(again, 0) == pytest.approx(looks(fresh, 4), rel=1e-6)
    shutil.rmtree(tmp_path/"b"/"checkpoint-4")
    assert steps(fine_tune(m, Tok(), Trees(), tmp_path/"b", Trees(4), **kw)) == [0, 2, 4]
    assert steps(fine_tune(m, Tok(), Trees(), tmp_path/"c", Trees(4), **{**kw, "eval_strategy": "no"})) == []


def test_frozen_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="frozen"): fine_tune(tiny("llama").requires_grad_(False), Tok(), Trees(), tmp_path)


def test_bad_norm(tmp_path):
    with pytest.raises(ValueError, match="'token' or 'tree'"): args(tmp_path, norm="mean")


def test_no_checkpoint(tmp_path): assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path/"none") is None
