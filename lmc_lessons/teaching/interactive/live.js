// Two networks, every network on two paths between them, run here: plain JavaScript, nothing precomputed.
// data: {layers: [[in, out]..], half, networks: [base64 x 3], images, scale, labels, width, height, classNames, names, xLabel, ends}

// ---- the networks

function between(a, b, t) {
  const out = new Float32Array(a.length);
  for (let i = 0; i < a.length; i++) out[i] = (1 - t) * a[i] + t * b[i];
  return out;
}

// Mean cross-entropy in nats, accuracy, and the predicted class of each image.
function evaluate(logits, labels, classes) {
  const predicted = new Uint8Array(labels.length);
  let loss = 0;
  let right = 0;
  for (let r = 0; r < labels.length; r++) {
    const row = logits.subarray(r * classes, (r + 1) * classes);
    predicted[r] = best(row);
    let total = 0;
    for (let c = 0; c < classes; c++) total += Math.exp(row[c] - row[predicted[r]]);
    loss += Math.log(total) + row[predicted[r]] - row[labels[r]];
    if (predicted[r] === labels[r]) right++;
  }
  return { loss: loss / labels.length, accuracy: right / labels.length, predicted };
}

// ---- the figure

const STEPS = 100;
const STRIDE = 5;

function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const nets = data.networks.map((n) => floats(n, data.half));
  const pixels = data.width * data.height;
  const images = data.scale ? Float64Array.from(bytes(data.images), (v) => v / data.scale) : Float64Array.from(new Float32Array(bytes(data.images).buffer));
  const labels = bytes(data.labels);
  const classes = data.classNames.length;
  const panels = [{ title: "loss", unit: "nats" }, { title: "accuracy", unit: "%" }];
  const visited = [new Map(), new Map()];
  let current = [null, null];
  let position = 0;
  let control = null;
  let pad = null;

  const network = (path, k) => between(nets[0], nets[path + 1], k / STEPS);
  const measure = (path, k) => evaluate(forward(network(path, k), data.layers, images, labels.length), labels, classes);

  // The height of the loss axis is settled once, so that curves do not jump; no point is drawn for it.
  const scout = [0, 35, 50, 65, 100].map((k) => measure(0, k));
  const scoutLoss = scout.map((s) => s.loss);
  const specs = panels.map((panel, p) => ({
    ...panel, xLabel: data.xLabel, ends: data.ends, xSpan: [0, 1], 
    ySpan: p ? fractionSpan(scout.map((s) => s.accuracy - 0.01)) : span([...scoutLoss, Math.max(...scoutLoss) * 1.05], true),
    curves: [{ x: [], y: [] }, { x: [], y: [] }], gap: STRIDE / STEPS, dots: true, onPick: (v) => control.set(Math.round(v * STEPS)),
  }));
  const charts = specs.map(chart);
  stage.append(legend(data.names), el("div", { class: "lmc-charts lmc-pair" }, ...charts.map((c) => c.node)));

  const table = readout(data.names, panels);
  const status = el("p", { class: "lmc-status" });
  const views = data.names.map((name, k) => bars(name, k, data.classNames));

  function refresh() {
    [0, 1].forEach((path) => {
      const ks = [...visited[path].keys()].sort((a, b) => a - b);
      specs.forEach((spec, p) => { spec.curves[path] = { x: ks.map((k) => k / STEPS), y: ks.map((k) => visited[path].get(k)[panels[p].title]) }; });
    });
    const worst = Math.max(...specs[0].curves.flatMap((c) => c.y));
    if (worst > specs[0].ySpan[1]) specs[0].ySpan = span([0, worst * 1.1], true);
    const least = Math.min(...specs[1].curves.flatMap((c) => c.y));
    if (least < specs[1].ySpan[0]) specs[1].ySpan = fractionSpan([least]);
    charts.forEach((c) => c.draw());
  }

  function visit(k) {
    [0, 1].forEach((path) => { if (!visited[path].has(k)) visited[path].set(k, measure(path, k)); });
  }

  function say() {
    const weights = nets[0].length.toLocaleString("en");
    return `${labels.length} images through two networks of ${weights} parameters`;
  }

  function predict() {
    if (!pad) return;
    [0, 1].forEach((path) => views[path].set(softmax(forward(current[path], data.layers, pad.pixels, 1)), pad.truth));
  }

  function go(k) {
    position = k;
    const began = performance.now();
    const fresh = !visited[0].has(k);
    visit(k);
    const spent = performance.now() - began;
    if (fresh) { status.textContent = `Computed in this page: ${say()} in ${spent.toFixed(0)} ms.`; refresh(); }
    current = [network(0, k), network(1, k)];
    panels.forEach((panel, p) => charts[p].mark(k / STEPS, [0, 1].map((path) => visited[path].get(k)[panel.title])));
    [0, 1].forEach((path) => panels.forEach((panel, p) => table.set(path, p, visited[path].get(k)[panel.title])));
    predict();
  }

  control = slider(root, {
    name: data.xLabel, max: STEPS, value: 0, interval: calm.matches ? 1000 : 70, step: 2, text: (k) => (k / STEPS).toFixed(2),
    spoken: (k) => `${k / STEPS}; ` + data.names.map((n, path) => `${n}: loss ${show(visited[path].get(k).loss)}, accuracy ${show(visited[path].get(k).accuracy, "%")}`).join("; "),
    onInput: go,
  });

  // One point, then a breath for the page, so that tracing never freezes it.
  const trace = el("button", { type: "button", class: "lmc-primary", onclick: () => {
    trace.disabled = true;
    const began = performance.now();
    (function next(k) {
      if (!root.isConnected) return;
      visit(k);
      refresh();
      charts.forEach((c, p) => c.mark(position / STEPS, [0, 1].map((path) => visited[path].get(position)[panels[p].title])));
      status.textContent = k < STEPS ? `Tracing: ${k / STRIDE + 1} of ${STEPS / STRIDE + 1} points` : `Whole path traced in this page in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
      if (k < STEPS) setTimeout(next, 0, k + STRIDE);
    })(0);
  } }, "Trace the whole path");

  pad = drawingPad(root, data, images, labels, pixels, () => predict(), (chosen) => {
    const wrong = visited[0].get(position).predicted;
    for (let s = 1; s <= labels.length; s++) {
      const k = (chosen + s) % labels.length;
      if (wrong[k] !== labels[k]) return k;
    }
    return null;
  });
  card.append(control.node, el("div", { class: "lmc-live" }, trace, status), table.node,
    el("div", { class: "lmc-try" }, pad.node, pad.tools, el("div", { class: "lmc-says" }, ...views.map((v) => v.node))));
  control.tell();
  followTheme(root, () => pad.draw());
}

// ---- the pad: a test image, or what the reader draws

function drawingPad(root, data, images, labels, count, changed, nextMistake) {
  const { width, height } = data;
  const pixels = new Float64Array(count);
  const zoom = Math.ceil(216 / width);
  const canvas = el("canvas", {
    width: width * zoom, height: height * zoom, tabindex: 0, role: "application", "aria-roledescription": "drawing pad",
    "aria-label": `Drawing pad, ${height} by ${width} pixels. Arrow keys move, space fills or clears a pixel.`,
  });
  const what = el("p", { class: "lmc-hint", "aria-live": "polite" });
  const state = { pixels, truth: null };
  const small = document.createElement("canvas");
  Object.assign(small, { width, height });
  let chosen = 0;
  let cell = null;
  let erase = false;
  let lastPoint = null;

  function draw() {
    paint(root, small, pixels);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (cell === null || document.activeElement !== canvas) return;
    pen.lineWidth = 3;
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--lmc-c0");
    pen.strokeRect((cell % width) * zoom + 1.5, Math.floor(cell / width) * zoom + 1.5, zoom - 3, zoom - 3);
  }

  function pick(k) {
    chosen = k;
    pixels.set(images.subarray(k * count, (k + 1) * count));
    state.truth = labels[k];
    what.textContent = `Test image ${k + 1} of ${labels.length}, true class: ${data.classNames[labels[k]]}. Draw over it, or clear it first.`;
    draw();
    changed();
  }

  function mine() {
    if (state.truth !== null) what.textContent = "Your drawing. Both networks answer as you draw.";
    state.truth = null;
    draw();
    changed();
  }

  function clear() {
    pixels.fill(0);
    state.truth = -1;
    mine();
  }

  // A soft brush: full ink near the pointer, less at the rim, as a scanned pen stroke has.
  function dab(x, y) {
    const radius = Math.max(1.05, width / 16);
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        const ink = Math.min(1, Math.max(0, 1.6 * (1 - Math.hypot(j + 0.5 - x, i + 0.5 - y) / radius)));
        const k = i * width + j;
        pixels[k] = erase ? Math.min(pixels[k], 1 - ink) : Math.max(pixels[k], ink);
      }
    }
  }

  function stroke(event) {
    const box = canvas.getBoundingClientRect();
    const point = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    const from = lastPoint || point;
    const parts = Math.max(1, Math.ceil(Math.hypot(point[0] - from[0], point[1] - from[1]) / 0.4));
    for (let k = 1; k <= parts; k++) dab(from[0] + (k / parts) * (point[0] - from[0]), from[1] + (k / parts) * (point[1] - from[1]));
    lastPoint = point;
    mine();
  }
  canvas.addEventListener("pointerdown", (event) => { cell = null; lastPoint = null; canvas.setPointerCapture(event.pointerId); stroke(event); });
  canvas.addEventListener("pointermove", (event) => { if (canvas.hasPointerCapture(event.pointerId)) stroke(event); });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (cell === null) cell = Math.floor(height / 2) * width + Math.floor(width / 2);
    else if (move) {
      const i = Math.min(height - 1, Math.max(0, Math.floor(cell / width) + move[0]));
      const j = Math.min(width - 1, Math.max(0, (cell % width) + move[1]));
      cell = i * width + j;
    }
    if (move) return draw();
    pixels[cell] = pixels[cell] > 0.5 ? 0 : 1;
    mine();
  });

  const button = (text, onclick) => el("button", { type: "button", onclick }, text);
  const eraser = button("Erase", () => { erase = !erase; eraser.setAttribute("aria-pressed", String(erase)); });
  eraser.setAttribute("aria-pressed", "false");
  const mistake = button(`Next mistake of the ${data.names[0]}`, () => {
    const k = nextMistake(chosen);
    if (k === null) what.textContent = `At this position the ${data.names[0]} makes no mistake on these images. Move the slider.`;
    else pick(k);
  });
  state.node = el("div", { class: "lmc-pad" }, canvas);
  state.tools = el("div", { class: "lmc-tools" }, what, el("div", { class: "lmc-buttons" }, button("Clear", clear), eraser, button("Next image", () => pick((chosen + 1) % labels.length)), mistake));
  state.draw = draw;
  setTimeout(() => pick(0), 0);
  return state;
}
