// The token strip of the refusal explorer: curves, strip, cursor, rollouts.
//
// What Python syncs (`view`, `rollouts`: JSON texts, so that a saved notebook keeps a line of each) holds masks where text is
// hidden. The words themselves come by message, when a person asks, and stay in this page's memory. All text reaches the page
// as text (textContent), never as markup. No build step: this file is what runs, in JupyterLab and in a saved page.

const QUANTITIES = { prob: "P(refusal)", mass: "opener mass", rank: "rank", kl: "KL to base" };
const PLOT = { height: 170, left: 46, right: 10, top: 10, bottom: 24 };
const PAGE_STEP = 25; // tokens that Page Up and Page Down move

// ---- small helpers -------------------------------------------------------------------------------------------------

function el(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) name in e ? (e[name] = value) : e.setAttribute(name, value);
  e.append(...children);
  return e;
}

const div = (className, ...children) => el("div", { className }, ...children);
const span = (className, text) => el("span", { className, textContent: text });
const button = (text, onclick, props = {}) => el("button", { type: "button", textContent: text, onclick, ...props });
const dot = (color) => el("span", { className: "dk-dot", style: `background:${color}` });

function svg(tag, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  if (text !== undefined) e.textContent = text;
  return e;
}

function number(x) {
  if (x == null) return "–";
  if (x === 0 || x === 1) return String(x);
  if (x >= 10) return x.toFixed(1);
  return x >= 0.001 ? x.toFixed(3) : x.toExponential(1);
}

const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

// Parses a JSON text once, however often it is asked for.
function parser() {
  let text, value;
  return (t) => (t === text ? value : ((text = t), (value = JSON.parse(t))));
}

// How strong a value shows, 0 to 1, and what the two ends of the scale are called.
function scaleOf(what, log, view) {
  if (what === "rank") {
    const last = log ? view.vocab : 100;
    const at = log ? (r) => 1 - Math.log(r) / Math.log(last) : (r) => 1 - (r - 1) / (last - 1);
    return { at: (r) => clamp(at(r), 0, 1), low: String(last), high: "1" };
  }
  const max = what === "kl" ? Math.max(0.1, ...view.models.flatMap((m) => m.kl || [])) : 1;
  if (!log) return { at: (x) => clamp(x / max, 0, 1), low: "0", high: number(max) };
  const min = what === "kl" ? 1e-3 : 1e-6;
  const at = (x) => 1 - Math.log(Math.max(x, min) / max) / Math.log(min / max);
  return { at: (x) => clamp(at(x), 0, 1), low: min.toExponential(0), high: number(max) };
}

// ---- the widget ----------------------------------------------------------------------------------------------------

// What all parts share: the synced model, where the cursor is, and the words, if they were asked for.
function sharedState(model) {
  const view = parser(), rollouts = parser();
  const me = `derta-${Math.random().toString(36).slice(2, 10)}`; // this view's name: an answer goes to who asked
  return {
    me, model, at: 0, words: null, revealed: false,
    get view() { return view(model.get("view")); },
    get rollouts() { return rollouts(model.get("rollouts")); },
    get depth() { return model.get("depth"); },
    get what() { return model.get("colour"); },
    get scale() { return scaleOf(this.what, model.get("scale") === "log", this.view); },
    get coloured() { const ms = this.view.models; return ms.find((m) => m.name === model.get("model")) || ms[ms.length - 1]; },
    put(key, value) { model.set(key, value); model.save_changes(); },
    send(message) { model.send({ ...message, view: me }); },
    token(t) { return this.words?.tokens[t] ?? this.view.tokens[t]; },
    hidden(t) { return !this.view.open[t] && this.words?.tokens[t] === undefined; },
  };
}

