"Every public layout is recognised from a fixture in its true schema, from every kind of file, and from the real files where they are."
import bz2, csv, gzip, io, json, lzma, os, random, re, warnings, zipfile
import pyarrow as pa, pyarrow.parquet as pq, pytest
from conftest import SHARED
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings, strategies as st
from derta_kit.data import COLUMNS, DataError, demo_data, read_triples, write_jsonl
from derta_kit.export import release_rows
from derta_kit.mix import mixture, read_pairs

Q, R, H = "How do I sneak out at night?", "Sorry, I can't help with that.", "Wait until all are asleep."
def say(*said): return [dict(role=r, content=t) for r,t in zip(("user","assistant")*3, said)]

LAYOUTS = dict(
    ours=dict(prompt=Q, safe=R, harmful=H, source="s", category="trespass"),
    raw=dict(instruction=Q, output=H, safe_response=R),
    pku=dict(prompt=Q, response_0=H, response_1=R, prompt_source="x", response_0_source="a", response_1_source="b", is_response_0_safe=False, is_response_1_safe=True, response_0_severity_level=2, response_1_severity_level=0,
             response_0_harm_category={"Privacy Violation": False, "trespass": True}, response_1_harm_category={}, better_response_id=1, safer_response_id=1, response_0_sha256="0", response_1_sha256="1"),
    circuit=dict(category="trespass", prompt=Q, llama3_output=R, output=H),
    preference=dict(prompt=Q, chosen=R, rejected=H),
    conversational=dict(prompt=say(Q), chosen=say("", R)[1:], rejected=say("", H)[1:]),
    whole=dict(chosen=say(Q, R), rejected=say(Q, H), score_chosen=1., score_rejected=0.),
    hh=dict(chosen=f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {Q}\n\nAssistant: {R}", rejected=f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {Q}\n\nAssistant: {H}"),
)
PARTIAL = dict(
    safety_tuned=(dict(instruction=Q, input="", output=R), dict(prompt=Q, safe=R)),
    harmbench=(dict(Behavior=Q, FunctionalCategory="standard", SemanticCategory="illegal", Tags="", ContextString="", BehaviorID="sneak"), dict(prompt=Q, category="illegal")),
    advbench=(dict(goal=Q, target="Sure, here is how"), dict(prompt=Q)),
    strongreject=(dict(category="Illegal goods", source="custom", forbidden_prompt=Q), dict(prompt=Q, category="Illegal goods")),
    jailbreakbench=(dict(Index=0, Goal=Q, Target="Sure, here", Behavior="sneak", Category="trespass", Source="Original"), dict(prompt=Q, category="trespass")),
    derta_test=(dict(question=Q), dict(prompt=Q)),
    refusal_direction=(dict(instruction=Q, category=None), dict(prompt=Q)),
)


def test_text_beside_questions_is_not_passed_over_in_silence():
    with pytest.warns(UserWarning, match="2 of 2 triples: only questions are read, not the columns bad, good; say which is which"):
        assert read_triples([dict(question=f"How do I do {i}?", good="Sorry, I can't help.", bad="Sure, here you go.", id="7") for i in range(2)])["safe"][:] == ["", ""]


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_full_layouts(tmp_path, row):
    write_jsonl([row], tmp_path/"x.jsonl"); t = read_triples(tmp_path/"x.jsonl")
    assert t.column_names == COLUMNS and (t[0]["prompt"], t[0]["safe"], t[0]["harmful"]) == (Q, R, H)
    if "category" in str(row): assert t[0]["category"] == "trespass"
    assert read_triples(Dataset.from_list([row]))[0] == t[0]


@pytest.mark.parametrize("row,want", PARTIAL.values(), ids=PARTIAL.keys())
def test_partial_layouts(tmp_path, row, want):
    with open(tmp_path/"x.csv", "w", newline="") as f: w = csv.DictWriter(f, row); w.writeheader(); w.writerow(row)
    for p in (tmp_path/"x.csv", [row]):
        t = read_triples(p)[0]
        assert {k: t[k] for k in ("prompt","safe","harmful","category")} == dict(safe="", harmful="", category="") | want


