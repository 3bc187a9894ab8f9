"What each objective trains on, and the paper's recipe in distribution."
import random
from collections import Counter
import pytest, torch
from derta_kit.models import text_ids
from derta_kit.objectives import MLE, OBJECTIVES, RTO, TreeDataset, _keep, objective, paper_tree, sft_tree, triple_tree
from derta_kit.prefix_tree import pack, plain

Q, R, H = [1,2,3], [10,11,2], list(range(20,40))
tree = lambda name, seed=0, **kw: triple_tree(Q, R, H, 9, objective(name, **kw), random.Random(seed))


def test_another_opener_is_said():
    from derta_kit.objectives import other_opener
    assert other_opener(["Sorry, no.", "Sorry", "", "I can't."]) == "" == other_opener([])
    assert other_opener(["Sorry, no.", "I'd rather not.", "I cannot help with that.", "I can't help with this."]).startswith("1 of 4 safe responses begin with 'Sorry', which is taught at every position of r̂; 'I") and other_opener(["I won't", "I", "I no"], "I") == ""


def test_targets_of_each_objective():
    kinds = lambda t: Counter(x.kind for n in t.nodes for x in n.targets)
    assert kinds(tree("vanilla")) == {MLE: 3} and kinds(tree("derta", cuts=2)) == {MLE: 6, RTO: 21}
    assert kinds(tree("rto")) == {MLE: 3, RTO: 21} and kinds(tree("recaug")) == {MLE: 3}
    assert all(tree("rto", s).nodes[2].at == 0 for s in range(9)) and len({tree("derta", s, empty=0.).nodes[2].at for s in range(200)}) == 21
    assert abs(sum(tree("derta", s).nodes[2].at == 0 for s in range(3000))/3000 - (1/3+2/3/21)) < .03


def test_unknown_objective():
    with pytest.raises(ValueError, match="vanilla, recaug, rto, derta"): objective("dpo")


def test_long_text_keeps_r_and_cuts_r_hat():
    t = triple_tree(Q, R, list(range(20,120)), 9, objective("derta", cuts=3, max_length=30), random.Random(0))
    assert t.longest() <= 30 and all(len(n.targets) == 3 for n in t.nodes[2:]) and max(n.at for n in t.nodes[2:]) <= 24
    with pytest.raises(ValueError, match="leaves no room"): triple_tree([1]*30, R, H, 9, objective("derta", max_length=30), random.Random(0))
    with pytest.raises(ValueError, match="leaves no room"): sft_tree([1]*30, R, 30)


def test_one_word_responses(demo):
    _, tok = demo; rows = [dict(prompt="Hm?", safe="No.", harmful="Yes")]
    for name in OBJECTIVES: assert len(TreeDataset(tok, rows, objective=objective(name, cuts=4))[0]) > 0
    t = TreeDataset(tok, rows, objective=objective("derta", recipe="paper"))[0]
    assert len(t.nodes) == 2 and t.nodes[1].targets          # under three words: RTO only


