"use strict";
// One recorded training, and the slider over its steps.
const Training = (() => {
  const { id, all, facts, arrays, say, still } = Page;
  const AROUND = 20, steps = arrays.sizes.length;
  const rests = Array.from(arrays.sizes, (size, i) => (size < facts.batch_size ? i : -1)).filter((i) => i >= 0);
  // The recorded arrays are (layer, step, of batch, moving average or population).
  const column = (name, layer, which) =>
    Array.from({ length: steps }, (_, i) => arrays[name][(layer * steps + i) * 3 + which]);
  const accuracy = (which) => Array.from({ length: steps }, (_, i) => 100 * arrays.accuracy[2 * i + which]);
  const [withMoving, withPopulation] = [accuracy(0), accuracy(1)];
  const signed = (value) => value.toFixed(2).replace("-", "−");
  let playing = 0;

  function draw() {
    const layer = Number(id("record-layer").value || 0), at = Number(id("step").value) - 1;
    const moment = document.querySelector("[name=moment]:checked").value;
    const data = {
      batch: column(moment, layer, 0), moving: column(moment, layer, 1), population: column(moment, layer, 2),
      accuracy: withMoving, recalibrated: withPopulation, rests,
    };
    const upper = say(moment === "means" ? "mean" : "variance");
    const words = { upper, lower: say("accuracy_y"), x: say("step"), key: [layer, moment, upper].join() };
    const from = Math.min(Math.max(0, at - AROUND), steps - 1 - 2 * AROUND);
    const span = id("around").checked && steps > 2 * AROUND ? [from, from + 2 * AROUND] : [0, steps - 1];
    Charts.record(id("record"), data, at, span, words);
    const mean = (which) => arrays.means[(layer * steps + at) * 3 + which];
    const deviation = Math.sqrt(arrays.variances[(layer * steps + at) * 3 + 2]);
    id("step-value").textContent = say("step_value", { step: at + 1, steps });
    id("step").setAttribute("aria-valuetext", say("step_value", { step: at + 1, steps }));
    id("step-said").textContent = say("step_said", {
      step: at + 1, size: arrays.sizes[at], moving: signed(data.moving[at]), population: signed(data.population[at]),
      off: (Math.abs(mean(1) - mean(2)) / deviation).toFixed(2),
      accuracy: withMoving[at].toFixed(1), recalibrated: withPopulation[at].toFixed(1),
    });
    id("record-play").textContent = say(playing ? "pause" : "play");
    all("#record-layer option").forEach((it, k) =>
      (it.textContent = say("record_layer", { layer: k + 1, channel: facts.channels[k] + 1 })));
  }
  function go(step) {
    id("step").value = step;
    draw();
  }

  id("record-layer").innerHTML = facts.channels.map((_, k) => `<option value="${k}"></option>`).join("");
  id("record-layer").addEventListener("change", draw);
  all("[name=moment]").forEach((it) => it.addEventListener("change", draw));
  id("around").addEventListener("change", draw);
  id("step").addEventListener("input", draw);
  id("to-rest").addEventListener("click", () => {
    const at = Number(id("step").value) - 1;
    go((rests.find((rest) => rest > at) ?? rests[0]) + 1);
  });
  id("record-play").addEventListener("click", () => {
    const forward = () => {
      const at = Number(id("step").value);
      go(at % steps + 1);
    };
    playing = playing ? clearInterval(playing) : setInterval(forward, still.matches ? 1000 : 80);
    id("record-play").setAttribute("aria-pressed", String(Boolean(playing)));
    draw();
  });
  return { draw };
})();
