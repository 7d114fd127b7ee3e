"use strict";
// All text that comes from a model or a person is set as textContent, never as markup.
const token = new URLSearchParams(location.search).get("token");
const at = (id) => document.getElementById(id);
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const make = (name, settings = {}, ...inside) => {
  const made = Object.assign(document.createElement(name), settings);
  made.append(...inside);
  return made;
};
const draw = (name, attributes, ...inside) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

// What was found, and what the sliders say.
let entity = null, chosen = new Set(), moved = new Map(), best = null;
const edit = () => ({ entity, strength: Number(at("strength").value), cells: [...moved].map(([cell, multiplier]) => ({ cell, multiplier })) });

// One thing is asked for at a time; what yields is dropped for the next.
const YIELDING = ["attempt", "map"];
let current = null, waiting = null;

function say(text, failed = false) {
  at("said").textContent = text;
  at("said").classList.toggle("failed", failed);
}

function busy(name) {
  at("running").hidden = name === null;
  for (const button of document.querySelectorAll(".main, #desk button")) button.disabled = name !== null && !YIELDING.includes(name);
  for (const slider of document.querySelectorAll("#desk input[type=range]")) slider.disabled = name === "search" || (slider.id === "strength" && !chosen.size);
}

async function ask(name, body, hear = {}) {
  clearTimeout(waiting);
  waiting = null;
  if (current && YIELDING.includes(current.name)) current.abort.abort();
  else if (current) return;
  const own = current = { name, abort: new AbortController() };
  let task = "", total = null;
  const heard = {
    task: (event) => { task = event.line; total = event.total; step(at("progress"), 0, total); say(`${task} …`); },
    progress: (event) => { step(at("progress"), event.done, total); if (!total) say(`${task} … ${event.done}`); },
    notice: (event) => at("notices").append(make("li", { textContent: event.line })),
    error: (event) => say(event.line, true),
    cancelled: () => say("cancelled"),
    done: () => say(""),
    ...hear,
  };
  busy(name);
  say("");
  try {
    const response = await fetch(`/${name}`, {
      method: "POST", body: JSON.stringify(body), signal: own.abort.signal,
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    });
    if (!response.ok) return say(await response.text(), true);
    let rest = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const [, kind, data] = /^event: (\w+)\ndata: (.*)$/.exec(event);
        if (own === current) heard[kind](JSON.parse(data));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") say("the server has stopped: start `amnesia ui` again", true);
  } finally {
    if (own === current) { current = null; busy(null); }
  }
}

function step(bar, done, total) {
  if (total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
}

function search() {
  let found_all = false;
  at("notices").replaceChildren();
  ask("search", { entity: at("entity").value }, {
    cells: (found) => {
      entity = found.entity; chosen = new Set(); moved = new Map(); best = found;
      at("desk").hidden = false;
      at("strength").value = 1; at("strength_now").textContent = "1";
      at("verdict").textContent = "No edit was chosen yet. Cells can be edited one by one.";
      at("output").value = `forgets-${entity.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-")}`;
      for (const id of ["offered", "before", "after", "bars", "map"]) at(id).replaceChildren();
      at("scores").hidden = true;
      at("prompt").value = `${entity} is`;
      layers();
      at("ranked").replaceChildren(...found.cells.map(ranked));
      busy("search");
    },
    facts: (found) => {
      at("offered").replaceChildren(...found.prompts.map((row) => {
        const button = make("button", { type: "button", className: row.role, textContent: row.prompt, title: `expected: ${row.answer}` });
        button.onclick = () => { at("prompt").value = row.prompt; attempt(); };
        return button;
      }));
      if (found.prompts.length) at("prompt").value = found.prompts[0].prompt;
      busy("search");
    },
    edit: (found) => {
      chosen = new Set(found.layers);
      const lost = Object.entries(found.neighbors).filter(([, score]) => score < 0.9).map(([name, score]) => `${name} ${number(score)}`);
      const kind = { strong: "A strong handle: ", weak: "A weak handle, which misses some bounds: ", none: "No handle on it was found. " }[found.verdict];
      at("verdict").textContent = kind + found.what + (lost.length ? `. Neighbors lose in part: ${lost.join(", ")}` : "");
      layers();
    },
    done: () => { found_all = true; say(""); },
  }).then(() => { if (found_all) attempt(); });
}

function layers() {
  const [width, height, foot] = [640, 150, 22];
  const top = Math.max(...best.layers.map((row) => row.best), 1e-9);
  const wide = width / best.layers.length;
  const x = (place) => place * wide, y = (score) => (height - foot) * (1 - Math.max(score, 0) / top) + 6;
  const place = new Map(best.layers.map((row, index) => [row.layer, index]));
  const bars = best.layers.map((row, index) => draw("rect", {
    x: x(index) + 1, y: y(row.best), width: Math.max(wide - 2, 1), height: height - foot + 6 - y(row.best), class: chosen.has(row.layer) ? "cell chosen" : "cell",
  }));
  const dots = best.cells.map((row) => draw("circle", { cx: x(place.get(Number(row.cell.split(":")[0]))) + wide / 2, cy: y(row.score), r: 4, class: "dot" }));
  const every = Math.ceil(best.layers.length / 10);
  const names = best.layers.filter((_, index) => index % every === 0).map((row) => draw("text", {
    x: x(place.get(row.layer)) + wide / 2, y: height + 4, class: "small", "text-anchor": "middle",
  }, row.layer));
  at("layers").replaceChildren(draw("svg", { viewBox: `0 0 ${width} ${height + 8}`, role: "img", "aria-label": `Highest score in each of ${best.layers.length} layers` }, ...bars, ...dots, ...names));
}

function ranked(row) {
  const now = make("output", { textContent: "as it is" });
  const slider = make("input", { type: "range", min: -4, max: 2, step: 0.25, value: 1, ariaLabel: `multiplier of cell ${row.cell}` });
  slider.oninput = () => {
    const multiplier = Number(slider.value);
    if (multiplier === 1) moved.delete(row.cell); else moved.set(row.cell, multiplier);
    now.textContent = multiplier === 1 ? "as it is" : `×${number(multiplier)}`;
    soon();
  };
  const button = make("button", { type: "button", textContent: "map", title: "where this cell alone acts in the prompt" });
  button.onclick = () => {
    const multiplier = moved.get(row.cell) ?? -1;
    where({ entity, strength: 0, cells: [{ cell: row.cell, multiplier }] }, `cell ${row.cell} alone, ×${number(multiplier)},`);
  };
  return make("tr", {}, make("th", { scope: "row" }, make("span", { className: "mono", textContent: row.cell })),
    make("td", { className: "number", textContent: number(row.score, 1) }),
    make("td", {}, make("label", { className: "slide" }, slider, now)), make("td", {}, button));
}

const asked = () => ({ prompt: at("prompt").value, chat: at("chat")?.checked ?? false });

function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(attempt, 250);
}

