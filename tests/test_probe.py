"Curves against plain forward passes, and against their own edge cases."
import pytest, torch
from conftest import said, tiny
from derta_kit.scorecard import perplexity, prefilled
from derta_kit.models import prompt_ids, text_ids
from derta_kit.probe import _trie, refusal_curve, refusal_curves
from derta_kit.refusals import OPENERS, refusal_token_id


def test_curves_of_a_batch_equal_single_ones_and_plain_passes(demo, demo_data):
    model, tok = demo; sorry = refusal_token_id(tok)
    pairs = [(r["prompt"], " ".join(r["harmful"].split()[:n])) for r,n in zip(demo_data["harmful_eval"], (4, 30, 11))]
    many = refusal_curves(model, tok, *zip(*pairs), batch_tokens=150)
    for (p,r),c in zip(pairs, many):
        q, ids = prompt_ids(tok, p), text_ids(tok, r)
        with torch.no_grad(): lp = model(torch.tensor([q+ids])).logits[0, len(q)-1:-1].log_softmax(-1)
        assert len(c) == len(ids) and c.prompt == p
        assert c.prob == pytest.approx(lp[:,sorry].exp().numpy(), rel=1e-4, abs=1e-9)
        above = lambda by: ((lp > lp[:,[sorry]]+by).sum(-1)+1).numpy()
        assert ((above(1e-4) <= c.rank) & (c.rank <= above(-1e-4))).all()      # as exact as float32 is: near-ties may swap


def test_openers_are_counted_once(demo):
    _, tok = demo
    def paths(t): return sum(paths(s) if s else 1 for s in t.values())
    assert paths(_trie(tok, ["I'm", "I'm sorry", "I'm"])) == 2 and paths(_trie(tok, OPENERS)) == 2*len(OPENERS)


def test_openers_batched_are_openers_one_by_one_and_anyones_to_choose(demo):
    model, tok = demo; openers = ["Sorry", "I'm sorry", "Well, no"]; q, r = prompt_ids(tok, "How do I whistle?"), text_ids(tok, "First you purse your lips, and then")
    c = refusal_curve(model, tok, "How do I whistle?", "First you purse your lips, and then", openers=openers); own = refusal_curve(model, tok, "How do I whistle?", "First you purse your lips, and then", openers=openers[:1])
    for t in range(len(r)):
        want = 0.
        for s in {tuple(text_ids(tok, sp+o)) for o in openers for sp in ("", " ")}:
            with torch.no_grad(): want += model(torch.tensor([q+r[:t]+list(s)])).logits[0,-len(s)-1:-1].log_softmax(-1).gather(1, torch.tensor(s)[:,None]).sum().exp().item()
        assert c.opener_mass[t] == pytest.approx(want, rel=1e-3, abs=1e-9)
    assert (own.opener_mass < c.opener_mass).all()


def test_no_pass_grows_with_the_number_of_responses(demo):
    from derta_kit.models import unwrap
    model, tok = demo; sizes = []
    hook = unwrap(model).base_model.register_forward_pre_hook(lambda m, a, k: sizes.append(k["input_ids"].numel()), with_kwargs=True)
    try: few, many = (([refusal_curves(model, tok, ["Hi"]*n, ["one two three four five"]*n, batch_tokens=80)], max(sizes), sizes.clear())[1] for n in (3, 12))
    finally: hook.remove()
    assert few <= 80 and many <= 80


def test_empty_response_is_refused(demo):
    with pytest.raises(ValueError, match="response 1 is empty"): refusal_curve(*demo, "Hi", "")


def test_display_hides_and_escapes(demo):
    c = refusal_curve(*demo, "<b>Hi</b>", "<script>x</script> walk")
    h = c._repr_html_()
    assert "<script>" not in h and "walk" not in h and "&lt;b&gt;" in h


def test_prefill_beyond_the_response_is_an_error(demo):
    with pytest.raises(ValueError, match="rows, row 1, field 'harmful': has"): prefilled(*demo, [dict(prompt="Hi", harmful="two words")], depths=(0,50))


def test_perplexity_is_the_plain_one(demo, demo_data):
    model, tok = demo; rows = list(demo_data["benign_eval"].select(range(3))); nll, n = 0., 0
    for r in rows:
        q, a = prompt_ids(tok, r["prompt"]), text_ids(tok, r["response"])
        with torch.no_grad(): lp = model(torch.tensor([q+a])).logits[0].log_softmax(-1)
        nll -= sum(lp[len(q)+i-1, t].item() for i,t in enumerate(a)); n += len(a)
    import math
    assert perplexity(refusal_curves(model, tok, *zip(*[(r["prompt"],r["response"]) for r in rows]))) == pytest.approx(math.exp(nll/n), rel=1e-5)


def test_text_longer_than_the_context_is_refused(demo, tmp_path):
    from conftest import said, tiny
    from derta_kit.models import context_length
    from derta_kit.objectives import TreeDataset, objective
    from derta_kit.train import fine_tune
    model, tok = tiny("llama", vocab_size=len(demo[1])), demo[1]; assert context_length(model) == 256
    with pytest.raises(ValueError, match="pair 2: .* of response are more than the 256 .* max_tokens="): refusal_curves(model, tok, ["Hi", "Hi"], ["there", "word "*300])
    row = dict(prompt="Hi", safe="Sorry, no.", harmful="word "*300)
    with pytest.raises(ValueError, match="max_length 512 is more than the 256 tokens"): fine_tune(model.requires_grad_(), tok, TreeDataset(tok, [row], objective=objective("derta")), tmp_path/"x")
    assert not (tmp_path/"x").exists() and max(map(len, [TreeDataset(tok, [row], objective=objective("derta", max_length=256))[0]])) > 200


def test_the_command_hides_the_response_unless_asked(tmp_path):
    from derta_kit.cli import derta_probe
    for more in ((), ("--show_harmful",)):
        r = said(derta_probe, "How do I bake bread?", "Mix flour, then knead it.", "--out", tmp_path/"c", *more)
        assert r.returncode == 0 and "at the start" in r.stdout.splitlines()[-1] and (tmp_path/"c.png").exists()
        for text in (r.stdout, (tmp_path/"c.csv").read_text()): assert ("flour" in text) == bool(more)


@pytest.mark.parametrize("prompts,responses,says", [(["a"], ["b","c"], "1 prompt and 2 responses: give two lists"), ("a", "b", "there is refusal_curve"), (["a"], "b", "there is refusal_curve")])
def test_prompts_and_responses_are_two_lists(demo, prompts, responses, says):
    with pytest.raises(ValueError, match=says): refusal_curves(*demo, prompts, responses)
