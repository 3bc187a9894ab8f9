"The refusal explorer in a real JupyterLab and a real browser; its saved page, with the network off; its static form, without a kernel."
import json, os, re, shutil, socket, subprocess, sys, time
from types import SimpleNamespace
import numpy as np, pytest
from conftest import ROOT

play = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROME = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(not CHROME, reason="no Chromium on this machine; Debian's package is called chromium")]
ARTIFACTS, PATIENCE = ROOT/"tests"/"artifacts", 180      # seconds that a slow machine may take for anything but running a whole notebook
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync".split()
N = 64      # tokens of the guide's first explorer


@pytest.fixture(scope="module")
def browser():
    with play.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args=FLAGS)
        yield b
        b.close()


def fewer(path):
    "The guide with fewer examples in what no test here looks at; `nbdev_test` runs it whole."
    nb = json.loads(path.read_text()); n = 0
    for c in nb["cells"]:
        new = re.sub(r"range\(0, 60, \d\)", "range(0, 60, 30)", src := "".join(c["source"])); n += new != src; c["source"] = new
    assert n == 2; path.write_text(json.dumps(nb))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on the loopback address, with three copies of the guide: to run, not trusted, trusted; gives (address, folder)."
    d = tmp_path_factory.mktemp("lab"); cfg = d/"cfg"; settings = cfg/"lab"/"user-settings"/"@jupyterlab"
    for name,text in {"notebook-extension/tracker": '{"windowingMode": "none"}', "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'}.items():
        (f := settings/f"{name}.jupyterlab-settings").parent.mkdir(parents=True, exist_ok=True); f.write_text(text)
    for name in ("watch","saved","trusted"): shutil.copy(ROOT/"nbs"/"guides"/"watch.ipynb", d/f"{name}.ipynb")
    fewer(d/"watch.ipynb")
    nb = json.loads((d/"trusted.ipynb").read_text()); nb["cells"][0]["source"] = "# Trusted"; (d/"trusted.ipynb").write_text(json.dumps(nb))     # trust goes by content
    if (ROOT/"runs").exists(): (d/"runs").symlink_to(ROOT/"runs")
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(cfg), "JUPYTER_DATA_DIR": str(d/"data"), "OMP_NUM_THREADS": "1"}
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    with open(d/"lab.log", "w") as log:
        p = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--notebook-dir={d}"], env=env, stdout=log, stderr=log)
        try:
            def up():
                assert p.poll() is None, (d/"lab.log").read_text()[-1500:]
                with socket.socket() as s: return s.connect_ex(("127.0.0.1", port)) == 0
            until(up); yield f"http://127.0.0.1:{port}/lab/tree", d
        finally: p.terminate(); p.wait(30)


def page_of(browser, errors, **kwargs):
    pg = browser.new_page(**{**dict(viewport=dict(width=1200, height=1000)), **kwargs}); pg.set_default_timeout(PATIENCE*1000)
    pg.on("console", lambda m: errors.append(m.text) if m.type=="error" and "favicon" not in m.text else None); pg.on("pageerror", lambda e: errors.append(str(e)))
    return pg


def notebook(browser, lab, name, errors):
    pg = page_of(browser, errors); pg.goto(f"{lab[0]}/{name}.ipynb?reset"); pg.wait_for_selector(".jp-Notebook .jp-Cell")
    return pg


def shot(page, name): ARTIFACTS.mkdir(exist_ok=True); page.screenshot(path=ARTIFACTS/f"{name}.png")


