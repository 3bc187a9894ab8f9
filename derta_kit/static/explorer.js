// The token strip of the refusal explorer: curve, strip, cursor, rollouts. All text reaches the page as text (textContent), never as markup.
// `view` and `rollouts` are synced and hold masks where text is hidden; the words come by message, when a person asks, and stay in this page's memory.

const NS = "http://www.w3.org/2000/svg";
const WHAT = { prob: "P(refusal)", mass: "opener mass", rank: "rank", kl: "KL to base" };
const el = (tag, props = {}, ...kids) => { const e = document.createElement(tag); for (const [k, v] of Object.entries(props)) k in e ? (e[k] = v) : e.setAttribute(k, v); e.append(...kids); return e; };
const svg = (tag, props) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(props)) e.setAttribute(k, v); return e; };
const num = (x) => x == null ? "–" : x === 0 || x === 1 ? String(x) : x >= 0.001 && x < 10 ? x.toFixed(3) : x >= 10 ? x.toFixed(1) : x.toExponential(1);
let serial = 0;

// Strength of a colour, 0 to 1, and the ends of the scale in words.
function scaleOf(what, log, view) {
  const clip = (x) => Math.max(0, Math.min(1, x));
  if (what === "rank") { const top = log ? view.vocab : 100; return { at: (r) => clip(log ? 1 - Math.log(r) / Math.log(top) : 1 - (r - 1) / (top - 1)), ends: [`rank ${top}`, "rank 1"] }; }
  const max = what === "kl" ? Math.max(0.1, ...view.models.flatMap((m) => m.kl || [])) : 1, min = what === "kl" ? 1e-3 : 1e-6;
  return log ? { at: (x) => clip(1 - Math.log(Math.max(x, min) / max) / Math.log(min / max)), ends: [min.toExponential(0), num(max)] } : { at: (x) => clip(x / max), ends: ["0", num(max)] };
}

