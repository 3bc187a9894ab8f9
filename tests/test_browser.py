"The refusal explorer in a real JupyterLab and a real browser; its saved page, with the network off; its static form, without a kernel."
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
import pytest
from conftest import ROOT

play = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROME = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(not CHROME, reason="no Chromium on this machine; Debian's package is called chromium"), pytest.mark.xdist_group("browser")]
ARTIFACTS = ROOT/"tests"/"artifacts"


@pytest.fixture(scope="module")
def browser():
    with play.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args="--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync".split())
        yield b
        b.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on the loopback address, with the guide and a copy that is not trusted; gives (address, folder)."
    d = tmp_path_factory.mktemp("lab"); cfg = d/"cfg"; settings = cfg/"lab"/"user-settings"/"@jupyterlab"
    for name,text in {"notebook-extension/tracker": '{"windowingMode": "none"}', "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'}.items():
        (f := settings/f"{name}.jupyterlab-settings").parent.mkdir(parents=True, exist_ok=True); f.write_text(text)
    for name in ("watch","saved","trusted"): shutil.copy(ROOT/"nbs"/"guides"/"watch.ipynb", d/f"{name}.ipynb")
    nb = json.loads((d/"trusted.ipynb").read_text()); nb["cells"][0]["source"] = "# Trusted"; (d/"trusted.ipynb").write_text(json.dumps(nb))     # trust goes by content
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(cfg), "JUPYTER_DATA_DIR": str(d/"data"), "OMP_NUM_THREADS": "1"}
    if (ROOT/"runs").exists(): (d/"runs").symlink_to(ROOT/"runs")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    log = open(d/"lab.log", "w")
    p = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--notebook-dir={d}"],
                         env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try: socket.create_connection(("127.0.0.1", port), 1).close(); break
            except OSError: time.sleep(.2); assert p.poll() is None, (d/"lab.log").read_text()[-1500:]
        yield f"http://127.0.0.1:{port}/lab/tree", d
    finally: p.terminate(); p.wait(20)


def page_of(browser, errors, **kwargs):
    pg = browser.new_page(viewport=dict(width=1200, height=1000), **kwargs); pg.set_default_timeout(60_000)
    pg.on("console", lambda m: errors.append(m.text) if m.type=="error" else None); pg.on("pageerror", lambda e: errors.append(str(e)))
    return pg


def shot(page, name): ARTIFACTS.mkdir(exist_ok=True); page.screenshot(path=ARTIFACTS/f"{name}.png")


def until(f, seconds=60):
    end = time.time()+seconds
    while not (x := f()):
        assert time.time() < end, "it did not come"
        time.sleep(.1)
    return x