def until(f, seconds=PATIENCE):
    "What `f` gives, once it is true."
    end = time.monotonic()+seconds
    while not (x := f()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(.1)
    return x


def idle(pg, seconds=PATIENCE): until(lambda: pg.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").count() and not pg.locator(".jp-InputPrompt", has_text="[*]").count(), seconds)


def run_all(pg, lab):
    "Ask for all cells until the first has run: while the page still comes up, its menu takes a click and does nothing."
    for _ in range(6):
        pg.click("text=Run >> nth=0"); pg.click("li[data-command='runmenu:run-all']")
        try: return until(lambda: pg.locator(".jp-InputPrompt", has_text=re.compile(r"\[(1|\*)\]:")).count(), 60)
        except AssertionError: shot(pg, "not_run"); pg.keyboard.press("Escape")
    raise AssertionError("the notebook did not run: tests/artifacts/not_run.png\n" + (lab[1]/"lab.log").read_text()[-3000:])


@pytest.fixture(scope="module")
def guide(browser, lab):
    "The guide, run from its first cell to its last, and what Python says of its first explorer."
    from derta_kit.compare import Models, compare
    from derta_kit.data import demo_data
    from derta_kit.demo import demo_adapters
    rows, errors = demo_data()["harmful_eval"], []
    want = compare(Models(demo_adapters(ROOT/"runs"/"demo")), [rows[0]["prompt"]], [rows[0]["harmful"]], max_tokens=N)
    pg = notebook(browser, lab, "watch", errors)
    pg.locator(".jp-NotebookPanel-toolbar .jp-Toolbar-item", has_text="Python 3").first.wait_for(); idle(pg)       # the kernel answers
    run_all(pg, lab); idle(pg, 1200)
    x = pg.locator(".dk").nth(0); x.locator(".dk-token").first.wait_for()
    yield SimpleNamespace(page=pg, errors=errors, want=want, rows=rows, box=pg.locator(".derta-explorer").nth(0), x=x, cells=x.locator(".dk-token"))
    pg.close()


def choose(g, i):
    "Choose example `i` from the list, and wait until it is measured: its prompt comes while the kernel is busy with it."
    g.box.locator("select").first.select_option(index=i+1); until(lambda: g.box.locator("textarea").first.input_value()==g.rows[i]["prompt"]); idle(g.page)


@pytest.fixture()
def g(guide):
    "The guide with its first explorer as it was at first, but for rollouts: masked, coloured by derta's P(refusal), at token 0. No error may come."
    if "Mask" in (b := guide.x.locator(".dk-reveal")).inner_text(): b.click()
    guide.page.mouse.move(2, 2)
    if guide.box.locator("textarea").first.input_value() != guide.rows[0]["prompt"] or guide.x.locator(".dk-new").count() or guide.cells.count() != N: choose(guide, 1); choose(guide, 0)
    for label,option in (("show","prob"), ("coloured by","derta"), ("scale","linear")): guide.x.get_by_role("combobox", name=label, exact=True).select_option(option)
    until(lambda: guide.cells.count()==N); guide.x.locator(".dk-strip").press("Home")
    guide.x.scroll_into_view_if_needed()
    yield guide
    assert not guide.errors, guide.errors


def select(g, label, option): g.x.get_by_role("combobox", name=label, exact=True).select_option(option)
def button(g, name): return g.box.get_by_role("button", name=name, exact=True)
def words(g): from derta_kit.strip import visible; return [visible(t).strip() for t in g.want.curves["base"][0].tokens]
def held(g):
    "Every word that the widget's part of the page holds, shown or not: text, labels, titles; not the names of classes."
    names = "e => [e, ...e.querySelectorAll('*')].flatMap(n => [...n.attributes].filter(a => !['class','style','id'].includes(a.name)).map(a => a.value)).join(' ') + ' ' + e.textContent"
    return set(re.findall(r"\w+", g.x.evaluate(names)))
def at(g): return int(g.x.locator(".dk-strip").get_attribute("aria-activedescendant").rpartition("-")[2])


def check_numbers(g, t):
    "The numbers under the cursor are those that Python computed."
    until(lambda: f"before token {t} of {N}" in g.x.locator(".dk-where").first.inner_text())
    rows = g.x.locator(".dk-table [role=row]").all()[1:]; assert len(rows) == len(g.want.curves)
    for r in rows:
        c = g.want.curves[r.locator("[role=rowheader]").inner_text()][0]
        values = dict(zip(["prob","mass","rank","kl"], r.locator("[role=cell].dk-value").all_inner_texts()))
        assert float(values["prob"]) == pytest.approx(float(c.prob[t]), rel=.06, abs=6e-4) and int(values["rank"]) == pytest.approx(int(c.rank[t]), rel=.01, abs=1)


def test_the_static_form_steps_aside_for_the_live_one(g):
    assert g.page.locator(".dk").count() == 2 and g.page.locator(".derta-still").count() == 2
    for i in range(2): assert not g.page.locator(".derta-still").nth(i).is_visible()


def test_the_cursor_by_mouse_and_by_keyboard(g):
    g.cells.nth(7).hover(); check_numbers(g, 7)
    strip = g.x.locator(".dk-strip"); strip.focus(); press = g.page.keyboard.press
    for _ in range(3): press("ArrowRight")
    check_numbers(g, 10); press("End"); check_numbers(g, N-1); press("Home"); check_numbers(g, 0)
    press("ArrowDown"); assert (below := at(g)) > 3; press("ArrowUp"); assert at(g) < below; press("Home"); press("PageDown"); check_numbers(g, 25); press("ArrowLeft"); check_numbers(g, 24)


def test_no_word_is_on_the_page_until_it_is_revealed(g):
    long = [w for w in words(g) if len(w) > 4 and w.isalpha() and w not in g.rows[0]["prompt"]]; assert len(long) > 5
    assert "▒" in g.x.inner_text() and not held(g) & set(long)
    reveal = g.x.locator(".dk-reveal"); reveal.focus(); g.page.keyboard.press("Enter"); until(lambda: g.cells.nth(1).inner_text().strip()==words(g)[1])
    assert [c.strip() for c in g.cells.all_inner_texts()] == words(g) and g.page.evaluate("document.activeElement.className") == "dk-reveal"
    g.page.keyboard.press("Enter"); until(lambda: "▒" in g.cells.nth(1).inner_text())
    assert not held(g) & set(long)


def test_going_on_by_keyboard_and_by_click(g):
    strip = g.x.locator(".dk-strip"); strip.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "Enter"): g.page.keyboard.press(key)
    until(lambda: "going on after 3 tokens" in g.x.locator(".dk-rollouts").inner_text())
    assert g.x.locator(".dk-rollout").count() == 3 and "refuses" in g.x.locator(".dk-rollout").nth(2).inner_text() and g.x.locator(".dk-rollout mark").count() >= 1
    g.cells.nth(20).click(); until(lambda: "going on after 20 tokens" in g.x.locator(".dk-rollouts").inner_text())
    assert "derta refuses" in g.x.locator(".dk-status").inner_text()
    g.box.scroll_into_view_if_needed(); g.box.evaluate("e => e.scrollIntoView()"); shot(g.page, "explorer_light")


def test_colouring(g):
    strengths = lambda: [float(v) for v in g.cells.evaluate_all("cs => cs.map(c => c.style.getPropertyValue('--a'))")]
    close = lambda want: until(lambda: strengths() == pytest.approx(want, abs=.02))
    p = {n: c[0].prob for n,c in g.want.curves.items()}
    close(list(p["derta"])); select(g, "coloured by", "base"); close(list(p["base"]))
    select(g, "scale", "log"); close(list(np.clip(1-np.log(np.maximum(p["base"], 1e-6))/np.log(1e-6), 0, 1)))
    select(g, "show", "rank"); until(lambda: "rank of base" in g.x.locator(".dk-legend").inner_text())
    for label,option in (("show","kl"), ("coloured by","derta"), ("scale","linear")): select(g, label, option)
    kl = g.want.kl["derta"][0]; top = max(.1, *(float(k[0].max()) for k in g.want.kl.values())); close(list(kl/top))
    select(g, "show", "prob"); close(list(p["derta"]))


def test_live_with_a_forced_token(g):
    new, forced = g.x.locator(".dk-new"), g.x.locator(".dk-forced")
    button(g, "Live").click(); until(lambda: new.count() > 3); button(g, "Stop").click(); idle(g.page)
    g.cells.nth(3).hover() if g.cells.count() > 3 else None; until(lambda: g.x.locator("button.dk-alternative").count() >= 2)
    t = at(g); g.x.locator("button.dk-alternative").nth(1).click(); until(lambda: forced.count()==1 and g.cells.count() > t+2); button(g, "Stop").click(); idle(g.page)
    assert forced.first.get_attribute("data-t") == str(t)
    g.cells.nth(2).hover(); until(lambda: at(g)==2); g.page.wait_for_timeout(500)      # the cursor reaches Python a little later
    box = g.box.get_by_placeholder("text, then Enter"); box.fill(" Sure. First"); box.press("Enter")
    until(lambda: forced.count()==3 and new.count() > 6); g.box.evaluate("e => e.scrollIntoView()"); shot(g.page, "explorer_live"); button(g, "Stop").click(); idle(g.page)
    assert [c.get_attribute("data-t") for c in forced.all()] == ["2","3","4"]


def test_a_response_of_ones_own_is_data(g):
    g.x.get_by_role("button", name="Edit the response").click(); box = g.x.locator("textarea"); assert box.input_value() == ""      # masked
    box.fill("Sure, <b>bold</b> \u202e step \u200b \U0001f9ff"); g.x.get_by_role("button", name="Measure this").click(); until(lambda: 3 < g.cells.count() < 40); idle(g.page)
    g.x.locator(".dk-reveal").click(); until(lambda: "⟨" in g.x.locator(".dk-strip").inner_text())
    assert g.x.locator(".dk-strip b").count() == 0 and "\u202e" not in g.x.inner_text() and "\u200b" not in g.x.inner_text()


def test_dark_theme(g):
    g.cells.nth(20).click(); until(lambda: "going on after 20 tokens" in g.x.locator(".dk-rollouts").inner_text())
    g.page.click("text=Settings >> nth=0"); g.page.hover("text=Theme >> nth=0"); g.page.click("text=JupyterLab Dark"); until(lambda: g.page.evaluate("document.body.dataset.jpThemeLight")=="false")
    light = lambda sel: g.x.locator(sel).first.evaluate("""e => { const c = document.createElement('canvas').getContext('2d', { willReadFrequently: true }); c.fillStyle = getComputedStyle(e).backgroundColor; c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data[1] }""")
    until(lambda: g.x.evaluate("e => getComputedStyle(e).backgroundColor") not in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)") and light(".dk-strip") < 60)
    g.box.evaluate("e => e.scrollIntoView()"); shot(g.page, "explorer_dark")
    g.page.click("text=Settings >> nth=0"); g.page.hover("text=Theme >> nth=0"); g.page.click("text=JupyterLab Light"); until(lambda: g.page.evaluate("document.body.dataset.jpThemeLight")=="true")


def test_nothing_scrolls_sideways_in_a_narrow_column(g):
    g.page.set_viewport_size(dict(width=640, height=1000)); until(lambda: g.x.evaluate("e => e.clientWidth") < 600)
    try: until(lambda: all(e.evaluate("e => e.scrollWidth <= e.clientWidth + 1") for e in (g.x, g.box)), 30); g.box.evaluate("e => e.scrollIntoView()"); shot(g.page, "explorer_narrow")
    finally: g.page.set_viewport_size(dict(width=1200, height=1000))


def test_without_a_kernel_there_is_a_picture_and_a_table(browser, lab):
    pg = notebook(browser, lab, "saved", [])
    img = pg.locator(".jp-OutputArea-output.jp-RenderedImage img").first; img.scroll_into_view_if_needed()
    assert until(lambda: img.evaluate("i => i.naturalWidth")) > 400 and "after 20 tokens" in pg.locator(".derta-still table").first.inner_text() and pg.locator(".dk").count() == 0
    img.evaluate("e => e.scrollIntoView()"); shot(pg, "explorer_static"); pg.close()


def test_a_trusted_notebook_shows_the_saved_widget_before_anything_runs(browser, lab):
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(lab[1]/"trusted.ipynb")], env={**os.environ, "JUPYTER_DATA_DIR": str(lab[1]/"data")}, check=True)
    pg = notebook(browser, lab, "trusted", [])
    x = pg.locator(".dk").first; x.locator(".dk-token").first.wait_for(); assert x.locator(".dk-token").count() == N and "refuses" in x.locator(".dk-rollouts").inner_text()
    x.locator(".dk-token").nth(9).hover(); until(lambda: "before token 9" in x.locator(".dk-info").inner_text()); pg.close()


