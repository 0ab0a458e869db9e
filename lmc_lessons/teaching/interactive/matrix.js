// A matrix that changes step by step, beside the numbers that change with it.
// data: {n, frames: base64 uint8, low, high, rows, columns, value, steps, labels, series: [{title, unit, y}]}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const all = bytes(data.frames);
  const size = data.n * data.n;
  const frames = data.labels.map((_, k) => all.subarray(k * size, (k + 1) * size));
  const index = data.labels.map((_, k) => k);
  const last = frames.length - 1;
  let control = null;

  const heat = heatmap(root, data, frames);
  const every = Math.ceil((last + 1) / 8);
  const at = index.filter((k) => k % every === 0);
  const whole = data.series.map((s) => s.y.every(Number.isInteger));
  const say = (i, k) => show(data.series[i].y[k], data.series[i].unit, whole[i]);
  const charts = data.series.map((s) => chart({
    ...s, xLabel: data.steps, xSpan: [0, Math.max(1, last)], ySpan: span(s.y, false), xTicks: { at, text: at.map(String) },
    curves: [{ x: [], y: [] }, { x: index, y: s.y }], dots: true, height: data.series.length > 1 ? 170 : 215, onPick: (v) => control.set(Math.round(v)),
  }));
  stage.append(el("div", { class: "lmc-matrix" }, heat.node, el("div", { class: "lmc-charts" }, ...charts.map((c) => c.node))));

  const head = el("tr", {}, el("th", { scope: "col" }, ""), ...data.series.map((s) => el("th", { scope: "col" }, s.title)));
  const where = el("th", { scope: "row" });
  const cells = data.series.map(() => el("td", {}));
  const table = el("table", { class: "lmc-readout" }, el("thead", {}, head), el("tbody", {}, el("tr", {}, where, ...cells)));

  control = slider(root, {
    name: data.steps, max: last, value: 0, interval: 900,
    text: (k) => data.labels[k],
    spoken: (k) => `${data.labels[k]}; ` + data.series.map((s, i) => `${s.title} ${say(i, k)}`).join(", "),
    onInput(k) {
      heat.to(k);
      charts.forEach((c, i) => c.mark(k, [null, data.series[i].y[k]]));
      where.textContent = data.labels[k];
      cells.forEach((cell, i) => { cell.textContent = say(i, k); cell.dataset.value = data.series[i].y[k]; });
    },
  });
  card.append(control.node, table);
  control.tell();
  followTheme(root, () => heat.draw());
}

// The matrix in pixels, axes in SVG around it. Between frames it fades, unless motion is unwelcome.
function heatmap(root, data, frames) {
  const art = svg("svg", { "aria-hidden": "true" });
  const canvas = el("canvas", { width: data.n, height: data.n });
  const key = el("canvas", { width: 256, height: 1 });
  const node = el("div", { class: "lmc-chart lmc-heat" }, art, canvas, key);
  const shown = Float32Array.from(frames[0]);
  const title = svg("text", { class: "lmc-title", x: 0, y: 14 }, data.value);
  let goal = 0;
  let running = 0;
  let width = 0;

  function pixels(pen, values, table, n, m) {
    const picture = pen.createImageData(n, m);
    for (let i = 0; i < values.length; i++) {
      const v = Math.round(values[i]);
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = table[3 * v + c];
      picture.data[4 * i + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
  }

  function cells() {
    pixels(canvas.getContext("2d"), shown, ramp(root, data.low < 0), data.n, data.n);
  }

  function axes() {
    width = Math.floor(node.clientWidth);
    if (!width) return;
    const left = 46;
    const top = 50;
    const side = width - left - 10;
    const unit = side / data.n;
    const place = (c, x, y, w, h) => Object.assign(c.style, { left: x + "px", top: y + "px", width: w + "px", height: h + "px" });
    place(canvas, left, top, side, side);
    const barWidth = Math.min(130, side * 0.4);
    const bar = left + 7 * data.lowText.length + 4;
    place(key, bar, 28, barWidth, 10);
    pixels(key.getContext("2d"), Array.from({ length: 256 }, (_, k) => k), ramp(root, data.low < 0), 256, 1);
    art.setAttribute("width", width);
    art.setAttribute("height", top + side + 42);
    const step = Math.max(1, ticks(0, data.n, 5).step);
    const parts = [
      title,
      svg("text", { x: bar - 6, y: 37, "text-anchor": "end" }, data.lowText),
      svg("text", { x: bar + barWidth + 6, y: 37 }, data.highText),
      svg("rect", { class: "lmc-grid", x: left - 0.5, y: top - 0.5, width: side + 1, height: side + 1 }),
      svg("text", { x: left + side / 2, y: top + side + 36, "text-anchor": "middle" }, data.columns),
      svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${top + side / 2}) rotate(-90)` }, data.rows),
    ];
    for (let k = 0; k < data.n; k += step) {
      const c = (k + 0.5) * unit;
      parts.push(svg("text", { x: left + c, y: top + side + 18, "text-anchor": "middle" }, String(k)));
      parts.push(svg("text", { x: left - 7, y: top + c + 4, "text-anchor": "end" }, String(k)));
    }
    art.replaceChildren(...parts);
  }

  function hover(event) {
    const box = canvas.getBoundingClientRect();
    const j = Math.floor(((event.clientX - box.left) / box.width) * data.n);
    const i = Math.floor(((event.clientY - box.top) / box.height) * data.n);
    const inside = i >= 0 && j >= 0 && i < data.n && j < data.n;
    const value = data.low + (frames[goal][i * data.n + j] / 255) * (data.high - data.low);
    title.textContent = inside ? `${data.value}, row ${i}, column ${j}: ${minus(value.toFixed(2))}` : data.value;
  }
  node.addEventListener("pointermove", hover);
  node.addEventListener("pointerleave", () => { title.textContent = data.value; });
  new ResizeObserver(() => { if (Math.floor(node.clientWidth) !== width) axes(); }).observe(node);

  function to(k) {
    const from = Float32Array.from(shown);
    const mine = ++running;
    goal = k;
    const began = performance.now();
    const length = calm.matches || !node.isConnected ? 0 : 350;
    (function step(now) {
      if (mine !== running) return;
      const u = length ? Math.min(1, Math.max(0, (now - began) / length)) : 1;
      for (let i = 0; i < shown.length; i++) shown[i] = from[i] + u * (frames[k][i] - from[i]);
      cells();
      if (u < 1) requestAnimationFrame(step);
    })(began);
  }
  return { node, to, draw() { cells(); axes(); } };
}
