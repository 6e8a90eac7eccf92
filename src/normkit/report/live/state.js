"use strict";
// What the page consists of: its data, its language and theme, and the worker that computes.
const Page = (() => {
  const root = document.documentElement;
  const id = (name) => document.getElementById(name);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (name) => JSON.parse(id(name).textContent);

  // ---- data ---------------------------------------------------------------------------------

  const facts = read("facts");
  const bytes = Uint8Array.from(atob(id("blob").textContent), (char) => char.charCodeAt(0)).buffer;
  const TYPES = { uint8: Uint8Array, float32: Float32Array };
  const arrays = Object.fromEntries(Object.entries(facts.arrays).map(
    ([name, [type, length, from]]) => [name, new TYPES[type](bytes, from, length)]));

  // The images of a draw, in an order that depends on its number alone; a batch is its beginning.
  function order(draw) {
    const total = arrays.labels.length;
    const places = Array.from({ length: total }, (_, i) => i);
    let seed = draw * 0x9e3779b9;
    for (let i = total - 1; draw && i > 0; i--) {
      seed = (seed + 0x6d2b79f5) | 0;
      let bits = Math.imul(seed ^ (seed >>> 15), seed | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      const j = ((bits ^ (bits >>> 14)) >>> 0) % (i + 1);
      [places[i], places[j]] = [places[j], places[i]];
    }
    return places;
  }

  // ---- language -----------------------------------------------------------------------------

  const texts = read("texts");
  const wanted = new URLSearchParams(location.search).get("lang") ?? navigator.language;
  let language = wanted.startsWith("zh") ? 1 : 0;
  const say = (key, values = facts.values) =>
    texts[key][language].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  function translate() {
    root.lang = ["en", "zh-Hans"][language];
    document.title = `${say("title")} · normkit`;
    all("[data-t]").forEach((it) => (it.textContent = say(it.dataset.t)));
    all("[data-label]").forEach((it) => it.setAttribute("aria-label", say(it.dataset.label)));
    const other = id("language");
    other.lang = other.hreflang = ["zh", "en"][language];
    other.href = `?lang=${other.lang}`;
  }
  function onLanguage(redraw) {
    id("language").addEventListener("click", (event) => {
      event.preventDefault();
      language = 1 - language;
      try {
        history.replaceState(null, "", `?lang=${["en", "zh"][language]}`);
      } catch {
        // A file's address cannot be changed everywhere; the page changes all the same.
      }
      translate();
      redraw();
    });
  }

  // ---- theme --------------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  function onTheme(redraw) {
    const mark = () => id("theme").setAttribute("aria-pressed", String(dark()));
    id("theme").addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try {
        localStorage.setItem("normkit-theme", root.dataset.theme);
      } catch {
        // Without storage the choice lasts as long as the page.
      }
      mark();
      redraw();
    });
    system.addEventListener("change", () => {
      mark();
      redraw();
    });
    mark();
  }

  // ---- computing ----------------------------------------------------------------------------

  // One question at a time, and of each kind only the latest: what a slider has left is not asked.
  const waiting = { run: null, survey: null };
  let asked = null, worker = null, network = null, count = 0;
  function receive(answer) {
    const { done } = asked;
    asked = null;
    done(answer);
    next();
  }
  function next() {
    if (asked) return;
    const what = waiting.run ? "run" : "survey";
    if (!waiting[what]) return;
    asked = waiting[what];
    waiting[what] = null;
    if (worker) worker.postMessage({ id: ++count, ...asked.question });
    else setTimeout(() => receive(network.answer(asked.question)));
  }
  function ask(question, done) {
    waiting[question.what] = { question, done };
    next();
  }
  // Where no worker may run, the page computes itself, and is less smooth.
  function alone() {
    worker = null;
    network = makeNetwork(arrays, facts);
    if (asked) setTimeout(() => receive(network.answer(asked.question)));
  }
  try {
    const program = id("corrupt").textContent + id("network").textContent;
    const address = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    worker = new Worker(address);
    worker.onerror = alone;
    worker.onmessage = ({ data }) => receive(data);
    worker.postMessage({ arrays, facts });
  } catch {
    alone();
  }

  return {
    id, all, facts, arrays, order, say, translate, onLanguage, onTheme, ask,
    still: matchMedia("(prefers-reduced-motion: reduce)"),
  };
})();