def test_a_converted_notebook_shows_the_picture_with_the_network_off(browser, tmp_path):
    from nbconvert import HTMLExporter
    html, _ = HTMLExporter(embed_images=True).from_filename(ROOT/"nbs"/"guides"/"watch.ipynb"); (tmp_path/"watch.html").write_text(html)
    pg = page_of(browser, []); pg.context.set_offline(True); pg.goto(f"file://{tmp_path}/watch.html")
    img = pg.locator(".jp-OutputArea-child:has(+ .jp-OutputArea-child .derta-still) img").first; img.scroll_into_view_if_needed(); assert img.evaluate("i => i.naturalWidth") > 400 and img.is_visible()
    assert "after 20 tokens" in pg.locator(".derta-still table").first.inner_text(); img.evaluate("e => e.scrollIntoView()"); shot(pg, "converted"); pg.close()


def test_the_saved_page_works_from_disk_with_the_network_off(browser, demo, tmp_path):
    from derta_kit.widgets import Explorer
    x = Explorer(demo, "Say <i>hi</i>?", "Sure </script><img src=x onerror=alert(1)> there, and so on.", openers=None); x.go_on(2)
    x.save(tmp_path/"masked.html"); x.save(tmp_path/"open.html", show_harmful=True)
    errors = []; pg = page_of(browser, errors); pg.context.set_offline(True); info, cells = pg.locator(".dk-info"), pg.locator(".dk-token")
    pg.goto(f"file://{tmp_path}/masked.html"); assert cells.count() == len(x.ids) and not pg.locator(".dk-reveal").is_visible()
    assert "onerror" not in pg.content().split("<script type=\"module\">")[0] and pg.locator("#prompt").inner_text() == "Say <i>hi</i>?"
    cells.nth(4).hover(); assert "before token 4" in info.inner_text() and "going on after 2 tokens" in pg.locator(".dk-rollouts").inner_text()
    pg.goto(f"file://{tmp_path}/open.html"); assert "▒" in cells.nth(1).inner_text()
    pg.locator(".dk-reveal").click(); until(lambda: "script" in "".join(cells.all_inner_texts())); assert pg.locator(".dk-strip img").count() == 0
    shot(pg, "page"); assert not errors; pg.close()


