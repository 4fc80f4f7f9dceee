"use strict";
// The planner's arithmetic over the terms that the page carries ("exact" accounting), and what shows its answers.
// Sums of whole numbers below 2^53 are exact in JavaScript; tests/reports/test_plan_html.py holds them to the planner's.

const data = JSON.parse(document.getElementById("plan-data").textContent);
const LONGEST = 2 ** 40;

// ---- arithmetic ----

const ceilDiv = (a, b) => Math.floor((a + b - 1) / b);

/** Entries of a term that are kept after n tokens. */
function entries(term, n) {
  if (!term.per_token) return 1;
  if (term.remainder) return n % term.remainder;
  const kept = Math.floor(n / term.every);
  return term.limit === null ? kept : Math.min(kept, term.limit);
}

/** One sequence's cache on each of `gpus` GPUs: {growing, bounded, perToken} in bytes. */
function cache(model, n, kvBits, gpus) {
  const sum = { growing: 0, bounded: 0, perToken: 0 };
  for (const layer of model.layers) {
    for (const term of model.groups[layer.group]) {
      const bits = term.bits === null ? kvBits : term.bits;
      const share = Math.max(1, Math.min(gpus, term.heads));
      const size = ceilDiv(term.elements * entries(term, n) * bits, 8 * share);
      if (term.grows) {
        sum.growing += size;
        sum.perToken += (term.elements * bits) / (8 * term.every * share);
      } else {
        sum.bounded += size;
      }
    }
  }
  return sum;
}

function weightsBytes(model, dtype, gpus) {
  const held = model.weights[dtype];
  if (gpus === 1) return held.total;
  const scale = held.listed ? held.total / held.listed : 1;
  return Math.trunc((ceilDiv(held.listed - held.copied, gpus) + held.copied) * scale);
}

function workspaceBytes(model, batch, gpus) {
  const phase = ceilDiv(model.phase, gpus);
  return data.chunk * (2 * model.hidden + phase) * 2 + batch * ceilDiv(model.vocab, gpus) * 6;
}

/** The largest number from 0 to limit that passes, by bisection; null if limit does. */
function largest(passes, limit) {
  if (!passes(1)) return 0;
  let low = 1, high = 2;
  while (passes(high)) {
    if (high >= limit) return null;
    low = high;
    high = Math.min(2 * high, limit);
  }
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (passes(middle)) low = middle; else high = middle;
  }
  return low;
}

/** Everything that is shown, for {model, gpu, gpus, context, batch, weights, kv, utilization}; bytes of one GPU. */
function plan(asked) {
  const model = data.models[asked.model];
  const bits = data.kv_bits[asked.kv];
  const available = Math.trunc(data.gpus[asked.gpu].memory * asked.utilization);
  const weights = weightsBytes(model, asked.weights, asked.gpus);
  const workspace = workspaceBytes(model, asked.batch, asked.gpus);
  const one = cache(model, asked.context, bits, asked.gpus);
  const held = (n) => { const c = cache(model, n, bits, asked.gpus); return c.growing + c.bounded; };
  const required = weights + asked.batch * (one.growing + one.bounded) + workspace;
  return {
    weights, workspace, available, required,
    growing: asked.batch * one.growing,
    bounded: asked.batch * one.bounded,
    perToken: one.perToken,
    fits: required <= available,
    maxContext: largest((n) => asked.batch * held(n) <= available - weights - workspace, LONGEST),
    maxBatch: largest(
      (b) => b * (one.growing + one.bounded) + workspaceBytes(model, b, asked.gpus) <= available - weights, 2 ** 30),
  };
}

/** The share of n tokens that a query sees itself in a layer. */
function shareSeen(layer, n) {
  if (layer.full) return 1;
  return layer.window === null ? 0 : Math.min(1, layer.window / n);
}

// ---- words ----

const whole = (x) => Math.round(x).toLocaleString("en-US");
const gb = (x) => (x >= 1e9 ? (x / 1e9).toFixed(1) + " GB" : x >= 1e6 ? (x / 1e6).toFixed(0) + " MB" : whole(x) + " B");
const kib = (x) => (x >= 1024 ? +(x / 1024).toFixed(1) + " KiB" : +x.toFixed(1) + " B");
const furthest = (n) => (n === null ? "; at any context" : n === 0 ? "" : `; up to ${whole(n)} tokens`);
const orNone = (x) => (x === null ? "no bound" : whole(x));

// ---- the page ----

const $ = (id) => document.getElementById(id);
const PARTS = ["weights", "growing", "bounded", "workspace"];