// Choices above the plot. Made once and changed in place: a person's focus stays where it is.
function makeBar(s, reveal) {
  const choices = {};
  const choice = (key, label) => {
    const select = el("select", { onchange: () => s.put(key, select.value) });
    choices[key] = { select, row: el("label", { className: "dk-choice" }, label + " ", select) };
    return choices[key].row;
  };
  const unmask = button("", reveal, { className: "dk-reveal" });
  const note = span("dk-note", "harmful text is masked in this copy");
  const bar = div("dk-bar", choice("colour", "show"), choice("scale", "scale"), choice("model", "coloured by"), unmask, note);

  function options(key, pairs, value) {
    const { select, row } = choices[key];
    if (select.dkPairs !== String(pairs)) {
      select.dkPairs = String(pairs);
      select.replaceChildren(...pairs.map(([v, text]) => el("option", { value: v, textContent: text })));
    }
    select.value = value;
    row.hidden = pairs.length < 2;
  }
  function draw() {
    const { models, open } = s.view;
    options("colour", Object.entries(QUANTITIES).filter(([w]) => models.some((m) => m[w])), s.what);
    options("scale", [["linear", "linear"], ["log", "logarithmic"]], s.model.get("scale"));
    options("model", models.map((m) => [m.name, m.name]), s.coloured?.name);
    unmask.textContent = s.revealed ? "Mask the text" : "Reveal the text";
    unmask.hidden = !s.model.get("can_reveal");
    note.hidden = !unmask.hidden || open.every(Boolean);
  }
  return { node: bar, draw };
}

// The curves, one line a model. The cursor is a line of its own, so that moving it draws nothing anew.
function makePlot(s, move) {
  const node = el("div", { className: "dk-plot", role: "img" });
  const legend = div("dk-legend");
  const cursor = svg("line", { class: "dk-cursor", y1: PLOT.top, y2: PLOT.height - PLOT.bottom });
  const depth = svg("line", { class: "dk-depth", y1: PLOT.top, y2: PLOT.height - PLOT.bottom });
  const count = () => s.view.tokens.length;
  const width = () => Math.max(240, node.clientWidth || 640);
  const inner = () => width() - PLOT.left - PLOT.right;
  const x = (t) => PLOT.left + inner() * (count() > 1 ? t / (count() - 1) : 0.5);
  const y = (p) => PLOT.top + (PLOT.height - PLOT.top - PLOT.bottom) * (1 - p);

  function axes(scale) {
    const label = (a, b, text, anchor) => svg("text", { x: a, y: b, "text-anchor": anchor, class: "dk-tick" }, text);
    const out = [];
    for (const [p, text] of [[0, scale.low], [1, scale.high]]) {
      out.push(svg("line", { x1: PLOT.left, x2: width() - PLOT.right, y1: y(p), y2: y(p), class: "dk-grid" }));
      out.push(label(PLOT.left - 5, y(p) + 4, text, "end"));
    }
    const step = Math.max(5, Math.ceil(count() / Math.floor(width() / 60) / 5) * 5);
    for (let t = 0; t < count(); t += step) out.push(label(x(t), PLOT.height - 7, t, "middle"));
    return out;
  }
  function curve(m, scale) {
    const points = m[s.what].map((v, t) => `${x(t).toFixed(1)},${y(scale.at(v)).toFixed(1)}`);
    if (points.length === 1) return svg("circle", { cx: x(0), cy: y(scale.at(m[s.what][0])), r: 3, fill: m.color });
    return svg("polyline", { points: points.join(" "), stroke: m.color, "stroke-dasharray": m.dash, class: "dk-line" });
  }
  function key(m) {
    const line = svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: m.color, "stroke-dasharray": m.dash, class: "dk-line" });
    const picture = svg("svg", { width: 26, height: 10, "aria-hidden": true });
    picture.append(line);
    return el("span", { className: "dk-key" }, picture, " " + m.name);
  }
  function mark() {
    const place = (line, t, seen) => {
      for (const end of ["x1", "x2"]) line.setAttribute(end, x(t));
      line.style.display = seen ? "" : "none";
    };
    place(cursor, s.at, count() > 0);
    place(depth, s.depth, s.depth < count());
  }
  function draw() {
    const { models } = s.view, scale = s.scale;
    const picture = svg("svg", { width: width(), height: PLOT.height, "aria-hidden": true });
    picture.append(...axes(scale), depth, cursor, ...models.filter((m) => m[s.what]).map((m) => curve(m, scale)));
    node.replaceChildren(picture);
    const names = models.map((m) => m.name).join(", ");
    node.setAttribute("aria-label", `${QUANTITIES[s.what]} at each token of the response, one line a model: ${names}`);
    const ramp = el("span", { className: "dk-ramp", role: "presentation" });
    const what = `${QUANTITIES[s.what]} of ${s.coloured?.name ?? "–"}: `;
    legend.replaceChildren(div("dk-keys", ...models.map(key)), div("dk-ends", what, scale.low + " ", ramp, " " + scale.high));
    mark();
  }
  node.addEventListener("click", (e) => {
    const px = e.clientX - node.getBoundingClientRect().left - PLOT.left;
    move(Math.round((px / inner()) * (count() - 1)), true);
  });
  return { node, legend, draw, mark };
}

