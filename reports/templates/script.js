"use strict";
(() => {
const $ = (s, e = document) => e.querySelector(s), $$ = (s, e = document) => [...e.querySelectorAll(s)];
const root = document.documentElement;
const el = (tag, props = {}, ...kids) => {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) k in e ? e[k] = v : e.setAttribute(k, v);
  e.append(...kids);
  return e;
};

// Theme: the system's until the button says otherwise.
const theme = $("#theme"), dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
const label = () => {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to ${theme.textContent.toLowerCase()} colours`);
};
theme.hidden = false; label();
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
dark.addEventListener("change", label);

// Tables: sort by data-v where there is one. A heading over several columns is none itself; those below it are.
const heads = table => {
  const [first, second] = table.tHead.rows, below = second ? [...second.cells] : [];
  return [...first.cells].flatMap(th => th.scope === "colgroup" ? below.splice(0, th.colSpan) : [th]);
};
const sortKey = cell => {
  const v = cell.dataset.v;
  if (v !== undefined) return v === "" ? -Infinity : +v;
  const text = cell.textContent.trim();
  return text !== "" && !isNaN(text) ? +text : text;
};
for (const table of $$("table.sortable")) {
  const body = table.tBodies[0], columns = heads(table);
  columns.forEach((th, column) => {
    const button = el("button", {type: "button"}, ...th.childNodes);
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].map(r => [sortKey(r.cells[column]), r]);
      const text = rows.some(([key]) => typeof key === "string");
      const was = th.getAttribute("aria-sort");
      const down = was ? was === "ascending" : !text;
      columns.forEach(o => o.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort(([a], [b]) => (text ? String(a).localeCompare(String(b), "en", {numeric: true}) : a === b ? 0 : a - b) * (down ? -1 : 1));
      body.append(...rows.map(r => r[1]));
    });
  });
}
// Settings among which methods would be lost are shown when asked for, and when filtered for.
for (const table of $$("table")) {
  const more = $$("tbody tr.more", table).length;
  if (!more) continue;
  const button = el("button", {type: "button", className: "unfold"});
  const fold = short => {
    table.classList.toggle("short", short);
    button.setAttribute("aria-expanded", String(!short));
    button.textContent = short ? `Show ${more} more rows` : `Hide ${more} rows`;
  };
  button.addEventListener("click", () => fold(!table.classList.contains("short")));
  fold(true);
  table.after(button);
}
for (const input of $$("input[data-filter]")) input.addEventListener("input", () => {
  const wanted = input.value.toLowerCase(), table = document.getElementById(input.dataset.filter);
  table.classList.toggle("found", wanted !== "");
  for (const row of table.tBodies[0].rows)
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
});

// What scrolls sideways is a stop of the Tab key; what fits is not.
const fits = new ResizeObserver(found => found.forEach(({target: e}) => {
  const over = e.scrollWidth > e.clientWidth;
  e.tabIndex = over ? 0 : -1;
  e.classList.toggle("over", over);
}));
const fit = e => { fits.observe(e); return e; };
$$(".scroll, .strip").forEach(fit);

// The section in view is marked in the bar.
const links = new Map($$("nav a").map(a => [a.hash.slice(1), a]));
const seen = new IntersectionObserver(found => {
  for (const f of found) if (f.isIntersecting) {
    links.forEach((a, id) => id === f.target.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"));
  }
}, {rootMargin: "-15% 0px -80%"});
$$("main section").forEach(s => seen.observe(s));

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => { folded = $$("details:not([open]):not(.noprint)"); folded.forEach(d => { d.open = true; }); });
addEventListener("afterprint", () => folded.forEach(d => { d.open = false; }));

// Blocks: decoded when first needed, then kept.
const cache = new Map();
const block = id => {
  if (!cache.has(id)) cache.set(id, (async () => {
    const e = document.getElementById(id);
    if (!e) return null;
    if (e.type === "application/json") return JSON.parse(e.textContent);
    const bytes = Uint8Array.from(atob(e.textContent.trim()), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  })());
  return cache.get(id);
};

const PAGE = 25;
class Explorer {
  constructor(box) {
    this.box = box; this.n = box.dataset.explorer; this.page = 0; this.open = -1; this.ticket = 0;
    this.ui = Object.fromEntries($$("[data-x]", box).map(e => [e.dataset.x, e]));
    let timer;
    for (const name of ["a", "b", "k", "mode", "sort", "group", "edit", "text"]) this.ui[name]?.addEventListener("input", () => {
      clearTimeout(timer); timer = setTimeout(() => { this.page = 0; this.open = -1; this.show(); }, name === "text" ? 120 : 0);
    });
    this.ui.prev.addEventListener("click", () => { this.page--; this.open = -1; this.show(); });
    this.ui.next.addEventListener("click", () => { this.page++; this.open = -1; this.show(); });
  }
  arm(which) { return +this.ui[which].value; }
  async ranks(arm) { return block(`r${this.n}-${arm}`); }
  async show() {
    const ticket = ++this.ticket;
    this.box.setAttribute("aria-busy", "true");
    let q, ra, rb;
    try {
      [q, ra, rb] = await Promise.all([block(`q${this.n}`), this.ranks(this.arm("a")), this.ranks(this.arm("b"))]);
    } catch (error) {
      this.ui.count.textContent = `This browser cannot decompress the queries (${error.message}). Browsers of 2023 or later can.`;
      return;
    }
    if (ticket !== this.ticket) return;
    this.lower ??= q.texts.map((t, i) => t.toLowerCase() + "\n" + q.ids[i].toLowerCase());
    const k = +this.ui.k.value, mode = this.ui.mode.value, group = +(this.ui.group?.value ?? -1), edit = +(this.ui.edit?.value ?? -1);
    const text = this.ui.text.value.toLowerCase(), hit = r => r > 0 && r <= k, far = r => r || Infinity;
    this.place ??= new Map(q.sampled.map((n, i) => [n, i]));
    const tests = {all: () => true, ab: (x, y) => hit(x) && !hit(y), ba: (x, y) => !hit(x) && hit(y), none: (x, y) => !hit(x) && !hit(y),
      both: (x, y) => hit(x) && hit(y), pics: (x, y, i) => this.place.has(i)};
    const rows = [];
    for (let i = 0; i < q.ids.length; i++)
      if (tests[mode](ra[i], rb[i], i) && (group < 0 || q.group[i] === group) && (edit < 0 || q.edit[i] === edit)
          && (!text || this.lower[i].includes(text))) rows.push(i);
    const gap = i => Math.log(Math.min(far(rb[i]), 1e9)) - Math.log(Math.min(far(ra[i]), 1e9));
    const order = {worst: (x, y) => far(ra[y]) - far(ra[x]) || x - y, gain: (x, y) => gap(y) - gap(x) || x - y, loss: (x, y) => gap(x) - gap(y) || x - y};
    if (order[this.ui.sort.value]) rows.sort(order[this.ui.sort.value]);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    this.ui.count.textContent = `${rows.length} of ${q.ids.length} queries, page ${this.page + 1} of ${pages}`;
    this.ui.prev.disabled = this.page === 0; this.ui.next.disabled = this.page >= pages - 1;
    this.ui.rows.replaceChildren(...rows.slice(this.page * PAGE, this.page * PAGE + PAGE).map(i => this.row(q, i, ra[i], rb[i], hit)));
    this.box.removeAttribute("aria-busy");
  }
  row(q, i, a, b, hit) {
    const rank = r => el("td", {className: hit(r) ? "hit" : "miss"}, r ? String(r) : "none");
    const long = q.texts[i].length > 200 ? q.texts[i].slice(0, 200) + "…" : q.texts[i] || "(no text)";
    const button = el("button", {type: "button"}, el("bdi", {}, long));
    button.setAttribute("aria-expanded", "false");
    const group = [q.groups[q.group[i]], q.edits[q.edit[i]]].filter(Boolean).join(", ");
    const row = el("tr", {className: "q"}, el("th", {scope: "row"}, button), el("td", {className: "l id"}, el("bdi", {}, q.ids[i])),
      el("td", {className: "l id"}, el("bdi", {}, group)), rank(a), rank(b));
    row.dataset.query = q.ids[i];
    let detail;
    row.addEventListener("click", async () => {
      if (detail) { detail.remove(); detail = undefined; row.classList.remove("open"); button.setAttribute("aria-expanded", "false"); return; }
      row.classList.add("open"); button.setAttribute("aria-expanded", "true");
      detail = el("tr", {className: "detail"}, el("td", {colSpan: 5}));
      row.after(detail);
      detail.cells[0].append(await this.detail(q, i, hit));
    });
    return row;
  }
  async pic(id, text, target) {
    const places = await block(`w${this.n}`), kept = places && Object.hasOwn(places, id) ? places[id] : null;
    const face = kept ? el("img", {src: "data:image/webp;base64," + (await block(`p${this.n}-${kept[0]}`))[kept[1]], alt: text, width: 72, height: 72})
      : el("span", {className: "none"}, el("bdi", {}, id));
    face.title = id;
    return el("figure", {className: target ? "pic t" : "pic"}, face, text);
  }
  async detail(q, i, hit) {
    const strips = el("div", {className: "strips"});
    const head = el("div", {className: "ask"}, await this.pic(q.refs[i], "reference"),
      el("div", {className: "q"}, el("p", {}, el("bdi", {className: "caption"}, q.texts[i])), el("span", {className: "soft"}, el("bdi", {}, q.ids[i]))));
    const targets_ = el("div", {className: "targets"});
    for (const t of q.targets[i]) targets_.append(await this.pic(t, "✓ target", true));
    if (q.more[i]) targets_.append(el("span", {className: "soft"}, `and ${q.more[i]} more`));
    head.append(targets_);
    const options = [...this.ui.a.options];
    const place = this.place.get(i);
    if (place !== undefined) for (const arm of new Set([this.arm("a"), this.arm("b")])) {
      const top = await block(`t${this.n}-${arm}`);
      const strip = fit(el("div", {className: "strip", tabIndex: 0, role: "group"}));
      strip.setAttribute("aria-label", "First ten images of " + options[arm].textContent);
      for (const [n, t] of top.top[place].entries()) {
        const target = top.hits[place].includes(n);
        strip.append(await this.pic(top.ids[t], (target ? "✓ " : "") + (n + 1), target));
      }
      strips.append(el("p", {className: "lab"}, el("bdi", {}, options[arm].textContent)), strip);
    }
    const list = el("ul", {className: "ranks"});
    const all = await Promise.all(options.map((_, n) => this.ranks(n)));
    all.forEach((ranks, n) => list.append(el("li", {}, el("bdi", {}, options[n].textContent),
      el("span", {className: hit(ranks[i]) ? "hit" : "miss"}, ranks[i] ? String(ranks[i]) : "none"))));
    strips.append(el("p", {className: "lab"}, "Rank under every method"), list);
    return el("div", {className: "two"}, head, strips);
  }
}
// Started when it comes into view: a page of a hundred runs opens at once.
const started = new WeakSet();
const start = box => { if (!started.has(box)) { started.add(box); new Explorer(box).show(); } };
const boxes = $$("[data-explorer]");
const watch = new IntersectionObserver(found => found.forEach(f => f.isIntersecting && start(f.target)), {rootMargin: "600px"});
boxes.forEach(b => watch.observe(b));
document.addEventListener("focusin", e => { const b = e.target.closest?.("[data-explorer]"); if (b) start(b); });
})();
