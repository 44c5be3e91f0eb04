// Shows the trace that is embedded in the page. All its text is untrusted and becomes text nodes only.
"use strict";
(() => {
  const trace = JSON.parse(document.getElementById("trace").textContent);
  const steps = trace.steps, count = steps.length;
  const at = (id) => document.getElementById(id);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const wide = window.devicePixelRatio || 1;
  let now = 0, timer = null, read = null;

  function element(tag, kind, text) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Decodes a recall into pairs [step, weight].
  const pairsOfRecall = new WeakMap();
  function pairs(recall) {
    if (!pairsOfRecall.has(recall)) {
      const levels = atob(recall.levels), result = [];
      let place = 0;
      for (const [first, many] of recall.runs)
        for (let step = first; step < first + many; step++)
          result.push([step, levels.charCodeAt(place++) / 255 * recall.most]);
      pairsOfRecall.set(recall, result);
    }
    return pairsOfRecall.get(recall);
  }

  const names = [];
  for (const step of steps)
    for (const recall of step.recalls) if (!names.includes(recall.name)) names.push(recall.name);
  const recallOf = (step, name) => steps[step].recalls.find((recall) => recall.name === name);
  // Name of the displayed recall: the selected one, or the first of the step if the step lacks it.
  const displayedName = () => (recallOf(now, read) || steps[now].recalls[0] || { name: read }).name;
  const number = (value) => value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)));
  const short = (value) => Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(0) : String(Number(value.toPrecision(2)));

  // Adds a timeline row: name, current value, and a canvas; a click goes to the step.
  function row(parent, name, height) {
    const box = element("div", "row"), head = element("p"), canvas = element("canvas");
    const label = element("span", "", name), value = element("span"), scale = element("div", "scale"), plot = element("div", "plot");
    scale.setAttribute("aria-hidden", "true");
    plot.append(scale, canvas);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    canvas.style.height = height + "px";
    head.append(label, value);
    box.append(head, plot);
    parent.append(box);
    canvas.addEventListener("click", (event) => {
      const place = canvas.getBoundingClientRect();
      go(Math.floor((event.clientX - place.left) / place.width * count));
    });
    return { box, canvas, value, scale, height };
  }

  // Labels the top and the bottom of a row with their values.
  function setScale(line, high, low) {
    const labels = high === low ? ["", short(low), ""] : [short(high), short(low)];
    line.scale.replaceChildren(...labels.map((text) => element("span", "", text)));
  }

  // Adds step numbers under the rows, as many as fit.
  function axis(parent) {
    const box = element("div", "axis"), ticks = element("div", "ticks");
    box.setAttribute("aria-hidden", "true");
    box.append(element("span", "", "step"), ticks);
    parent.append(box);
    return ticks;
  }

  function drawAxis(ticks) {
    const room = Math.max(2, ticks.clientWidth / 56), least = Math.max(1, count / room);
    const power = 10 ** Math.floor(Math.log10(least));
    const size = [1, 2, 5, 10].map((part) => part * power).find((part) => part >= least);
    ticks.replaceChildren();
    for (let step = 0; step < count; step += size) {
      const tick = element("span", "", String(step));
      tick.style.left = 100 * (step + 0.5) / count + "%";
      ticks.append(tick);
    }
  }

  function prepareCanvas(line) {
    const canvas = line.canvas;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * wide));
    canvas.height = Math.round(line.height * wide);
    return canvas.getContext("2d");
  }

  function drawMarker(pen, canvas) {
    const each = canvas.width / count;
    pen.fillStyle = style("--now");
    pen.fillRect((now + 0.5) * each - wide, 0, 2 * wide, canvas.height);
  }

  const tracks = Object.entries(trace.tracks).map(([name, values]) => {
    const numbers = values.filter((value) => value !== null);
    const low = numbers.reduce((a, b) => Math.min(a, b), 0), high = numbers.reduce((a, b) => Math.max(a, b), 0);
    const line = row(at("tracks"), name, 44);
    setScale(line, high, low);
    return { line, values, low, high };
  });

  function drawTrack({ line, values, low, high }) {
    const pen = prepareCanvas(line), { width, height } = line.canvas, pad = 3 * wide;
    const x = (step) => (step + 0.5) / count * width;
    const y = (value) => height - pad - (high > low ? (value - low) / (high - low) : 0.5) * (height - 2 * pad);
    pen.fillStyle = style("--line");
    pen.fillRect(0, y(0), width, wide);
    pen.strokeStyle = style("--track");
    pen.fillStyle = style("--track");
    pen.lineWidth = 1.5 * wide;
    pen.beginPath();
    let before = null;
    values.forEach((value, step) => {
      if (value !== null && before !== null) pen.lineTo(x(step), y(value));
      else if (value !== null) { pen.moveTo(x(step), y(value)); pen.fillRect(x(step) - wide, y(value) - wide, 2 * wide, 2 * wide); }
      before = value;
    });
    pen.stroke();
    drawMarker(pen, line.canvas);
    line.value.textContent = number(values[now]);
  }

  const recalls = names.map((name) => ({ name, line: row(at("recalls"), name, 26) }));
  const axes = [tracks.length && at("tracks"), names.length && at("recalls")].filter(Boolean).map(axis);
  for (const { line } of recalls) line.scale.classList.add("heat");
  for (const { name, line } of recalls) line.box.querySelector("p").addEventListener("click", () => choose(name));

  function drawRecall({ name, line }) {
    const pen = prepareCanvas(line), { width, height } = line.canvas, each = width / count;
    const recall = recallOf(now, name), weights = recall ? pairs(recall) : [];
    let total = 0;
    for (const [step, weight] of weights) {
      total += weight;
      const strength = recall.most > 0 ? 0.12 + 0.88 * weight / recall.most : 0;
      pen.fillStyle = "rgba(" + style("--heat") + "," + strength.toFixed(3) + ")";
      pen.fillRect(step * each, 0, Math.max(each, wide), height);
    }
    drawMarker(pen, line.canvas);
    line.box.classList.toggle("chosen", name === displayedName());
    line.value.textContent = weights.length ? "Σ " + Number(total.toPrecision(2)) + ", max " + number(recall.most) : "none";
    line.scale.style.visibility = weights.length ? "visible" : "hidden";
    setScale(line, weights.length ? recall.most : 0, 0);
  }

  function drawMoments() {
    const place = at("moments");
    place.replaceChildren();
    place.classList.toggle("told", !trace.pictures.length);
    const recall = recallOf(now, displayedName());
    const largest = recall ? pairs(recall).slice().sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 8) : [];
    if (!largest.length) place.append(element("p", "none", "None."));
    for (const [step, weight] of largest) {
      const button = element("button", "moment"), bar = element("div", "weight");
      if (steps[step].picture !== null) {
        const image = element("img");
        image.alt = "";
        image.src = trace.pictures[steps[step].picture];
        button.append(image);
      }
      button.append(element("span", "", trace.unit === "steps" ? "step " + step : step + ": " + steps[step].text.slice(0, 80)));
      button.append(element("span", "", number(weight)));
      bar.style.width = (recall.most > 0 ? 100 * weight / recall.most : 0) + "%";
      button.append(bar);
      button.dataset.step = step;
      button.addEventListener("click", () => go(step));
      place.append(button);
    }
  }

  function drawOptions(step) {
    const place = at("options");
    place.replaceChildren();
    const options = Object.entries(step.options);
    // The joint action of a team is not among the options, which are attention weights between agents.
    if (step.choice && !Object.hasOwn(step.options, step.choice)) place.append(element("p", "none", "action: " + step.choice));
    for (const [name, chance] of options) {
      const box = element("div", "option" + (name === step.choice ? " chosen" : "")), bar = element("progress");
      bar.max = 1;
      bar.value = chance;
      const label = element("span", "", name);
      label.title = name;
      box.append(label, bar, element("span", "", (100 * chance).toFixed(1) + " %"));
      place.append(box);
    }
  }

  // A text is shown in full; the color of a token is its weight at the current step.
  const words = trace.kind !== "language model" ? [] : steps.map((step, number) => {
    const word = element("span", "word", step.text);
    word.addEventListener("click", () => go(number));
    return word;
  });
  if (words.length) at("said").replaceChildren(...words);

  // State of each token under a cache policy, from the next step with a record: the tokens of a prompt are read
  // in one call. The share of heads is the strength of the color.
  const fates = [
    ["read", "kept and read"], ["fetched", "kept and fetched for this token"],
    ["passed", "kept, not read"], ["dropped", "evicted"],
  ];
  const keeps = words.length > 0 && names.includes("kept");
  const visible = { read: keeps, fetched: names.includes("fetched"), passed: names.includes("read") };
  visible.dropped = keeps && steps.some((step, place) => recallOf(place, "kept") && pairs(recallOf(place, "kept")).length <= place);
  at("legend").hidden = !keeps;
  for (const [kind, text] of fates) if (visible[kind]) at("legend").append(element("span", "word " + kind, text));

  function drawFates() {
    let source = now;
    while (source < count - 1 && !recallOf(source, "kept")) source++;
    const shares = ["kept", "read", "fetched"].map((name) => {
      const recall = recallOf(source, name);
      return recall ? new Map(pairs(recall)) : null;
    });
    const of = (place, number) => shares[place] ? shares[place].get(number) || 0 : 0;
    words.forEach((word, number) => {
      const kept = of(0, number), read = shares[1] ? of(1, number) : kept, fetched = of(2, number);
      const fate = number > source || !shares[0] ? "" : fetched > 0 ? "fetched" : read > 0 ? "read" : kept > 0 ? "passed" : "dropped";
      const strength = fate === "fetched" ? fetched : fate === "read" ? read : kept;
      word.className = "word " + fate + (number === now ? " now" : "") + (number > source ? " later" : "");
      word.style.setProperty("--share", (0.25 + 0.75 * strength).toFixed(3));
    });
  }

  // Tables by layer and head: one row of cells per layer, colored relative to the largest value.
  function drawTables() {
    for (const [name, rows] of Object.entries(trace.tables || {})) {
      const values = Object.values(rows).flat(), high = values.reduce((a, b) => Math.max(a, b), 0);
      const low = values.reduce((a, b) => Math.min(a, b), high), grid = element("div", "table");
      for (const [label, numbers] of Object.entries(rows)) {
        const line = element("div", "cells");
        line.append(element("span", "label", label));
        for (const value of numbers) {
          const cell = element("span", "cell", numbers.length > 16 ? "" : Number.isInteger(value) ? value : value.toFixed(2));
          cell.title = label + ": " + number(value);
          cell.style.setProperty("--share", (high > 0 ? Math.max(value, 0) / high : 0).toFixed(3));
          line.append(cell);
        }
        grid.append(line);
      }
      const range = values.length ? " (" + (low === high ? "all " + number(low) : number(low) + " to " + number(high)) + ")" : "";
      at("tables").append(element("h2", "", name + range));
      if (low < high) at("tables").append(grid);
    }
  }

  function drawWords() {
    if (keeps && ["kept", "read", "fetched"].includes(read)) return drawFates();
    const recall = read === null ? undefined : recallOf(now, read);
    const weights = new Map(recall ? pairs(recall) : []);
    words.forEach((word, number) => {
      const strength = weights.has(number) ? 0.05 + 0.75 * weights.get(number) / recall.most : 0;
      word.style.backgroundColor = "rgba(" + style("--heat") + "," + strength.toFixed(3) + ")";
      word.classList.toggle("now", number === now);
      word.classList.toggle("later", number > now);
    });
  }

  function draw() {
    const step = steps[now], image = at("picture");
    image.hidden = step.picture === null;
    if (step.picture !== null) image.src = trace.pictures[step.picture];
    image.alt = "step " + now;
    if (words.length) drawWords();
    else at("said").textContent = step.text;
    at("said").hidden = !words.length && !step.text;
    at("where").textContent = "step " + now + " of " + (count - 1) + (trace.unit === "steps" ? "" : ", " + number(step.time) + " " + trace.unit);
    at("slider").value = now;
    at("read").value = String(names.indexOf(displayedName()));
    drawOptions(step);
    tracks.forEach(drawTrack);
    recalls.forEach(drawRecall);
    drawMoments();
  }

  function go(step) {
    now = Math.max(0, Math.min(count - 1, step));
    draw();
  }

  function choose(name) {
    read = name;
    draw();
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    at("play").textContent = "▶ play";
  }

  function play() {
    if (timer !== null) return pause();
    if (now === count - 1) go(0);
    at("play").textContent = "⏸ pause";
    timer = setInterval(() => { if (now < count - 1) go(now + 1); else pause(); }, 1000 / Math.min(trace.rate, 30));
  }

  // Small pictures are scaled up without smoothing.
  at("picture").addEventListener("load", (event) => event.target.classList.toggle("small", event.target.naturalWidth < 200));
  at("title").textContent = document.title = trace.title;
  for (const [name, text] of [["kind", trace.kind], ...Object.entries(trace.about)]) {
    const box = element("div");
    box.append(element("dt", "", name), element("dd", "", text));
    at("about").append(box);
  }
  at("memory").hidden = !names.length;
  if (!count) {
    at("where").textContent = "no steps";
    return;
  }
  names.forEach((name, index) => {
    const option = element("option", "", name);
    option.value = String(index);
    at("read").append(option);
  });
  at("slider").max = count - 1;
  at("slider").addEventListener("input", () => go(Number(at("slider").value)));
  at("read").addEventListener("change", () => choose(names[Number(at("read").value)]));
  const other = (by) => { if (names.length) choose(names[(names.indexOf(read) + by + names.length) % names.length]); };
  const moves = {
    first: () => go(0), back: () => go(now - 1), play, on: () => go(now + 1), last: () => go(count - 1),
    farBack: () => go(now - 10), farOn: () => go(now + 10), before: () => other(-1), after: () => other(1),
  };
  for (const id of ["first", "back", "play", "on", "last"]) at(id).addEventListener("click", moves[id]);
  const keys = {
    ArrowLeft: "back", ArrowRight: "on", Home: "first", End: "last", " ": "play",
    PageUp: "farBack", PageDown: "farOn", ",": "before", ".": "after",
  };
  document.addEventListener("keydown", (event) => {
    const move = keys[event.key], inside = event.target.tagName;
    if (!move || event.ctrlKey || event.metaKey || event.altKey || inside === "SELECT") return;
    if (event.key === " " && inside === "BUTTON") return;
    event.preventDefault();
    moves[move]();
  });
  window.addEventListener("resize", () => { axes.forEach(drawAxis); draw(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  axes.forEach(drawAxis);
  drawTables();
  // A trace of retained tokens opens at its last step.
  if (keeps) now = count - 1;
  if (names.length) choose(names[0]); else draw();
})();