// The response, a cell a token: a list box with one tab stop, in which arrow keys move.
function makeStrip(s, move, go) {
  const label = "Tokens of the response. Arrow keys move, Enter lets the models go on from here.";
  const node = el("div", { className: "dk-strip", tabIndex: 0, role: "listbox", "aria-label": label });
  const cells = [];
  let current = null, from = null;

  function makeCell(t) {
    const c = el("span", { id: `${s.me}-${t}`, role: "option" });
    c.dataset.t = t;
    node.append(c);
    return c;
  }
  // Touches a cell only if it has changed: in live mode a view comes with every token.
  function drawCell(c, t, value, strength) {
    const { said, forced } = s.view, hidden = s.hidden(t), put = forced.includes(t);
    const kinds = { "dk-hidden": hidden, "dk-new": t >= said, "dk-forced": put, "dk-mid": strength > 0.54, "dk-high": strength > 0.73 };
    const names = ["dk-token", ...Object.keys(kinds).filter((k) => kinds[k])].join(" ");
    const aria = `${t}: ${hidden ? "masked" : s.token(t)}, ${QUANTITIES[s.what]} ${number(value)}${put ? ", forced" : ""}`;
    const key = `${names}\n${aria}\n${strength}\n${s.token(t)}`;
    if (c.dkKey === key) return;
    c.dkKey = key;
    c.className = names;
    c.textContent = s.token(t);
    c.style.setProperty("--a", strength.toFixed(3));
    c.setAttribute("aria-label", aria);
  }
  function draw() {
    const values = s.coloured?.[s.what] || [], scale = s.scale, n = s.view.tokens.length;
    while (cells.length > n) cells.pop().remove();
    for (let t = 0; t < n; t++) {
      cells[t] ||= makeCell(t);
      drawCell(cells[t], t, values[t], values[t] == null ? 0 : scale.at(values[t]));
    }
    mark();
  }
  function mark() {
    for (const c of [current, from]) c?.classList.remove("dk-at", "dk-from");
    current?.setAttribute("aria-selected", false);
    [current, from] = [cells[s.at], cells[s.depth]];
    current?.classList.add("dk-at");
    from?.classList.add("dk-from");
    current?.setAttribute("aria-selected", true);
    if (current) node.setAttribute("aria-activedescendant", current.id);
  }
  const show = () => cells[s.at]?.scrollIntoView({ block: "nearest" });

  // The token that stands above (-1) or below (1) the cursor.
  function vertical(direction) {
    const here = cells[s.at].getBoundingClientRect(), middle = here.left + here.width / 2;
    let best = s.at, nearest = Infinity, row = null;
    for (let t = s.at + direction; cells[t]; t += direction) {
      const r = cells[t].getBoundingClientRect();
      if (Math.abs(r.top - here.top) < 4) continue;
      row ??= r.top;
      if (Math.abs(r.top - row) > 4) break;
      const distance = Math.abs(r.left + r.width / 2 - middle);
      if (distance < nearest) [best, nearest] = [t, distance];
    }
    return best;
  }
  const keys = {
    ArrowLeft: () => move(s.at - 1, true), ArrowRight: () => move(s.at + 1, true),
    ArrowUp: () => move(vertical(-1), true), ArrowDown: () => move(vertical(1), true),
    PageUp: () => move(s.at - PAGE_STEP, true), PageDown: () => move(s.at + PAGE_STEP, true),
    Home: () => move(0, true), End: () => move(cells.length - 1, true),
    Enter: () => go(s.at), " ": () => go(s.at),
  };
  node.addEventListener("keydown", (e) => {
    if (!keys[e.key] || !cells.length || e.altKey || e.ctrlKey || e.metaKey) return;
    keys[e.key]();
    e.preventDefault();
    e.stopPropagation(); // JupyterLab has uses of its own for these keys
  });
  const tokenOf = (e) => e.target.closest?.(".dk-token")?.dataset.t;
  node.addEventListener("mouseover", (e) => { if (tokenOf(e) !== undefined) move(+tokenOf(e), false); });
  node.addEventListener("click", (e) => {
    if (tokenOf(e) === undefined) return;
    move(+tokenOf(e), false);
    go(s.at);
    node.focus({ preventScroll: true });
  });
  return { node, draw, mark, show };
}