def idle(pg): until(lambda: pg.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").count() and not pg.locator(".jp-InputPrompt", has_text="[*]").count(), 600)


def test_the_guide_in_jupyterlab(browser, lab):
    from derta_kit.compare import Models, compare
    from derta_kit.data import demo_data
    from derta_kit.demo import demo_adapters
    from derta_kit.strip import visible
    row, errors = demo_data()["harmful_eval"][0], []
    os.chdir(lab[1]); ms = Models(demo_adapters()); want = compare(ms, [row["prompt"]], [row["harmful"]], max_tokens=64)
    pg = page_of(browser, errors); pg.goto(f"{lab[0]}/watch.ipynb?reset"); pg.wait_for_selector(".jp-Notebook .jp-Cell")
    pg.locator(".jp-NotebookPanel-toolbar .jp-Toolbar-item", has_text="Python 3").first.wait_for()
    pg.click("text=Run >> nth=0"); pg.click("li[data-command='runmenu:run-all']")
    x = pg.locator(".dk").nth(0); x.locator(".dk-tok").first.wait_for(timeout=600_000); idle(pg)
    x.scroll_into_view_if_needed(); cells = x.locator(".dk-tok"); words = [visible(t).strip() for t in want.curves["base"][0].tokens]
    assert cells.count() == 64 and pg.locator(".dk").count() == 2

    # masked: no word of the response is anywhere on the page
    text = x.inner_text(); assert "▒" in text and not [w for w in words if len(w) > 4 and w.isalpha() and w in text and w not in row["prompt"]]

    def numbers():
        return {r.locator("th").inner_text(): r.locator("td").nth(0).inner_text() for r in x.locator(".dk-table tr").all()[1:]}
    def shown(t):
        until(lambda: f"before token {t} of" in x.locator(".dk-where").first.inner_text())
        for name,p in numbers().items(): assert float(p) == pytest.approx(float(want.curves[name][0].prob[t]), rel=.06, abs=6e-4), (name, t)
    # the cursor, by mouse and by keyboard
    cells.nth(7).hover(); shown(7)
    strip = x.locator(".dk-strip"); strip.focus()
    for _ in range(3): pg.keyboard.press("ArrowRight")
    shown(10); pg.keyboard.press("End"); shown(63); pg.keyboard.press("Home"); shown(0)
    pg.keyboard.press("ArrowDown"); assert until(lambda: int(strip.get_attribute("aria-activedescendant").rpartition("-")[2])) > 3

    # go on from a token, by keyboard and by click
    pg.keyboard.press("Home"); [pg.keyboard.press("ArrowRight") for _ in range(3)]; pg.keyboard.press("Enter")
    until(lambda: "going on after 3 tokens" in x.locator(".dk-rolls").inner_text())
    assert x.locator(".dk-roll").count() == 3 and "refuses" in x.locator(".dk-roll").nth(2).inner_text() and x.locator(".dk-roll mark").count() >= 1
    cells.nth(20).click(); until(lambda: "going on after 20 tokens" in x.locator(".dk-rolls").inner_text()); shot(pg, "explorer_light")

    # reveal and mask
    x.locator(".dk-reveal").click(); until(lambda: cells.nth(1).inner_text().strip() == words[1])
    assert [c.strip() for c in cells.all_inner_texts()] == words
    x.locator(".dk-reveal").click(); until(lambda: "▒" in cells.nth(1).inner_text())

    # colouring
    a = lambda: [float(v) for v in cells.evaluate_all("cs => cs.map(c => c.style.getPropertyValue('--a'))")]
    x.locator("select").nth(2).select_option("base"); until(lambda: max(a()) < .1)
    x.locator("select").nth(1).select_option("log"); until(lambda: max(a()) > .2)
    x.locator("select").nth(0).select_option("rank"); until(lambda: "rank" in x.locator(".dk-legend").inner_text())
    x.locator("select").nth(2).select_option("derta"); x.locator("select").nth(0).select_option("prob"); x.locator("select").nth(1).select_option("linear")

    # live: go on, force an alternative, type one, stop
    pg.get_by_role("button", name="Live").first.click(); until(lambda: x.locator(".dk-new").count() > 3); pg.get_by_role("button", name="Stop").first.click()
    cells.nth(20).hover(); until(lambda: x.locator("button.dk-alt").count() >= 2)
    x.locator("button.dk-alt").nth(1).click(); until(lambda: x.locator(".dk-forced").count() == 1 and x.locator(".dk-new").count() > 2); pg.get_by_role("button", name="Stop").first.click()
    cells.nth(20).hover(); box = pg.get_by_placeholder("force this text").first; box.fill(" Sure. First"); box.press("Enter")
    until(lambda: x.locator(".dk-forced").count() == 3 and x.locator(".dk-new").count() > 6); shot(pg, "explorer_live"); idle(pg)

    # an example from the list, and a response of one's own
    pg.locator(".jp-OutputArea-output select").first.select_option(index=2); until(lambda: demo_data()["harmful_eval"][1]["prompt"] in pg.locator(".jp-OutputArea-output textarea").first.input_value()); idle(pg)
    x.get_by_role("button", name="Edit the response").click(); x.locator("textarea").fill("Sure, <b>bold</b> \u202e step"); x.get_by_role("button", name="Measure this").click(); until(lambda: 3 < cells.count() < 20)
    x.locator(".dk-reveal").click(); until(lambda: "⟨AE⟩" in strip.inner_text()); assert x.locator("b", has_text="bold").count() == 0

    # dark
    pg.evaluate("document.querySelector('.dk').scrollIntoView()"); pg.click("text=Settings >> nth=0"); pg.hover("text=Theme >> nth=0"); pg.click("text=JupyterLab Dark"); until(lambda: pg.evaluate("document.body.dataset.jpThemeLight") == "false")
    time.sleep(1); shot(pg, "explorer_dark")
    assert pg.evaluate("getComputedStyle(document.querySelector('.dk')).backgroundColor") not in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert x.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    assert not [e for e in errors if "favicon" not in e], errors
    pg.close()


def test_without_a_kernel_there_is_a_picture_and_a_table(browser, lab):
    pg = page_of(browser, []); pg.goto(f"{lab[0]}/saved.ipynb?reset"); pg.wait_for_selector(".jp-Notebook .jp-Cell")
    img = pg.locator(".jp-OutputArea-output img[alt^='P(refusal)']").first; img.scroll_into_view_if_needed()
    assert until(lambda: img.evaluate("i => i.naturalWidth")) > 400 and "after 20 tokens" in pg.locator(".jp-OutputArea-output table").first.inner_text()
    shot(pg, "explorer_static"); pg.close()


def test_a_trusted_notebook_shows_the_saved_widget_before_anything_runs(browser, lab):
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(lab[1]/"trusted.ipynb")], env={**os.environ, "JUPYTER_DATA_DIR": str(lab[1]/"data")}, check=True)
    pg = page_of(browser, []); pg.goto(f"{lab[0]}/trusted.ipynb?reset"); pg.wait_for_selector(".jp-Notebook .jp-Cell")
    x = pg.locator(".dk").first; x.locator(".dk-tok").first.wait_for(); assert x.locator(".dk-tok").count() == 64 and "refuses" in x.locator(".dk-rolls").inner_text()
    x.locator(".dk-tok").nth(9).hover(); until(lambda: "before token 9" in x.locator(".dk-info").inner_text()); pg.close()