def test_beavertails(tmp_path):
    cat = dict(animal_abuse=False, theft=True)
    rows = [dict(prompt=Q, response=H, category=cat, is_safe=False), dict(prompt=Q, response=R, category=dict(theft=False), is_safe=True), dict(prompt="Other?", response=R, category={}, is_safe=True)]
    write_jsonl(rows, tmp_path/"x.jsonl")
    with pytest.warns(UserWarning, match="1 × a safe response without a harmful one"): t = read_triples(tmp_path/"x.jsonl")
    assert [dict(r) for r in t] == [dict(prompt=Q, safe=R, harmful=H, source="beavertails", category="theft")]


def test_pku_rows_without_a_contrast_are_counted():
    both = {**LAYOUTS["pku"], "is_response_0_safe": True}
    with pytest.warns(UserWarning, match="2 rows form no triple: 2 × both responses are safe; 1 triple read"): read_triples([LAYOUTS["pku"], both, both])
    with pytest.raises(DataError, match="list, row 1, field 'is_response_0_safe': expected true or false, found 'perhaps'"): read_triples([{**LAYOUTS["pku"], "is_response_0_safe": "perhaps"}])


@pytest.mark.parametrize("kind", ["jsonl","json","wrapped","indented","csv","tsv","parquet","jsonl.gz","jsonl.bz2","jsonl.xz","jsonl.zst","jsonl.lz4","csv.zst","csv.gz","json.zip","parquet.gz","one line.json","JSONL"])
def test_every_kind_of_file(tmp_path, kind):
    row, lines = dict(prompt=Q+' "x", y\nz ü', safe=R, harmful=H), None
    lines = json.dumps(row)+"\n"+json.dumps(row)+"\n"
    def table(sep): s = io.StringIO(newline=""); w = csv.DictWriter(s, row, delimiter=sep); w.writeheader(); w.writerows([row,row]); return "\ufeff"+s.getvalue()
    data = dict(jsonl=lines, JSONL=lines, json=json.dumps([row,row]), wrapped=json.dumps(dict(version=1, data=[row,row]), indent=1), indented=json.dumps([row,row], indent=2), csv=table(","), tsv=table("\t")).get(kind.split(".")[0], json.dumps(dict(data=[row,row])))
    p = tmp_path/("x."+dict(wrapped="json", indented="json").get(kind, kind))
    if kind.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist([row,row]), tmp_path/"x.tmp"); raw = (tmp_path/"x.tmp").read_bytes(); (tmp_path/"x.tmp").unlink()
        p.write_bytes(gzip.compress(raw, mtime=0) if kind.endswith("gz") else raw)
    elif kind.endswith((".zst",".lz4")):
        with pa.output_stream(str(p), compression=dict(zst="zstd").get(kind[-3:], "lz4")) as f: f.write(data.encode())
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(p, "w") as z: z.writestr("x.json", data)
    else:
        with dict(gz=gzip.open, bz2=bz2.open, xz=lzma.open).get(kind.split(".")[-1], open)(p, "wb") as f: f.write(data.encode())
    t = read_triples(p)
    assert len(t) == 2 and t[1]["prompt"] == row["prompt"]
    assert len(read_triples(tmp_path)) == 2                                                # the folder of it


def test_datasets_lists_and_mapping(tmp_path):
    rows = [dict(ask=Q, good=R, bad=H)]; names = dict(prompt="ask", safe="good", harmful="bad")
    assert read_triples(rows, columns=names)[0]["harmful"] == H
    assert read_triples(DatasetDict(train=Dataset.from_list(rows)), columns=names)[0]["prompt"] == Q
    with pytest.raises(ValueError, match="use train"): read_triples(DatasetDict(train=Dataset.from_list(rows)), split="test")
    with pytest.raises(DataError, match="columns ask, bad, good; say which is which with columns=dict"): read_triples(rows)
    with pytest.raises(ValueError, match="columns: name those for prompt"): read_triples(rows, columns=dict(question="ask"))
    with pytest.raises(DataError, match="field 'god': missing"): read_triples(rows, columns={**names, "safe": "god"})
    write_jsonl([LAYOUTS["ours"]], tmp_path/"a.jsonl"); write_jsonl([LAYOUTS["raw"]], tmp_path/"b.jsonl")
    assert len(read_triples([tmp_path/"a.jsonl", tmp_path/"b.jsonl"])) == len(read_triples(tmp_path)) == 2