// What each model thinks before the token under the cursor. Roles are written out, since a grid of its own loses a table's.
function makeInfo(s) {
  const node = div("dk-info");

  function alternative(m, j, k) {
    const [mask, p, open] = m.top[s.at][k], text = s.words?.top[j]?.[s.at]?.[k];
    const live = s.model.get("live"), hidden = !open && text === undefined;
    const force = () => s.send({ type: "force", at: s.at, model: m.name, k });
    const chip = live ? button("", force, { title: "put this token here, and let the model go on" }) : el("span");
    chip.className = "dk-alternative";
    chip.append(span(hidden ? "dk-hidden" : "", text ?? mask), el("small", { textContent: ` ${number(p)}` }));
    if (live) chip.setAttribute("aria-label", `put ${hidden ? `masked alternative ${k + 1}` : text ?? mask} here, probability ${number(p)}`);
    return chip;
  }
  const cell = (role, className, ...children) => el("div", { role, className }, ...children);
  const row = (...cells) => el("div", { role: "row" }, ...cells);

  function head(columns) {
    const next = s.model.get("live") ? "likeliest next; click one to force it" : "likeliest next";
    const names = columns.map((w) => cell("columnheader", "dk-head", QUANTITIES[w]));
    return row(cell("columnheader", "dk-head"), ...names, cell("columnheader", "dk-head dk-tops", next));
  }
  function line(m, j, columns) {
    const value = (w) => (w === "rank" ? String(m.rank[s.at] ?? "–") : number(m[w]?.[s.at]));
    const next = (m.top?.[s.at] || []).map((_, k) => alternative(m, j, k));
    const values = columns.map((w) => cell("cell", "dk-value", value(w)));
    return row(cell("rowheader", "dk-name", dot(m.color), m.name), ...values, cell("cell", "dk-tops", ...next));
  }
  function draw() {
    const { models, tokens } = s.view, t = s.at;
    if (!tokens.length) return node.replaceChildren(div("dk-note", "No response yet."));
    const columns = Object.keys(QUANTITIES).filter((w) => models.some((m) => m[w]));
    const table = el("div", { className: "dk-table", role: "table", "aria-label": `before token ${t}` });
    table.style.setProperty("--columns", columns.length + 1);
    table.append(head(columns), ...models.map((m, j) => line(m, j, columns)));
    const token = el("b", { className: s.hidden(t) ? "dk-hidden" : "", textContent: s.token(t) });
    node.replaceChildren(div("dk-where", `before token ${t} of ${tokens.length}: `, token), table);
  }
  return { node, draw };
}

// What each model says if it goes on from a token, side by side.
function makeRollouts(s, go) {
  const node = div("dk-rollouts");

  function column(x, j) {
    const said = div("dk-said");
    for (const [kind, text] of s.words?.rollouts?.[s.depth]?.[j] || x.parts)
      said.append(kind === "refusal" ? el("mark", { textContent: text }) : span(kind === "hidden" ? "dk-redacted" : "", text));
    const verdict = span(x.refuses ? "dk-verdict dk-refuses" : "dk-verdict", x.verdict);
    return div("dk-rollout", div("dk-name", dot(x.color), x.model, verdict), said);
  }
  function draw() {
    const here = s.rollouts[s.depth], others = Object.keys(s.rollouts).filter((d) => !here || +d !== s.depth);
    const links = others.map((d) => button(d, () => go(+d), { ariaLabel: `rollouts after ${d} tokens` }));
    const title = div("dk-where", here ? `going on after ${s.depth} tokens` : "");
    if (links.length) title.append(div("dk-links", here ? "also after" : "rollouts after", ...links));
    node.replaceChildren(title, div("dk-columns", ...(here || []).map(column)));
    node.hidden = !here && !links.length;
  }
  const verdicts = () => (s.rollouts[s.depth] || []).map((x) => `${x.model} ${x.verdict}`).join(", ");
  return { node, draw, verdicts };
}