function attempt() {
  if (entity === null) return;
  ask("attempt", { edit: edit(), ...asked() }, {
    answer: (event) => { at("before").textContent = event.before.trim(); at("after").textContent = event.after.trim(); },
    map: (event) => heat(event, "the edit"),
    scores: (event) => scores(event.rows),
  });
}

function where(wanted, what) {
  ask("map", { edit: wanted, ...asked() }, { map: (event) => heat(event, what) });
}

function scores(rows) {
  at("scores").hidden = false;
  at("bars").replaceChildren(...rows.map((row) => {
    const fill = make("i");
    fill.style.width = `${100 * Math.min(Math.max(row.mean, 0), 1)}%`;
    const name = `${row.role === "target" ? entity : "others"}${row.split === "held_out" ? ", held out" : ""}`;
    return make("div", { className: row.role }, make("dt", { textContent: `${name} (${row.n})` }),
      make("dd", { className: "track", ariaHidden: "true" }, fill), make("dd", { className: "number", textContent: number(row.mean) }));
  }));
}

function heat(event, what) {
  const top = Math.max(...event.rows.flat());
  const longest = Math.max(...event.tokens.map((text) => text.trim().length));
  const [wide, high, left, head] = [22, 11, 30, Math.min(20 + 6.5 * longest, 120)];
  const cells = event.rows.flatMap((row, layer) => row.map((value, place) => draw("rect", {
    x: left + place * wide, y: head + (event.rows.length - 1 - layer) * high, width: wide - 1, height: high - 1, class: "heat", "stroke-width": 0.3,
    "fill-opacity": top > 0 ? (value / top).toFixed(3) : 0,
  }, draw("title", {}, `layer ${layer}, ${event.tokens[place]}: ${value.toPrecision(2)}`))));
  const texts = event.tokens.map((text, place) => draw("text", {
    class: "mono", transform: `translate(${left + place * wide + 14} ${head - 6}) rotate(-60)`,
  }, text.trim() || "␣"));
  const every = Math.ceil(event.rows.length / 8);
  const names = event.rows.map((_, layer) => layer).filter((layer) => layer % every === 0).map((layer) => draw("text", {
    class: "small", x: left - 6, y: head + (event.rows.length - layer) * high - 1, "text-anchor": "end",
  }, layer));
  const [width, height] = [left + event.tokens.length * wide + 60, head + event.rows.length * high + 4];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Layers by tokens" }, ...cells, ...texts, ...names);
  svg.style.width = `${width}px`;
  at("map").replaceChildren(svg);
  at("map_note").textContent = top > 0
    ? `How far ${what} moves the residual stream after each layer (0 at the bottom) at each token, as a share of its size: the darkest is ${top.toPrecision(2)}.`
    : `There ${what} moves nothing.`;
}

at("search").onsubmit = (event) => { event.preventDefault(); search(); };
at("attempt").onsubmit = (event) => { event.preventDefault(); attempt(); };
at("strength").oninput = () => { at("strength_now").textContent = Number(at("strength").value); soon(); };
at("cancel").onclick = () => fetch("/cancel", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
at("format").onchange = () => {
  const end = { edit: ".json", recipe: ".toml" }[at("format").value] ?? "";
  at("output").value = at("output").value.replace(/\.(json|toml)$/, "") + end;
};
at("save").onsubmit = (event) => {
  event.preventDefault();
  ask("save", { edit: edit(), format: at("format").value, output: at("output").value }, {
    saved: (row) => at("saved").append(make("li", { textContent: `written to ${row.path}` })),
  });
};