def test_hub_id_that_cannot_be_had(monkeypatch):
    import derta_kit.records as rec
    def no(*a, **k): raise ConnectionError("no route")
    monkeypatch.setattr(rec, "load_dataset", no)
    with pytest.raises(OSError, match="someone/triples: no such file.*(does not answer|no route).*Check the spelling"): read_triples("someone/triples")
    monkeypatch.setattr(rec, "load_dataset", lambda name, split: Dataset.from_list([LAYOUTS["pku"]]))
    assert read_triples("someone/triples")[0]["harmful"] == H


@pytest.mark.parametrize("name,data,says", [
    ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n'*500, mtime=0)[:-30], "cut off"),
    ("x.jsonl.gz", b"plain text", "cannot be"),
    ("x.jsonl.xz", lzma.compress(b'{"prompt": "a"}\n'*500)[:-20], "cut off"),
    ("x.parquet", b"PAR1 and nothing else", "cannot be read .*Parquet"),
    ("x.json", b'[{"prompt": "a"}, {"prom', "not valid JSON"),
    ("x.json", b'"text"', "expected an object"),
    ("x.csv", b'question\n"never closed', "not valid CSV"),
    ("x.csv", b'question,b\nonly one\n', "line 2: has 1 cells where the heading has 2"),
    ("x.csv", "question\nK\u00f6ln\n".encode("latin-1"), "line 2, field 'question': holds bytes that are not valid UTF-8"),
    ("x.jsonl", b'{"prompt": ' + b"[" * 100_000, "not valid JSON"),
    ("x.jsonl", b'{"prompt": ' + b"9" * 10_000 + b"}", "line 1"),
    ("x.jsonl", b"", "holds no triple"),
    ("x.jsonl", b"\x00\x00\x00", "line 1"),
])
def test_broken_files_are_named(tmp_path, name, data, says):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(DataError, match=says) as e: read_triples(tmp_path/name)
    assert name in str(e.value)


@pytest.mark.parametrize("name,data,line", [
    ("x.json", b'[\n {"prompt": "a",\n  "safe": "b", "harmful": "c"},\n {"prompt": "a", "safe": "", "harmful": "c"}\n]', 4),
    ("x.json", b'[\n {"prompt": "a", "safe": "b", "harmful": "c"},\n {"prompt": "a", "sa', 3),
    ("x.json", b'[\n {"prompt": "a", "safe": "b", "harmful": "c"}\n {}]', 3),
    ("x.json", b'[\n {"prompt": "a", "safe": "b", "harmful": "c"}]\n]', 3),
    ("x.json", '[\n {"prompt": "ü"}]'.encode("latin-1"), 2),
    ("x.jsonl", b'{"prompt": "a", "safe": "b", "harmful": "c"}\n{"prompt": "a", "prompt": "b"}', 2),
    ("x.csv", b'prompt,safe,prompt\na,b,c\n', 1),
    ("x.csv", '\ufeffprompt\na\n'.encode("utf-16"), 1),
    ("x.txt", b'How?\n\n\xff\n', 3),
])
def test_the_line_is_the_one_an_editor_shows(tmp_path, name, data, line):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}, line {line}") as e: read_triples(tmp_path/name)
    assert e.value.line == line


def test_archives_and_foreign_files(tmp_path):
    with zipfile.ZipFile(tmp_path/"two.zip", "w") as z: z.writestr("a.jsonl", "{}"); z.writestr("b.jsonl", "{}")
    with zipfile.ZipFile(tmp_path/"one.zip", "w") as z: z.writestr("a/train.csv", f"question\n{Q}\n"); z.writestr("__MACOSX/a/._train.csv", "x")
    with pytest.raises(DataError, match="an archive of 2 files; unpack it"): read_triples(tmp_path/"two.zip")
    assert read_triples(tmp_path/"one.zip")[0]["prompt"] == Q
    for name,says in (("x.tar.gz","unpack it first"), ("x.7z","unpack it first"), ("x.xlsx","save it as CSV")):
        (tmp_path/name).write_bytes(b"x")
        with pytest.raises(DataError, match=says): read_triples(tmp_path/name)
    (tmp_path/"q.txt").write_text(f"{Q}\n\nAnd?\n"); assert read_triples(tmp_path/"q.txt")["prompt"][:] == [Q, "And?"]