// The response as text, to be changed. The masked one is not put into the box: it never leaves Python unasked.
function makeEditor(s) {
  const node = div("dk-edit");
  const open = button("Edit the response", edit);
  const close = () => { node.replaceChildren(open); open.focus(); };
  function edit() {
    const masked = "The response to look at. (The present one is masked; reveal it first to change it.)";
    const box = el("textarea", { rows: 4, value: s.words?.response ?? "", placeholder: masked, "aria-label": "response" });
    const measure = () => { s.send({ type: "response", text: box.value }); close(); };
    node.replaceChildren(box, button("Measure this", measure), button("Cancel", close));
    box.focus();
  }
  node.append(open);
  return { node, draw() { node.hidden = !s.model.get("can_edit"); } };
}

function render({ model, el: root, signal }) {
  const s = sharedState(model);
  const status = el("div", { className: "dk-status", role: "status" }); // read out, not seen
  const bar = makeBar(s, reveal), plot = makePlot(s, move), strip = makeStrip(s, move, go);
  const info = makeInfo(s), rollouts = makeRollouts(s, go), editor = makeEditor(s);
  const parts = [bar, plot, strip, info, rollouts, editor];
  const draw = () => parts.forEach((p) => p.draw());
  const ask = () => { if (s.revealed) s.send({ type: "text" }); };
  let later;

  function move(t, follow) {
    const n = s.view.tokens.length;
    if (!n) return;
    s.at = clamp(t, 0, n - 1);
    strip.mark();
    plot.mark();
    info.draw();
    if (follow) strip.show();
    clearTimeout(later);
    later = setTimeout(() => s.put("cursor", s.at), 80); // Python need not hear of every token on the way
  }
  function go(t) {
    s.put("depth", t);
    if (!s.rollouts[t]) s.send({ type: "go", at: t });
  }
  function reveal() {
    s.revealed = !s.revealed;
    s.words = null;
    ask();
    draw();
    status.textContent = s.revealed ? "text revealed" : "text masked";
  }
  function viewChanged() {
    const { grows, tokens } = s.view;
    if (!grows) s.words = null;
    s.at = grows ? tokens.length - 1 : clamp(s.at, 0, Math.max(0, tokens.length - 1));
    draw();
    if (grows) strip.node.scrollTop = strip.node.scrollHeight;
    ask();
  }
  function rolloutsChanged() {
    if (s.words) s.words.rollouts = null;
    rollouts.draw();
    ask();
  }
  function depthChanged() {
    strip.mark();
    plot.mark();
    rollouts.draw();
  }
  function heard(message) {
    if (message.type !== "text" || message.view !== s.me || !s.revealed) return;
    s.words = message;
    draw();
  }
  function on(event, f) {
    model.on(event, f);
    signal?.addEventListener("abort", () => model.off(event, f));
  }

  on("change:view", viewChanged);
  on("change:rollouts", rolloutsChanged);
  on("change:depth", depthChanged);
  for (const event of ["change:rollouts", "change:depth"]) on(event, () => { status.textContent = rollouts.verdicts(); });
  for (const key of ["colour", "scale", "model", "live", "can_reveal"]) on(`change:${key}`, draw);
  on("change:cursor", () => { if (model.get("cursor") !== s.at) move(model.get("cursor"), true); });
  on("msg:custom", heard);

  root.replaceChildren(div("dk", bar.node, plot.node, plot.legend, strip.node, info.node, rollouts.node, editor.node, status));
  s.at = clamp(model.get("cursor"), 0, Math.max(0, s.view.tokens.length - 1));
  draw();
  const resized = new ResizeObserver(() => plot.draw());
  resized.observe(plot.node);
  return () => resized.disconnect();
}

export default { render };
