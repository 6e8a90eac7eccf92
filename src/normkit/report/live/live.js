"use strict";
// The controls, and what they show.
(() => {
  if (!document.documentElement.classList.contains("scripted")) return;
  const { id, all, facts, arrays, say, ask, still } = Page;
  const CLASSES = 10, MODES = ["remembered", "batch", "mixed"];
  const values = (name) => id(name).dataset.values.split(" ").map(Number);
  const SIZES = values("n"), PRIORS = values("prior");
  const STORIES = [
    { severity: 0, n: 64, mode: "remembered" },
    { kind: "fog", severity: 3, n: 64, mode: "remembered" },
    { kind: "fog", severity: 3, n: 64, mode: "batch" },
    // Two images for which the mixture helps, as it does for most: the bars count all.
    { kind: "fog", severity: 3, n: 2, mode: "batch", draw: 3 },
    { kind: "fog", severity: 3, n: 2, mode: "mixed", prior: 4, draw: 3 },
  ];
  const state = { n: 64, kind: "fog", severity: 0, mode: "remembered", prior: 16, draw: 0, look: 0, story: 0 };
  let shown = null, others = { means: [], right: [0, 0, 0], images: 0 };

  // ---- asking -------------------------------------------------------------------------------

  const settings = () => {
    const { n, kind, severity, mode, prior } = state;
    return { n, kind, severity, mode, prior };
  };
  function run() {
    const question = { what: "run", ...settings(), indices: Page.order(state.draw).slice(0, state.n) };
    ask(question, (answer) => show(question, answer));
  }
  let pause = 0;
  // All images, in batches of this size: asked for once a slider rests.
  function survey() {
    clearTimeout(pause);
    pause = setTimeout(() => {
      const question = { what: "survey", ...settings(), from: 0 };
      const key = JSON.stringify(question), sum = { means: [], right: [0, 0, 0], images: 0 };
      const take = (answer) => {
        if (key !== JSON.stringify({ what: "survey", ...settings(), from: 0 })) return;
        if (sum.means.length < 40) sum.means.push(...answer.means);
        answer.hits.forEach((hits, m) => (sum.right[m] += hits));
        sum.images = answer.from;
        if (answer.done) {
          others = sum;
          id("controls").classList.remove("asking");
          tellSurvey();
          drawMeans();
        } else ask({ ...question, from: answer.from }, take);
      };
      ask(question, take);
    }, 160);
  }

  function change(news) {
    const same = Object.keys(news).every((name) => name === "draw");
    Object.assign(state, same ? {} : { story: 0 }, news);
    state.look = Math.min(state.look, state.n - 1);
    tellControls();
    run();
    if (same) return;
    others.means = [];
    id("controls").classList.add("asking");
    survey();
  }

  // ---- showing ------------------------------------------------------------------------------

  function show(question, { logits, layers, pixels }) {
    const answers = question.indices.map((index, k) => {
      const row = logits.subarray(k * CLASSES, (k + 1) * CLASSES), top = Math.max(...row);
      const total = row.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
      return { index, label: arrays.labels[index], as: row.indexOf(top), p: Math.round(100 / total) };
    });
    shown = { question, logits, layers, pixels, answers, hits: answers.map(({ label, as }) => label === as) };
    drawResult();
  }

  const percent = (share) => (100 * share).toFixed(1);
  const images = (n) => say(n === 1 ? "images_1" : "images_n", { n });
  const corruption = ({ kind, severity }) => (severity ? `${say(kind)} ${severity}` : say("none"));
  let speaking = 0;
  function drawResult() {
    if (!shown) return;
    const { question, hits, pixels } = shown, n = hits.length;
    const right = hits.filter(Boolean).length;
    id("right").textContent = say("right_of", { right, n });
    id("share").textContent = `${percent(right / n)} %`;
    id("at").textContent = `${corruption(question)} · ${say(question.mode)}`;
    id("refused").hidden = n > 1 || (question.mode !== "batch" && !(question.mode === "mixed" && !question.prior));
    Drawing.images(id("images"), pixels, hits, state.look);
    tellLook();
    drawMeans();
    tellPool();
    if (id("wrong").open) listWrong();
    clearTimeout(speaking);
    speaking = setTimeout(() => {
      const words = { images: images(n), corruption: corruption(question), mode: say(question.mode), right, n };
      id("said").textContent = say("said", words);
    }, 700);
  }

  const name = (label) => say(`class${label}`);
  function tellLook() {
    const answer = shown.answers[state.look];
    if (!answer) return;
    const words = { is: name(answer.label), as: name(answer.as), p: answer.p };
    const text = say(shown.hits[state.look] ? "is_right" : "is_wrong", words);
    id("looked").textContent = text;
    id("which").max = shown.hits.length;
    id("which").value = state.look + 1;
    id("which").setAttribute("aria-valuetext", `${state.look + 1}: ${text}`);
  }

  function listWrong() {
    id("wrong").querySelector("tbody").innerHTML = shown.answers.map(({ label, as, p }, k) =>
      label === as ? "" : `<tr><td class="n">${k + 1}</td><td>${name(label)}</td><td>${name(as)}</td><td class="n">${p}</td></tr>`,
    ).join("");
  }

  // Means of the chosen layer, in remembered deviations from the remembered mean.
  function drawMeans() {
    if (!shown) return;
    const at = Number(id("layer").value), layer = shown.layers[at];
    const centre = arrays[`norm${at + 1}.population_mean`], spread = arrays[`norm${at + 1}.population_var`];
    const off = (means) => Array.from(means, (mean, c) => (mean - centre[c]) / Math.sqrt(spread[c]));
    const [batch, used] = [off(layer.batch.mean), off(layer.used.mean)];
    const first = (row) => row.slice(0, 16);
    const words = { x: say("channel"), y: say("means_y") };
    const rows = others.means.map((means) => first(off(means[at])));
    Charts.means(id("means"), { batch: first(batch), used: first(used), others: rows }, words);
    const size = (row) => Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / row.length).toFixed(2);
    id("means-said").textContent = say("means_said", { layer: at + 1, off: size(batch), used: size(used) });
  }

  const LAYERS = [[6, 576], [16, 64], [120, 1], [84, 1]];
  function tellPool() {
    const pool = document.querySelector("[name=pool]:checked").value, at = Number(id("layer").value);
    const [c, s] = LAYERS[at], n = state.n;
    const key = pool === "in" && s === 1 ? "pool_in_1" : `pool_${pool}`;
    const means = { bn: c, ln: n, gn: n * c / 2, in: n * c }[pool];
    const each = { bn: n * s, ln: c * s, gn: 2 * s, in: s }[pool];
    const words = { layer: at + 1, means: means.toLocaleString("en"), n, c, s, values: each.toLocaleString("en") };
    id("pool-said").textContent = say(key, words);
  }
  function drawCube() {
    id("cube").innerHTML = Drawing.cube(document.querySelector("[name=pool]:checked").value);
    tellPool();
  }

  // ---- controls -----------------------------------------------------------------------------

  // Hundred is all of it, and less is not.
  const share = (part) => (part > 0.99 && part < 1 ? 99 : Math.round(100 * part));
  function tellControls() {
    const slide = (slider, place, text) => {
      id(slider).value = place;
      id(`${slider}-value`).textContent = text;
      id(slider).setAttribute("aria-valuetext", text);
    };
    const { n, prior, severity } = state;
    slide("n", SIZES.indexOf(n), images(n));
    slide("severity", severity, say(severity ? "strength_n" : "strength_0", { n: severity }));
    slide("prior", PRIORS.indexOf(prior), say("prior_value", { prior, share: share(prior / (prior + n)) }));
    id("kind").value = state.kind;
    MODES.forEach((mode) => (document.querySelector(`[name=mode][value=${mode}]`).checked = mode === state.mode));
    all("[data-story]").forEach((it) => it.setAttribute("aria-pressed", String(Number(it.dataset.story) === state.story)));
    const story = state.story ? say(`story${state.story}_says`, { prior }) : "";
    if (id("told").textContent !== story) id("told").textContent = story;
  }
  function tellSurvey() {
    if (!others.images) return;
    MODES.forEach((mode, m) => {
      const share = others.right[m] / others.images;
      const row = document.querySelector(`.survey[data-mode=${mode}]`);
      row.textContent = `${percent(share)} %`;
      row.parentElement.querySelector("i").style.width = `${100 * share}%`;
    });
    id("surveyed").textContent = say("surveyed", { n: state.n, images: others.images });
  }

  id("n").addEventListener("input", () => change({ n: SIZES[id("n").value] }));
  id("prior").addEventListener("input", () => change({ prior: PRIORS[id("prior").value], mode: "mixed" }));
  id("severity").addEventListener("input", () => change({ severity: Number(id("severity").value) }));
  id("kind").addEventListener("change", () => change({ kind: id("kind").value, severity: state.severity || 3 }));
  function look(at) {
    state.look = at;
    drawResult();
  }
  id("which").addEventListener("input", () => look(Number(id("which").value) - 1));
  all("[name=mode]").forEach((it) => it.addEventListener("change", () => change({ mode: it.value })));
  all("[name=pool]").forEach((it) => it.addEventListener("change", drawCube));
  all("[data-story]").forEach((it) => it.addEventListener("click", () => {
    const story = Number(it.dataset.story);
    change({ draw: 0, ...STORIES[story - 1], story });
  }));
  id("layer").addEventListener("change", () => {
    drawMeans();
    tellPool();
  });
  id("images").addEventListener("click", ({ offsetX, offsetY }) => {
    const at = Drawing.imageAt(offsetX, offsetY);
    if (at < state.n) look(at);
  });
  id("controls").addEventListener("submit", (event) => event.preventDefault());
  id("next").addEventListener("click", () => change({ draw: state.draw + 1 }));
  let playing = 0;
  id("play").addEventListener("click", () => {
    playing = playing ? clearInterval(playing) : setInterval(() => change({ draw: state.draw + 1 }), still.matches ? 2000 : 400);
    id("play").setAttribute("aria-pressed", String(Boolean(playing)));
    id("play").textContent = say(playing ? "pause" : "play");
  });
  id("wrong").addEventListener("toggle", () => shown && listWrong());
  id("save").addEventListener("click", () => {
    const { question: { what, ...taken }, logits, layers, pixels, answers } = shown;
    const list = (moments) => ({ mean: [...moments.mean], variance: [...moments.variance] });
    const content = {
      ...taken, labels: answers.map(({ label }) => label), pixels: [...pixels], logits: [...logits],
      layers: layers.map(({ batch, used }) => ({ batch: list(batch), used: list(used) })),
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: "application/json" }));
    link.download = "normkit-live.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });

  // ---- beginning ----------------------------------------------------------------------------

  function redraw() {
    id("play").textContent = say(playing ? "pause" : "play");
    tellControls();
    tellSurvey();
    drawResult();
    drawCube();
    Training.draw();
  }
  Page.translate();
  Page.onLanguage(redraw);
  Page.onTheme(redraw);
  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (width === contentRect.width) return;
    width = contentRect.width;
    requestAnimationFrame(() => {
      drawResult();
      Training.draw();
    });
  }).observe(id("main"));
  change({ story: 1 });
  redraw();
})();