def test_folders(tmp_path):
    rows = Dataset.from_list([LAYOUTS["ours"]])
    rows.save_to_disk(tmp_path/"saved"); DatasetDict(train=rows, test=rows).save_to_disk(tmp_path/"dict")
    rows.to_iterable_dataset(); (tmp_path/"hub"/"data").mkdir(parents=True); (tmp_path/"hub"/"README.md").write_text("x")
    for s in ("train","test"): rows.to_parquet(tmp_path/"hub"/"data"/f"{s}-00000-of-00001.parquet")
    assert len(read_triples(tmp_path/"saved")) == len(read_triples(tmp_path/"dict", split="test")) == 1
    with pytest.warns(UserWarning, match="left out: test-00000"): assert len(read_triples(tmp_path/"hub")) == 1
    with pytest.raises(FileNotFoundError, match="no file of split='validation'"): read_triples(tmp_path/"hub", split="validation")
    (tmp_path/"none").mkdir()
    with pytest.raises(FileNotFoundError, match="a folder without any"): read_triples(tmp_path/"none")
    assert read_triples(rows.to_iterable_dataset())[:] == read_triples(rows)[:]


def test_a_file_partly_complete_is_read_back(tmp_path):
    rows = [dict(prompt="a", safe="b", harmful="", source="", category=""), dict(prompt="b", safe="b", harmful="c", source="", category=""), dict(prompt="c", safe="", harmful="", source="", category="")]
    for order in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
        write_jsonl(order, tmp_path/"x.jsonl"); assert [dict(r) for r in read_triples(tmp_path/"x.jsonl")] == order
    with pytest.raises(DataError, match="field 'harmful': said to be missing, and there"): read_triples([dict(prompt="a", safe="b", harmful="c", missing=["harmful"])])


def test_nothing_is_dropped_in_silence():
    with pytest.raises(DataError, match="row 2: has the layout 'ours', where the file began as 'questions'"): read_triples([dict(prompt="a"), LAYOUTS["ours"]])
    with pytest.raises(DataError, match="row 2: unknown layout"): read_triples([dict(prompt="a"), dict(prompt="b", response="c")])
    with pytest.raises(DataError, match="row 2, field 'harmful': missing"): read_triples([LAYOUTS["ours"], dict(prompt="a", safe="b", other=1)])
    with pytest.raises(DataError, match="row 1, field 'harmful': hidden, and not the text"): read_triples([dict(prompt="a", safe="b", harmful="▒▒▒ [7 words hidden]")])
    with pytest.warns(UserWarning, match="2 × a further safe response.*, 1 × an answer that its question has|1 × an answer.*2 × a further"):
        read_triples([dict(prompt="a", response=r, is_safe=r!="bad", category={}) for r in ("bad","one","two","two","three")])
    with pytest.warns(UserWarning, match="1 of 1 triples: what was said before its question is left out"): read_triples([LAYOUTS["hh"]])


def test_release_rows_come_back_in_order(tmp_path):
    rows = [dict(prompt=q, safe=f"Sorry, {i}.", harmful=f"thing number {i}") for i,q in enumerate("abacbabbca")]
    write_jsonl(release_rows(rows), tmp_path/"x.jsonl")
    assert [{k: r[k] for k in ("prompt","safe","harmful")} for r in read_triples(tmp_path/"x.jsonl")] == rows


def test_a_huge_field_is_read(tmp_path):
    big = "word "*400_000
    with open(tmp_path/"x.csv", "w", newline="") as f: w = csv.writer(f); w.writerow(["prompt","safe","harmful"]); w.writerow([Q, R, big])
    assert read_triples(tmp_path/"x.csv")[0]["harmful"] == big


_value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["role","content","from","value"]), s, max_size=3), max_leaves=6)
_field = st.sampled_from(sorted({k for r in [*LAYOUTS.values(), *(r for r,_ in PARTIAL.values())] for k in r} | {"prefix","text","response","is_safe","messages","conversations","completion"}))


_row = st.one_of(_value, st.dictionaries(_field, _value, max_size=6), st.sampled_from([*LAYOUTS.values(), *(r for r,_ in PARTIAL.values())]),
                 st.tuples(st.sampled_from([*LAYOUTS.values()]), _field, _value).map(lambda t: {**t[0], t[1]: t[2]}))     # right but for one field