def test_the_saved_page_works_from_disk_with_the_network_off(browser, demo, tmp_path):
    from derta_kit.widgets import Explorer
    x = Explorer(demo, "Say <i>hi</i>?", "Sure </script><img src=x onerror=alert(1)> there, and so on.", openers=None); x.go_on(2)
    x.save(tmp_path/"masked.html"); x.save(tmp_path/"open.html", show_harmful=True)
    errors = []; pg = page_of(browser, errors); pg.context.set_offline(True)
    pg.goto(f"file://{tmp_path}/masked.html"); assert pg.locator(".dk-tok").count() == len(x.ids) and pg.locator(".dk-reveal").count() == 0
    assert "onerror" not in pg.content().split("<script type=\"module\">")[0] and pg.locator("#prompt").inner_text() == "Say <i>hi</i>?"
    pg.locator(".dk-tok").nth(4).hover(); assert "before token 4" in pg.locator(".dk-info").inner_text() and "going on after 2 tokens" in pg.locator(".dk-rolls").inner_text()
    pg.goto(f"file://{tmp_path}/open.html"); assert "▒" in pg.locator(".dk-tok").nth(1).inner_text()
    pg.locator(".dk-reveal").click(); until(lambda: "script" in "".join(pg.locator(".dk-tok").all_inner_texts())); assert pg.locator(".dk-strip img").count() == 0
    shot(pg, "page"); assert not errors; pg.close()


def test_two_thousand_tokens_in_a_narrow_column(browser, tmp_path):
    import numpy as np
    from derta_kit.probe import RefusalCurve
    from derta_kit.strip import TokenStrip, _model_view, _view, save_page
    n = 2000; c = RefusalCurve("p", [f" word{i}" for i in range(n)], np.linspace(0, 1, n), np.arange(1, n+1), np.zeros(n))
    save_page(TokenStrip(view=_view([_model_view("derta", 0, c, show=True)], c.tokens, 50_000, show=True)), tmp_path/"x.html", "p")
    errors = []; pg = page_of(browser, errors); pg.set_viewport_size(dict(width=340, height=800)); pg.goto(f"file://{tmp_path}/x.html")
    pg.locator(".dk-strip").focus(); pg.keyboard.press("End"); until(lambda: "before token 1999" in pg.locator(".dk-info").inner_text())
    assert pg.locator(".dk-strip").evaluate("e => e.scrollTop > 1000 && e.scrollWidth <= e.clientWidth") and pg.evaluate("document.documentElement.scrollWidth <= innerWidth")
    frames = pg.evaluate("""() => new Promise(done => { const s = document.querySelector('.dk-strip'); let last = performance.now(), worst = 0, n = 0;
        const f = t => { worst = Math.max(worst, t - last); last = t; s.scrollTop = (n * 97) % 4000; n++ < 40 ? requestAnimationFrame(f) : done(n) }; requestAnimationFrame(f) })""")
    assert frames == 41 and not errors; shot(pg, "narrow"); pg.close()