function make(tag, attributes = {}, text = "") {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function fill(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
  select.value = String(chosen);
}

/** The slider runs over the logarithm: 16 steps for each doubling. */
const fromSlider = (step) => { const n = 2 ** (step / 16); return step % 16 === 0 ? Math.round(n) : Math.round(n / 256) * 256 || Math.round(n); };
const toSlider = (n) => Math.round(16 * Math.log2(n));

const state = { ...data.start };

function bar(node, found, scale) {
  const scaled = (x) => `${(100 * x) / scale}%`;
  for (const part of PARTS) node.querySelector(`.${part}`).style.width = scaled(found[part]);
  node.querySelector(".line").style.left = scaled(found.available);
}

function makeBar() {
  const node = make("div", { class: "bar" });
  node.append(...PARTS.map((part) => make("b", { class: part })), make("u", { class: "line", title: "memory to be used" }));
  return node;
}

function show() {
  const model = data.models[state.model];
  const found = plan(state);
  const n = state.context;
  $("context-text").value = whole(n);
  $("batch-text").textContent = whole(state.batch);
  $("utilization-text").textContent = Math.round(100 * state.utilization) + "%";
  const verdict = $("verdict");
  verdict.className = found.fits ? "yes" : "no";
  verdict.textContent = found.fits ? "fits" : "does not fit";
  const cards = state.gpus > 1 ? ` on each of ${state.gpus} GPUs` : "";
  $("sum").textContent = `${gb(found.required)} needed${cards}, ${gb(found.available)} may be used`;
  bar($("bar"), found, Math.max(found.required, found.available) * 1.04);
  for (const part of PARTS) $(`size-${part}`).textContent = gb(found[part]);
  $("per-token").textContent = kib(found.perToken);
  $("max-context").textContent = orNone(found.maxContext);
  $("max-batch").textContent = orNone(found.maxBatch);
  const beyond = model.advertised !== null && n > model.advertised;
  $("beyond").textContent = beyond ? `${whole(n)} tokens are beyond the ${whole(model.advertised)} that the model advertises` : "";
  const cells = $("strip").children;
  let everything = 0, mixing = 0;
  model.layers.forEach((layer, index) => {
    const share = shareSeen(layer, n);
    cells[index].firstChild.style.height = `${100 * share}%`;
    cells[index].title = `layer ${index}: ${layer.words}; sees ${(100 * share).toFixed(share < 0.1 ? 2 : 0)}% of ${whole(n)} tokens`;
    if (layer.kind !== "none") mixing += 1;
    if (share === 1) everything += 1;
  });
  $("seen").textContent = `${everything} of ${mixing} layers see all of ${whole(n)} tokens`;
  compare();
}

function compare() {
  const all = data.models.map((model, index) => {
    const asked = { ...state, model: index };
    if (!model.splits.includes(asked.gpus)) asked.gpus = 1;
    return [asked, plan(asked)];
  });
  const scale = 1.04 * Math.max(...all.flatMap(([, found]) => [found.required, found.available]));
  all.forEach(([asked, found], index) => {
    const row = $("compare").children[index];
    row.className = index === state.model ? "row chosen" : "row";
    bar(row.querySelector(".bar"), found, scale);
    const short = asked.gpus === state.gpus ? "" : ` (1 GPU: its heads do not split ${state.gpus} ways)`;
    row.querySelector(".says").textContent =
      `${found.fits ? "fits" : "does not fit"}, ${gb(found.required)}${furthest(found.maxContext)}${short}`;
    row.querySelector(".says").className = found.fits ? "says yes" : "says no";
  });
}

/** Another model: its strip, its formats, and how many GPUs its heads allow. */
function choose(index) {
  state.model = index;
  const model = data.models[index];
  if (!(state.weights in model.weights)) state.weights = "stored";
  fill($("weights"), Object.keys(model.weights).map((dtype) => [dtype, dtype === "stored" ? `stored: ${model.stored}` : dtype]), state.weights);
  if (!model.splits.includes(state.gpus)) state.gpus = 1;
  fill($("gpus"), model.splits.map((count) => [count, String(count)]), state.gpus);
  $("about").textContent = model.about;
  $("strip").replaceChildren(...model.layers.map((layer) => {
    const cell = make("i", { style: `--colour: ${data.colours[layer.kind]}` });
    cell.append(make("b"));
    return cell;
  }));
  const sorts = new Map();
  for (const layer of model.layers) {
    const key = `${layer.kind}\n${layer.words}`;
    sorts.set(key, (sorts.get(key) || 0) + 1);
  }
  $("kinds").replaceChildren(...[...sorts].map(([key, count]) => {
    const [kind, words] = key.split("\n");
    const span = make("span");
    span.append(make("i", { class: "swatch", style: `--colour: ${data.colours[kind]}` }), `${count} × ${words}`);
    return span;
  }));
  $("model").value = String(index);
  show();
}

function setContext(n) {
  if (!Number.isFinite(n) || n < 1) return show();
  state.context = Math.min(Math.round(n), LONGEST);
  $("context").value = String(toSlider(state.context));
  show();
}

function start() {
  fill($("model"), data.models.map((model, index) => [index, model.name]), state.model);
  fill($("gpu"), data.gpus.map((gpu, index) => [index, `${gpu.name} (${gb(gpu.memory)})`]), state.gpu);
  fill($("kv"), Object.keys(data.kv_bits).map((dtype) => [dtype, dtype]), state.kv);
  $("bar").replaceWith(Object.assign(makeBar(), { id: "bar" }));
  $("compare").replaceChildren(...data.models.map((model, index) => {
    const row = make("div", { class: "row" });
    const name = make("button", { type: "button" }, model.name);
    name.addEventListener("click", () => choose(index));
    row.append(name, makeBar(), make("div", { class: "says" }));
    return row;
  }));
  $("model").addEventListener("input", (event) => choose(Number(event.target.value)));
  $("context").addEventListener("input", (event) => { state.context = Math.max(1, fromSlider(Number(event.target.value))); show(); });
  $("context-text").addEventListener("change", (event) => setContext(Number(event.target.value.replace(/[,_\s]/g, ""))));
  $("batch").addEventListener("input", (event) => { state.batch = Math.max(1, Math.round(2 ** (Number(event.target.value) / 8))); show(); });
  $("utilization").addEventListener("input", (event) => { state.utilization = Number(event.target.value) / 100; show(); });
  for (const name of ["gpu", "gpus"]) $(name).addEventListener("input", (event) => { state[name] = Number(event.target.value); show(); });
  for (const name of ["kv", "weights"]) $(name).addEventListener("input", (event) => { state[name] = event.target.value; show(); });
  $("context").value = String(toSlider(state.context));
  $("batch").value = String(Math.round(8 * Math.log2(state.batch)));
  $("utilization").value = String(Math.round(100 * state.utilization));
  choose(state.model);
}

start();