function render({ model, el: root, signal }) {
  const me = `derta${++serial}-${Math.random().toString(36).slice(2, 8)}`;
  let words = null, wanted = false, at = 0, cells = [], typing = false;
  const view = () => model.get("view"), depth = () => model.get("depth");
  const send = (msg) => model.send({ ...msg, view: me });
  const pick = (label, options, value, onchange) => { const s = el("select", { onchange: () => onchange(s.value) }); for (const [v, t] of options) s.append(el("option", { value: v, textContent: t, selected: v === value })); return el("label", { className: "dk-pick" }, label + " ", s); };

  const bar = el("div", { className: "dk-bar" });
  const plot = el("div", { className: "dk-plot", role: "img" });
  const scale = el("div", { className: "dk-scale" });
  const strip = el("div", { className: "dk-strip", tabIndex: 0, role: "listbox", "aria-label": "Tokens of the response. Arrow keys move, Enter goes on from here." });
  const info = el("div", { className: "dk-info", "aria-live": "polite" });
  const rolls = el("div", { className: "dk-rolls" });
  const edit = el("div", { className: "dk-edit" });
  root.replaceChildren(el("div", { className: "dk" }, bar, plot, scale, strip, info, rolls, edit));

  const shown = (t) => (words && words.tokens[t] !== undefined ? words.tokens[t] : view().tokens[t]);
  const hidden = (t) => !view().open[t] && !(words && words.tokens[t] !== undefined);

  function drawBar() {
    const v = view(), has = (w) => v.models.some((m) => m[w]);
    const reveal = el("button", { className: "dk-reveal", textContent: wanted ? "Mask" : "Reveal", onclick: () => { wanted = !wanted; if (wanted) ask(); else { words = null; draw(); } } });
    reveal.setAttribute("aria-pressed", wanted);
    bar.replaceChildren(
      pick("colour", Object.entries(WHAT).filter(([w]) => has(w)), model.get("colour"), (x) => put("colour", x)),
      pick("scale", [["linear", "linear"], ["log", "logarithmic"]], model.get("scale"), (x) => put("scale", x)),
      ...(v.models.length > 1 ? [pick("of", v.models.map((m) => [m.name, m.name]), current().name, (x) => put("model", x))] : []),
      ...(model.get("can_reveal") ? [reveal] : [el("span", { className: "dk-note", textContent: "harmful text is masked in this copy" })]),
    );
  }
  const current = () => view().models.find((m) => m.name === model.get("model")) || view().models[view().models.length - 1];
  const put = (k, x) => { model.set(k, x); model.save_changes(); };

  function drawPlot() {
    const v = view(), n = v.tokens.length, W = Math.max(260, plot.clientWidth || 640), H = 150, L = 42, R = 8, T = 8, B = 22, what = model.get("colour");
    const s = scaleOf(what, model.get("scale") === "log", v), x = (i) => L + (W - L - R) * (n > 1 ? i / (n - 1) : 0.5), y = (p) => T + (H - T - B) * (1 - p);
    const g = svg("svg", { width: W, height: H, viewBox: `0 0 ${W} ${H}` });
    const text = (a, b, t, anchor) => { const e = svg("text", { x: a, y: b, "text-anchor": anchor, class: "dk-tick" }); e.textContent = t; g.append(e); };
    for (const p of [0, 1]) { g.append(svg("line", { x1: L, x2: W - R, y1: y(p), y2: y(p), class: "dk-grid" })); text(L - 4, y(p) + 4, s.ends[p].replace("rank ", ""), "end"); }
    const step = Math.max(1, Math.ceil(n / Math.max(2, Math.floor(W / 70)) / 5) * 5);
    for (let i = 0; i < n; i += step) text(x(i), H - 6, i, "middle");
    if (depth() < n) g.append(svg("line", { x1: x(depth()), x2: x(depth()), y1: T, y2: H - B, class: "dk-depth" }));
    if (n) g.append(svg("line", { x1: x(at), x2: x(at), y1: T, y2: H - B, class: "dk-cursor" }));
    for (const m of v.models) if (m[what]) {
      const pts = m[what].map((p, i) => (p == null ? null : `${x(i).toFixed(1)},${y(s.at(p)).toFixed(1)}`)).filter(Boolean);
      g.append(pts.length > 1 ? svg("polyline", { points: pts.join(" "), fill: "none", stroke: m.color, "stroke-width": 2, "stroke-dasharray": m.dash || "" }) : svg("circle", { cx: pts[0]?.split(",")[0] ?? -9, cy: pts[0]?.split(",")[1] ?? -9, r: 3, fill: m.color }));
    }
    plot.replaceChildren(g);
    plot.setAttribute("aria-label", `${WHAT[what]} at each position, one line a model: ` + v.models.map((m) => m.name).join(", "));
    const keys = v.models.map((m) => { const k = svg("svg", { width: 26, height: 10 }); k.append(svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: m.color, "stroke-width": 2.5, "stroke-dasharray": m.dash || "" })); return el("span", { className: "dk-key" }, k, " " + m.name); });
    scale.replaceChildren(...keys, el("span", { className: "dk-legend" }, `${WHAT[what]}, ${current().name}: ${s.ends[0]} `, el("span", { className: "dk-ramp" }), ` ${s.ends[1]}`));
  }

  function drawStrip() {
    const v = view(), what = model.get("colour"), s = scaleOf(what, model.get("scale") === "log", v), vals = current()[what] || [];
    while (cells.length > v.tokens.length) cells.pop().remove();
    v.tokens.forEach((_, t) => {
      let c = cells[t];
      if (!c) { c = el("span", { id: `${me}-${t}`, role: "option" }); c.dataset.t = t; cells[t] = c; strip.append(c); }
      const p = vals[t], a = p == null ? 0 : s.at(p), h = hidden(t);
      c.textContent = shown(t); c.className = "dk-tok" + (h ? " dk-hidden" : "") + (t >= v.said ? " dk-new" : "") + (v.forced.includes(t) ? " dk-forced" : "");
      c.style.setProperty("--a", (0.92 * a).toFixed(3)); c.classList.toggle("dk-strong", a > 0.55);
      c.setAttribute("aria-label", `${t}, ${h ? "hidden" : shown(t)}, ${WHAT[what]} ${num(p)}`);
    });
    mark();
  }

  function mark() {
    const d = depth();
    cells.forEach((c, t) => { c.classList.toggle("dk-at", t === at); c.classList.toggle("dk-from", t === d); c.setAttribute("aria-selected", t === at); });
    if (cells[at]) strip.setAttribute("aria-activedescendant", cells[at].id);
  }

  function drawInfo() {
    const v = view(), t = at;
    if (!v.tokens.length) { info.replaceChildren(el("div", { className: "dk-note", textContent: "No response yet." })); return; }
    const cols = ["prob", "rank", "mass", "kl"].filter((w) => v.models.some((m) => m[w]));
    const table = el("table", { className: "dk-table" }, el("tr", {}, ...["", ...cols.map((w) => WHAT[w]), "likeliest next"].map((h) => el("th", { textContent: h }))));
    v.models.forEach((m, j) => {
      const alts = el("td", { className: "dk-alts" });
      const top = m.top?.[t];
      if (top) top.forEach(([mask, p, open], k) => {
        const text = words ? words.top[j][t][k] : mask, h = !open && !words;
        const b = el(model.get("live") ? "button" : "span", { className: "dk-alt" + (h ? " dk-hidden" : ""), title: model.get("live") ? `put this token here and go on (${num(p)})` : num(p) }, el("span", { textContent: text }), el("small", { textContent: ` ${num(p)}` }));
        if (model.get("live")) b.onclick = () => send({ type: "force", at: t, model: m.name, k });
        alts.append(b);
      });
      table.append(el("tr", {}, el("th", { textContent: m.name }), ...cols.map((w) => el("td", { textContent: w === "rank" ? (m.rank?.[t] ?? "–") : num(m[w]?.[t]) })), alts));
    });
    info.replaceChildren(el("div", { className: "dk-where" }, `before token ${t} of ${v.tokens.length}: `, el("b", { className: hidden(t) ? "dk-hidden" : "", textContent: shown(t) })), table);
  }

  function drawRolls() {
    const d = depth(), all = model.get("rollouts"), r = all[d];
    if (!r) { const k = Object.keys(all); rolls.replaceChildren(...(k.length ? [el("div", { className: "dk-note" }, "rollouts from " , ...k.flatMap((x) => [el("button", { textContent: x, onclick: () => go(+x) }), " "]))] : [])); return; }
    const cols = r.map((x, j) => {
      const body = el("div", { className: "dk-said" }), parts = words?.rollouts?.[d]?.[j] || x.parts;
      for (const [kind, text] of parts) body.append(el(kind === "refusal" ? "mark" : "span", { className: kind === "hidden" ? "dk-hidden" : "", textContent: text }));
      return el("div", { className: "dk-roll" }, el("h4", {}, el("span", { className: "dk-dot", style: `background:${x.color}` }), ` ${x.model} `, el("small", { textContent: x.refuses ? "refuses" : "goes on" })), body);
    });
    rolls.replaceChildren(el("div", { className: "dk-where" }, `going on after ${d} tokens:`), el("div", { className: "dk-cols" }, ...cols));
  }

  function drawEdit() {
    if (typing || !model.get("can_edit")) return;
    const b = el("button", { textContent: "Edit the response", onclick: () => { typing = true; box(); } });
    const box = () => {
      const area = el("textarea", { rows: 4, value: words ? words.response : "", placeholder: "The response to look at. (The present one is masked; reveal it first to change it.)", "aria-label": "response" });
      const done = () => { typing = false; drawEdit(); };
      edit.replaceChildren(area, el("button", { textContent: "Measure this", onclick: () => { send({ type: "response", text: area.value }); done(); } }), el("button", { textContent: "Cancel", onclick: done }));
      area.focus();
    };
    edit.replaceChildren(b);
  }

  function move(t, follow = true) {
    const n = view().tokens.length; if (!n) return;
    at = Math.max(0, Math.min(n - 1, t)); mark(); drawInfo(); drawPlot();
    if (follow) cells[at]?.scrollIntoView({ block: "nearest" });
    clearTimeout(move.timer); move.timer = setTimeout(() => put("cursor", at), 60);
  }
  function go(t) { put("depth", t); if (!model.get("rollouts")[t]) send({ type: "go", at: t }); }
  function line(dir) {   // the token above or below
    const here = cells[at].getBoundingClientRect(), mid = here.left + here.width / 2; let best = at, far = Infinity, row = null;
    for (let t = at + dir; cells[t]; t += dir) {
      const r = cells[t].getBoundingClientRect(); if (Math.abs(r.top - here.top) < 4) continue;
      if (row === null) row = r.top; if (Math.abs(r.top - row) > 4) break;
      const d = Math.abs(r.left + r.width / 2 - mid); if (d < far) { far = d; best = t; }
    }
    return best;
  }
  const cell = (e) => e.target.closest?.(".dk-tok");
  strip.addEventListener("mouseover", (e) => { const c = cell(e); if (c) move(+c.dataset.t, false); });
  strip.addEventListener("click", (e) => { const c = cell(e); if (c) { move(+c.dataset.t, false); go(+c.dataset.t); strip.focus({ preventScroll: true }); } });
  strip.addEventListener("keydown", (e) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: cells.length - 1, PageUp: at - 25, PageDown: at + 25 }[e.key] ?? (e.key === "ArrowUp" ? line(-1) : e.key === "ArrowDown" ? line(1) : null);
    if (to !== null && !e.altKey && !e.ctrlKey && !e.metaKey) { move(to); e.preventDefault(); e.stopPropagation(); }
    else if (e.key === "Enter" || e.key === " ") { go(at); e.preventDefault(); e.stopPropagation(); }
  });
  plot.addEventListener("click", (e) => { const b = plot.getBoundingClientRect(), n = view().tokens.length; move(Math.round((e.clientX - b.left - 42) / (b.width - 50) * (n - 1))); });

  function ask() { send({ type: "text" }); }
  function draw() { at = Math.min(Math.max(at, 0), Math.max(0, view().tokens.length - 1)); drawBar(); drawPlot(); drawStrip(); drawInfo(); drawRolls(); drawEdit(); }
  const on = (k, f) => { const g = () => f(); model.on(k, g); signal?.addEventListener("abort", () => model.off(k, g)); };
  on("change:view", () => { if (!view().grows) words = null; if (view().grows) at = view().tokens.length - 1; draw(); if (view().grows) strip.scrollTop = strip.scrollHeight; if (wanted) ask(); });
  for (const k of ["colour", "scale", "model", "live", "can_reveal"]) on(`change:${k}`, draw);
  on("change:rollouts", () => { if (words) words.rollouts = null; drawRolls(); if (wanted) ask(); });
  on("change:depth", () => { mark(); drawPlot(); drawRolls(); });
  on("change:cursor", () => { if (model.get("cursor") !== at) move(model.get("cursor")); });
  const heard = (msg) => { if (msg.type === "text" && msg.view === me && wanted) { words = msg; draw(); } };
  model.on("msg:custom", heard); signal?.addEventListener("abort", () => model.off("msg:custom", heard));
  const size = new ResizeObserver(() => drawPlot()); size.observe(plot); signal?.addEventListener("abort", () => size.disconnect());
  at = model.get("cursor"); draw();
  return () => size.disconnect();
}

export default { render };