def test_another_first_word_than_is_taught_is_said(demo):
    import warnings
    rows = [dict(prompt="a", harmful="b", safe=s) for s in ("I can't help with that.", "I cannot help with this.", "Sorry, no.")]
    with pytest.warns(UserWarning, match="1 of 3 safe responses begin with 'Sorry'.*'I' is more usual"): TreeDataset(demo[1], rows, objective=objective("derta"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TreeDataset(demo[1], rows, objective=objective("derta", word="I")); TreeDataset(demo[1], rows, objective=objective("recaug")); TreeDataset(demo[1], rows[2:], objective=objective("derta")); TreeDataset(demo[1], [], objective=objective("derta"))


def test_error_names_the_row(demo):
    _, tok = demo
    with pytest.raises(ValueError, match="triples, row 2: the prompt has"): TreeDataset(tok, [dict(prompt="a", safe="b", harmful="c"), dict(prompt="word "*600, safe="b", harmful="c")])[1]


def test_paper_recipe(demo):
    _, tok = demo; row = dict(prompt="How?", safe="Sorry, no.", harmful="one two three four five six"); o = objective("derta", recipe="paper")
    rng, words, seen = random.Random(0), row["harmful"].split(), Counter()
    for i in range(600):
        t = paper_tree(tok, row, i, o, rng); prefix = tok.decode(t.context(2)[len(t.nodes[0].ids):])
        seen[len(prefix.split())] += 1
        assert (i%3 == 0) == (prefix == "") and tok.decode(t.nodes[2].ids) == ("  " if prefix == "" else " ")+row["safe"]
    assert set(seen) == {0,1,2,3,4} and seen[0] == 200 and min(seen.values()) > 70
    rto = t.nodes[1].targets
    assert len(rto) == len(text_ids(tok, " "+row["harmful"]))+1 and {x.weight for n in t.nodes for x in n.targets} == {1.}   # the end token too
    assert tok.decode(t.nodes[0].ids).endswith(r"[INST] How? [\INST]")


def test_keep_is_drawn_from_the_row():
    n, keep = 100, [sum(1 for _ in _keep([(i,9,1.,RTO) for i in range(40)], 100, random.Random(s), .05)) for s in range(2000)]
    assert max(keep) <= 5 and min(keep) == 0 and abs(sum(keep)/2000 - 2.) < .1


def test_drawing_depends_on_seed_epoch_and_row_only(demo, demo_data):
    _, tok = demo; rows = demo_data["triples"].select(range(4)); a, b = (TreeDataset(tok, rows, objective=objective("derta"), seed=5) for _ in range(2))
    assert [a[i] for i in (3,1,0,2)] == [b[i] for i in (3,1,0,2)] and [a[i] for i in range(4)] == [b[i] for i in range(4)]
    b.set_epoch(1); assert [a[i] for i in range(4)] != [b[i] for i in range(4)]


@pytest.mark.parametrize("o", [dict(cuts=3), dict(spread=(1.,3.), crop=.5), dict(recipe="paper"), dict(rto_keep=.2)], ids=["several cuts","beta","paper","kept"])
def test_workers_and_their_order_change_nothing(demo, demo_data, o):
    "Trees from 0, 1 and 3 worker processes, in file order and shuffled: the same tree for the same row."
    _, tok = demo; ds = TreeDataset(tok, demo_data["triples"].select(range(10)), demo_data["helpful"].select(range(3)), objective("derta", **o), seed=3); ds.set_epoch(2)
    want = [ds[i] for i in range(len(ds))]; order = random.Random(0).sample(range(len(ds)), len(ds))
    for workers in (0, 1, 3):
        for idx in (range(len(ds)), order):
            got = [t for b in torch.utils.data.DataLoader(ds, batch_size=2, sampler=list(idx), num_workers=workers, collate_fn=list) for t in b]
            assert got == [want[i] for i in idx], workers
    other = TreeDataset(tok, demo_data["triples"].select(range(10)), (), objective("derta", **o), seed=4)
    assert [other[i] for i in range(10)] != want[:10]


def test_packing_keeps_every_target():
    trees = [tree("derta", s, cuts=2) for s in range(7)]
    rows = pack(trees, 90)
    flat = lambda ts: sorted((tuple(p.nodes[0].ids), tuple(p.nodes[0].targets)) for t in ts for p in plain(t))
    assert flat(rows) == flat(trees) and max(map(len, rows)) <= 90 and sum(map(len, rows)) < sum(map(len, trees))


@pytest.mark.parametrize("safe,says", [(["Sorry, a","I can't help with b.","I can't help with c."], "'I' is more usual"), (["Sorry, a","Sorry b","I c","I d","No","We"], None), (["Reading this"], None), (["Call b","Call c","Call d"], None), (["Sorry, a","I b"], "")])
def test_another_opener_is_named_only_where_it_is_more_usual(safe, says):
    from derta_kit.objectives import other_opener
    said = other_opener(safe); assert (said == "") if says == "" else (says in said if says else said and "more usual" not in said)