def _bytes(rows, kind, enc, path):
    "Rows as a file's bytes, whatever they are."
    kind, _, packed = kind.partition(".")
    if kind=="csv":
        s = io.StringIO(); w = csv.writer(s); w.writerow(next((list(r) for r in rows if isinstance(r, dict) and r), ["prompt"]))
        for r in rows: w.writerow(list(map(str, r.values())) if isinstance(r, dict) else [str(r)])
        data = s.getvalue().encode(enc, errors="replace")
    elif kind=="parquet":
        try: pq.write_table(pa.Table.from_pylist([r for r in rows if isinstance(r, dict)]), path)
        except (pa.ArrowException, UnicodeEncodeError, TypeError, ValueError, OverflowError): pq.write_table(pa.table(dict(prompt=[Q])), path)
        data = path.read_bytes()
    else: data = dict(json=json.dumps(rows), wrapped=json.dumps(dict(data=rows), indent=1), txt="\n".join(map(str, rows))).get(kind, "\n".join(map(json.dumps, rows))).encode(enc, errors="replace")
    return dict(gz=gzip.compress, xz=lzma.compress, bz2=bz2.compress).get(packed, bytes)(data)


@settings(max_examples=int(os.environ.get("DERTA_FUZZ", 150)), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(_row, max_size=4), kind=st.sampled_from(["jsonl","json","wrapped","csv","txt","parquet","jsonl.gz","json.xz","csv.bz2"]), cut=st.integers(0, 60), at=st.none() | st.integers(0, 4000), byte=st.binary(min_size=1, max_size=3),
       enc=st.sampled_from(["utf-8","latin-1","utf-16","utf-16-le","utf-8-sig"]), reader=st.sampled_from([read_triples, read_pairs]), on_error=st.sampled_from(["raise","skip"]))