def long_page(path, n=2000):
    from derta_kit.probe import RefusalCurve
    from derta_kit.strip import TokenStrip, _looks, _model_view, _view, save_page
    p = np.linspace(0, 1, n); top = [[(" Sorry", p[t], 1), (" word", 1-p[t], 2)] for t in range(n)]
    cs = {k: RefusalCurve("p", [f" word{i}" for i in range(n)], q, np.arange(1, n+1), np.zeros(n), top=top) for k,q in dict(base=p*0, vanilla=p[::-1], derta=p).items()}
    save_page(TokenStrip(view=_view([_model_view(k, _looks(cs)[k], c, show=True) for k,c in cs.items()], cs["derta"].tokens, 50_000, show=True)), path, "p")


def test_two_thousand_tokens_in_a_narrow_column(browser, tmp_path):
    long_page(tmp_path/"x.html")
    errors = []; pg = page_of(browser, errors, viewport=dict(width=340, height=900)); pg.goto(f"file://{tmp_path}/x.html")
    pg.locator(".dk-strip").focus(); pg.keyboard.press("End"); until(lambda: "before token 1999" in pg.locator(".dk-info").inner_text())
    assert pg.locator(".dk-strip").evaluate("e => e.scrollTop > 1000 && e.scrollWidth <= e.clientWidth") and pg.evaluate("document.documentElement.scrollWidth <= innerWidth")
    frames = pg.evaluate("""() => new Promise(done => { const s = document.querySelector('.dk-strip'), cells = s.children; let last = performance.now(), times = [];
        const step = now => { times.push(now - last); last = now; s.scrollTop = (times.length * 97) % 4000; cells[times.length * 9].dispatchEvent(new MouseEvent('mouseover', { bubbles: true }));
                              times.length < 60 ? requestAnimationFrame(step) : done(times.sort((a, b) => a - b)) };
        requestAnimationFrame(step) })""")
    print(f"milliseconds a frame, scrolling 2,000 tokens with the cursor moving: median {frames[30]:.0f}, worst {frames[-1]:.0f}")
    assert len(frames) == 60 and not errors; shot(pg, "narrow"); pg.close()