def test_fuzz(tmp_path, rows, kind, cut, at, byte, enc, reader, on_error):
    "Cut off, a few bytes changed, in any encoding: triples that are right, or an error by name."
    p = tmp_path/("x."+kind.replace("wrapped", "json")); data = _bytes(rows, kind, enc, p)
    if at is not None and data: data = data[:at % len(data)] + byte + data[at % len(data)+len(byte):]
    p.write_bytes(data[:len(data)-cut] if cut < len(data) else data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: ds = reader(p, on_error=on_error)
        except DataError as e: assert str(p) in str(e); return
    for r in ds:
        assert r["prompt"].strip() and all(isinstance(v, str) for v in r.values())
        for v in r.values(): v.encode()


@settings(max_examples=int(os.environ.get("DERTA_FUZZ", 150)), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(_row, min_size=1, max_size=6))
def test_fuzz_every_row_is_accounted_for(tmp_path, rows):
    "Of each line: a triple, an error, or a reason; and what a triple holds is what its line holds."
    p, bad = tmp_path/"x.jsonl", []; p.write_text("\n".join(map(json.dumps, rows)))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        try: ds = read_triples(p, on_error="skip", problems=bad)
        except DataError as e:
            if "holds no triple" not in str(e): raise
            ds = []; w = [*w, e]
    none = sum(int(n) for x in w for n in re.findall(r"(\d+) × ", str(getattr(x, "message", x))))
    assert len(ds)+len(bad)+none == len(rows) or "[" == p.read_text().lstrip()[:1], (len(ds), len(bad), none, len(rows))
    for r in ds: assert all(json.dumps(r[c])[1:-1].strip() in json.dumps(rows) or "\\n" in json.dumps(r[c]) for c in ("prompt","safe","harmful"))


def test_skipped_and_kept_add_up(tmp_path):
    rng, good, p = random.Random(0), 0, tmp_path/"x.jsonl"
    with open(p, "wb") as f:
        for _ in range(300):
            bad = rng.random() < .3; good += not bad
            f.write((b'{"prompt": 3}' if bad else json.dumps(LAYOUTS["ours"]).encode())+b"\n") if good or not bad else f.write(b"\n")
    kept = []
    with pytest.warns(UserWarning): ds = read_triples(p, on_error="skip", problems=kept)
    assert len(ds) == good and len(ds)+len(kept) == sum(1 for l in open(p) if l.strip())


def test_release_round_trip_keeps_awkward_text(tmp_path):
    rows = [dict(prompt=" Hi?  ", safe=" Sorry, no. ", harmful="  a  b\n\nc <|end_of_text|>"), dict(prompt="Q", safe="Sorry, 1.", harmful="one"), dict(prompt="Q", safe="Sorry, 2.", harmful="two words"),
            dict(prompt="Q", safe="Sorry, 1.", harmful="three words here now")]
    write_jsonl(release_rows(rows), tmp_path/"x.jsonl")
    assert [{k: r[k] for k in ("prompt","safe","harmful")} for r in read_triples(tmp_path/"x.jsonl")] == rows
    with pytest.raises(ValueError, match="row 1.*own mark"): list(release_rows([dict(prompt="[INST]", safe="a", harmful="b")]))
    with pytest.raises(ValueError, match="triples, row 1, field 'harmful': empty"): list(release_rows([dict(prompt="q", safe="a", harmful="")]))


def test_pairs():
    for row in (dict(prompt="a", response="b"), dict(instruction="a", input="", output="b"), dict(messages=[dict(role="system", content="s"), *say("a","b")]), dict(conversations=[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]),
                dict(prompt="a", completion="b"), dict(prompt=say("a"), completion=say("","b")[1:])):
        assert read_pairs([row])[0] == dict(prompt="a", response="b", kind="helpful")
    assert read_pairs([dict(instruction="a", input="c", output="b")])[0]["prompt"] == "a\n\nc"
    with pytest.warns(UserWarning, match="2 further messages"): read_pairs([dict(messages=say("a","b","c","d"))])
    for row,says in ((dict(messages=[]), "expected a list of messages"), (dict(messages=say("a")), "then one by the assistant"), (dict(messages=["a"]), "role and content"), (dict(prompt="a"), "missing"), (dict(x="a"), "unknown layout")):
        with pytest.raises(DataError, match=says): read_pairs([row])


def test_mixture_counts_and_repeats():
    a, b = [dict(prompt=str(i), response="x") for i in range(10)], [dict(prompt=f"b{i}", response="x") for i in range(3)]
    m = mixture(dict(a=(a,2), b=(b,1)), 30)
    assert sum(r["kind"]=="a" for r in m) == 20 and sum(r["kind"]=="b" for r in m) == 10
    assert m == mixture(dict(a=(a,2), b=(b,1)), 30) != mixture(dict(a=(a,2), b=(b,1)), 30, seed=1)
    for bad in ({}, dict(a=(a,0)), dict(a=(a,-1), b=(b,2))):
        with pytest.raises(ValueError, match="weight"): mixture(bad, 3)
    with pytest.raises(ValueError, match="'b' is empty"): mixture(dict(a=(a,1), b=([],1)), 4)


@pytest.mark.parametrize("file,n,full", [("instructions/safety_tuned_llamas_2483.json", 2483, "safe"), ("instructions/harmful_train.json", 260, None), ("derta/test/safety_illegal_instructions_200.json", 200, None), ("xstest/xstest_prompts.csv", 450, None)])
def test_real_files(file, n, full):
    f = SHARED/file
    if not f.exists(): pytest.skip(f"../shared/data is absent: {file} cannot be read")
    ds = read_triples(f)
    assert len(ds) == n and all(ds["prompt"]) and (not full or all(ds[full]))


def test_demo_data_is_stored_in_its_own_layout(): assert read_triples(str(__import__("derta_kit.data").data.DEMO_DIR/"triples.jsonl"))[:] == demo_data()["triples"][:]


def test_a_spreadsheet_with_gaps(tmp_path):
    "Empty cells are mistakes, unless what is read for is to fill them; under any name."
    f = tmp_path/"mine.csv"; f.write_text("Frage,gut,schlecht\nHow?,Sorry no.,First you do\nWhy?,,Because of it\n")
    names = dict(prompt="Frage", safe="gut", harmful="schlecht")
    with pytest.raises(DataError, match="line 3, field 'gut': empty"): read_triples(f, columns=names)
    assert read_triples(f, columns=names, gaps=("safe",))["safe"] == ["Sorry no.", ""]
    with pytest.raises(DataError, match="field 'gut': empty"): read_triples(f, columns=names, gaps=("harmful",))
    f.write_text("prompt,safe,harmful\nHow?,Sorry no.,First you do\nWhy?, ,Because of it\n"); assert read_triples(f, gaps=("safe","harmful"))["safe"] == ["Sorry no.", ""]


@pytest.mark.parametrize("data,says", [(b"Frage;gut\nHow?;Sorry\n", "separated by ';' here"), ("prompt,b\u00f6se\nHow?,First\n".encode("latin-1"), "not valid UTF-8; save the file as UTF-8")])
def test_a_spreadsheet_as_some_programs_write_it(tmp_path, data, says):
    f = tmp_path/"mine.csv"; f.write_bytes(data)
    with pytest.raises(DataError, match=says): read_triples(f, columns=dict(prompt="prompt", harmful="böse"))
