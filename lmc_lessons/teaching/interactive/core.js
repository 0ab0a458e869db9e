// What every figure shares: elements, numbers, theme, charts, a slider with Play, probability bars.
// The file is inlined into one function together with one kind's `build(root, data)`; nothing is global.

const SVG = "http://www.w3.org/2000/svg";
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const mounted = window.__lmcFigures || (window.__lmcFigures = { count: 0 });

// ---- elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function uid(root, name) {
  return root.id + "-" + name;
}

// ---- numbers

// The fewest decimals that tell the multiples of a step apart.
function decimals(step) {
  let places = 0;
  while (places < 8 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6) places++;
  return places;
}

function minus(text) {
  return /^-0(\.0+)?$/.test(text) ? text.slice(1) : text.replace("-", "\u2212");
}

// A readout. "%" means that values are fractions, `whole` that they are counts.
function show(value, unit, whole) {
  if (value === null || !isFinite(value)) return "\u2013";
  if (unit === "%") return minus((100 * value).toFixed(1)) + " %";
  if (whole) return minus(String(value));
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return minus(value.toExponential(2));
  return minus(value.toFixed(size < 100 ? 3 : 1));
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12 * power);
  const places = decimals(step);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const at = [];
  for (let k = first; k <= last; k++) at.push(k * step);
  return { at, step, text: at.map((v) => minus(v.toFixed(places))) };
}

// The range of an axis: whole ticks around the values, from zero when `zero` says so.
function span(values, zero) {
  const finite = values.filter((v) => v !== null && isFinite(v));
  let low = finite.length ? Math.min(...finite) : 0;
  let high = finite.length ? Math.max(...finite) : 1;
  if (zero) { low = Math.min(0, low); high = Math.max(0, high); }
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) { const pad = Math.abs(high) * 0.05 || 1; low -= zero ? 0 : pad; high += pad; }
  const step = ticks(low, high, 4).step;
  return [Math.floor(low / step + 1e-6) * step, Math.ceil(high / step - 1e-6) * step];
}

function fractionSpan(values) {
  const low = Math.min(...values.filter((v) => v !== null && isFinite(v)));
  return low < 0.6 ? [0, 1] : [Math.floor(low * 20 - 1e-6) / 20, 1];
}

function bytes(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

// ---- theme

function rgb(color) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d");
  pen.fillStyle = color;
  pen.fillRect(0, 0, 1, 1);
  return Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3));
}

function cssColor(root, name) {
  return rgb(getComputedStyle(root).getPropertyValue(name).trim());
}

// Light text means a dark page, whichever host draws it. `redraw` runs when that changes.
function followTheme(root, redraw) {
  let dark = null;
  function look() {
    if (!root.isConnected) return;
    const [r, g, b] = rgb(getComputedStyle(root).color);
    const now = 0.2126 * r + 0.7152 * g + 0.0722 * b > 127;
    if (now === dark) return;
    dark = now;
    root.dataset.dark = String(dark);
    redraw();
  }
  look();
  const watcher = new MutationObserver(() => {
    if (!root.isConnected) watcher.disconnect();
    else { look(); setTimeout(look, 350); }
  });
  for (const node of [document.documentElement, document.body]) {
    watcher.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-theme", "theme", "data-jp-theme-light"] });
  }
  setTimeout(look, 600);
}

function ramp(root, signed) {
  const stops = (signed ? ["--lmc-neg", "--lmc-low", "--lmc-pos"] : ["--lmc-low", "--lmc-mid", "--lmc-high"]).map((n) => cssColor(root, n));
  const table = new Uint8Array(768);
  for (let v = 0; v < 256; v++) {
    const u = v / 127.5;
    const k = u < 1 ? 0 : 1;
    for (let c = 0; c < 3; c++) table[3 * v + c] = Math.round(stops[k][c] + (u - k) * (stops[k + 1][c] - stops[k][c]));
  }
  return table;
}

// Pixels in [0, 1]: paper to ink, in the colours of the theme.
function paint(root, canvas, pixels) {
  const paper = cssColor(root, "--lmc-paper");
  const ink = cssColor(root, "--lmc-ink");
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < pixels.length; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = paper[c] + pixels[i] * (ink[c] - paper[c]);
    picture.data[4 * i + 3] = 255;
  }
  pen.putImageData(picture, 0, 0);
}

// ---- curves: a colour, a dash and a marker each, so that none is told by colour alone

function marker(index, x, y, size, dot) {
  const style = { class: `lmc-mark lmc-f${index % 4}` + (dot ? " lmc-dot" : "") };
  if (index % 4 === 0) return svg("circle", { ...style, cx: x, cy: y, r: size });
  if (index % 4 === 1) return svg("rect", { ...style, x: x - size, y: y - size, width: 2 * size, height: 2 * size });
  const points = index % 4 === 2 ? [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]] : [[0, -1.3], [1.3, 1], [-1.3, 1]];
  return svg("polygon", { ...style, points: points.map((p) => [x + p[0] * size, y + p[1] * size].join()).join(" ") });
}

function key(name, index) {
  const art = svg("svg", { width: 34, height: 14, "aria-hidden": "true" },
    svg("line", { class: "lmc-curve lmc-s" + (index % 4), x1: 0, x2: 34, y1: 7, y2: 7 }), marker(index, 17, 7, 4));
  return el("span", { class: "lmc-key" }, art, el("span", {}, name));
}

function legend(names) {
  return el("div", { class: "lmc-legend" }, ...names.map(key));
}

// A line chart drawn at its real size, so that text stays 12 px from phone to desktop.
// spec: {title, unit, xLabel, ends, xTicks, xSpan, ySpan, curves: [{x, y, low, high}], gap, dots, height, foot, under, over, onPick}
// `under` and `over` draw more, below and above the curves, from {sx, sy, box}.
function chart(spec) {
  const art = svg("svg", { "aria-hidden": "true" });
  const host = el("div", { class: "lmc-chart" }, art);
  let width = 0;
  let at = null;
  let sx = (v) => v;
  let sy = (v) => v;
  let cursor = svg("g", {});
  let box = { left: 0, right: 0, top: 26, bottom: 0 };

  function frame() {
    const percent = spec.unit === "%";
    const factor = percent ? 100 : 1;
    const yTicks = ticks(spec.ySpan[0] * factor, spec.ySpan[1] * factor, 4);
    const xTicks = spec.xTicks || ticks(spec.xSpan[0], spec.xSpan[1], width < 300 ? 4 : 5);
    const height = spec.height || (width < 330 ? 190 : 215);
    box = { left: 12 + 7 * Math.max(...yTicks.text.map((t) => t.length)), right: width - 12, top: 28, bottom: height - (spec.foot || 42) };
    const [x0, x1] = spec.xSpan;
    const [y0, y1] = spec.ySpan;
    sx = (v) => box.left + ((v - x0) / (x1 - x0 || 1)) * (box.right - box.left);
    sy = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
    art.setAttribute("width", width);
    art.setAttribute("height", height);
    const unit = spec.unit ? ` (${spec.unit})` : "";
    const parts = [svg("text", { class: "lmc-title", x: 0, y: 14 }, spec.title + unit)];
    yTicks.at.forEach((v, k) => {
      const y = Math.round(sy(v / factor)) + 0.5;
      parts.push(svg("line", { class: "lmc-grid", x1: box.left, x2: box.right, y1: y, y2: y }));
      parts.push(svg("text", { x: box.left - 7, y: y + 4, "text-anchor": "end" }, yTicks.text[k]));
    });
    parts.push(svg("line", { class: "lmc-axis", x1: box.left, x2: box.right, y1: box.bottom + 0.5, y2: box.bottom + 0.5 }));
    xTicks.at.forEach((v, k) => {
      const x = Math.round(sx(v)) + 0.5;
      parts.push(svg("line", { class: "lmc-axis", x1: x, x2: x, y1: box.bottom, y2: box.bottom + 5 }));
      parts.push(svg("text", { x, y: box.bottom + 18, "text-anchor": "middle" }, xTicks.text[k]));
    });
    const row = height - 6;
    const ends = spec.ends || [];
    const room = box.right - box.left - 6.6 * (spec.xLabel.length + ends.join("").length) > 10;
    if (room && ends.length) {
      parts.push(svg("text", { x: box.left - 4, y: row }, ends[0]));
      parts.push(svg("text", { x: box.right + 4, y: row, "text-anchor": "end" }, ends[1]));
    }
    parts.push(svg("text", { x: (box.left + box.right) / 2, y: row, "text-anchor": "middle" }, spec.xLabel));
    return parts;
  }

  function band(curve, index) {
    const clip = (v) => Math.min(spec.ySpan[1], Math.max(spec.ySpan[0], v));
    const edge = (list, order) => order.map((k) => [sx(curve.x[k]).toFixed(1), sy(clip(list[k])).toFixed(1)].join());
    const forward = curve.x.map((_, k) => k);
    const points = edge(curve.high, forward).concat(edge(curve.low, forward.slice().reverse()));
    return svg("polygon", { class: "lmc-band lmc-f" + (index % 4), points: points.join(" ") });
  }

  function line(curve, index) {
    let path = "";
    let last = null;
    curve.x.forEach((x, k) => {
      const joined = last !== null && (!spec.gap || x - last <= spec.gap + 1e-9);
      path += (joined ? "L" : "M") + sx(x).toFixed(1) + " " + sy(curve.y[k]).toFixed(1);
      last = x;
    });
    return svg("path", { class: "lmc-curve lmc-s" + (index % 4), d: path || "M0 0" });
  }

  function move() {
    cursor.replaceChildren();
    if (at === null || !width) return;
    const x = sx(at.x);
    cursor.append(svg("line", { class: "lmc-cursor", x1: x, x2: x, y1: box.top - 6, y2: box.bottom }));
    at.y.forEach((y, k) => { if (y !== null) cursor.append(marker(k, x, sy(y), 5)); });
  }

  function draw() {
    width = Math.floor(host.clientWidth);
    if (!width) return;
    const parts = frame();
    if (spec.under) parts.push(...spec.under({ sx, sy, box }));
    spec.curves.forEach((c, k) => { if (c.low) parts.push(band(c, k)); });
    spec.curves.forEach((c, k) => parts.push(line(c, k)));
    if (spec.dots) {
      spec.curves.forEach((c, k) => c.x.forEach((x, i) => parts.push(marker(k, sx(x), sy(c.y[i]), 2.6, true))));
    }
    if (spec.over) parts.push(...spec.over({ sx, sy, box }));
    cursor = svg("g", {});
    art.replaceChildren(...parts, cursor);
    move();
  }

  function pick(event) {
    const u = (event.clientX - art.getBoundingClientRect().left - box.left) / (box.right - box.left);
    spec.onPick(spec.xSpan[0] + Math.min(1, Math.max(0, u)) * (spec.xSpan[1] - spec.xSpan[0]));
  }
  if (spec.onPick) {
    host.addEventListener("pointerdown", (event) => { if (event.button === 0) { pick(event); host.setPointerCapture(event.pointerId); } });
    host.addEventListener("pointermove", (event) => { if (host.hasPointerCapture(event.pointerId)) pick(event); });
  }
  new ResizeObserver(() => { if (Math.floor(host.clientWidth) !== width) draw(); }).observe(host);
  return { node: host, draw, mark(x, y) { at = { x, y }; move(); } };
}

// ---- controls

function icon(playing) {
  const d = playing ? "M2 1h3.4v10H2zM7.6 1H11v10H7.6z" : "M2.5 .8 11.4 6 2.5 11.2z";
  return svg("svg", { width: 12, height: 12, viewBox: "0 0 13 12", "aria-hidden": "true" }, svg("path", { d }));
}

// A labelled range input with an output and, on request, a Play button that sweeps it.
// spec: {name, max, value, text(k), spoken(k), onInput(k), interval, step, play}
function slider(root, spec) {
  const id = uid(root, "range");
  const input = el("input", { type: "range", id, min: 0, max: spec.max, step: 1, value: spec.value });
  const output = el("output", { for: id });
  const line = el("div", { class: "lmc-line" }, el("label", { for: id }, spec.name), output);
  const node = el("div", { class: "lmc-controls" });
  let timer = null;

  function tell() {
    const k = +input.value;
    output.value = spec.text(k);
    spec.onInput(k);
    input.setAttribute("aria-valuetext", (spec.spoken || spec.text)(k));
  }
  const button = el("button", { type: "button", class: "lmc-play", onclick: () => (timer === null ? start() : stop()) });
  function face() {
    const playing = timer !== null;
    button.replaceChildren(icon(playing), playing ? "Pause" : "Play");
    button.setAttribute("aria-label", (playing ? "Pause: " : "Play: ") + spec.name);
  }
  function stop() {
    clearTimeout(timer);
    timer = null;
    face();
  }
  // With reduced motion the sweep is ten still pictures, one a second.
  function start() {
    const stride = calm.matches ? Math.max(1, Math.round(spec.max / 10)) : spec.step || 1;
    const wait = calm.matches ? Math.max(1000, spec.interval) : spec.interval;
    if (+input.value >= spec.max) { input.value = 0; tell(); }
    timer = setTimeout(function next() {
      if (!root.isConnected) return stop();
      input.value = Math.min(spec.max, +input.value + stride);
      tell();
      if (+input.value >= spec.max) return stop();
      timer = setTimeout(next, wait);
    }, wait);
    face();
  }
  input.addEventListener("input", () => { if (timer !== null) stop(); tell(); });
  face();
  if (spec.play === false) node.style.gridTemplateColumns = "minmax(0, 1fr)";
  else node.append(button);
  node.append(line, input);
  return {
    node, tell,
    set(k) { if (timer !== null) stop(); if (+input.value !== k) { input.value = k; tell(); } },
  };
}

// ---- readouts

// Rows are curves, columns are quantities; the unrounded value stays in data-value.
function readout(names, columns) {
  const cells = names.map(() => columns.map(() => el("td", {})));
  const head = el("tr", {}, el("th", { scope: "col" }, ""), ...columns.map((c) => el("th", { scope: "col" }, c.title)));
  const body = names.map((name, k) => el("tr", {}, el("th", { scope: "row" }, key(name, k)), ...cells[k]));
  const node = el("table", { class: "lmc-readout" }, el("thead", {}, head), el("tbody", {}, ...body));
  return {
    node,
    set(row, column, value) {
      cells[row][column].textContent = typeof value === "string" ? value : show(value, columns[column].unit);
      cells[row][column].dataset.value = value;
    },
  };
}

function best(values) {
  let k = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[k]) k = i;
  return k;
}

// The predicted probabilities of one curve for one example.
function bars(name, index, classNames) {
  const longest = Math.min(9, Math.max(...classNames.map((c) => c.length)));
  const verdict = el("span", { class: "lmc-verdict" });
  const rows = classNames.map((label) => {
    const bar = el("i", { class: "lmc-f" + (index % 4) });
    const value = el("span", {});
    const node = el("div", { class: "lmc-row" }, el("span", { title: label }, label), el("span", { class: "lmc-track" }, bar), value);
    return { node, bar, value };
  });
  const list = el("div", { role: "img", style: `--lmc-names: ${0.62 * longest + 0.5}em` }, ...rows.map((r) => r.node));
  const node = el("div", { class: "lmc-bars" }, el("div", { class: "lmc-head" }, key(name, index), verdict), list);
  return {
    node,
    set(probabilities, truth) {
      const top = best(probabilities);
      rows.forEach((row, k) => {
        row.bar.style.width = (100 * probabilities[k]).toFixed(1) + "%";
        row.value.textContent = Math.round(100 * probabilities[k]) + " %";
        row.node.classList.toggle("lmc-top", k === top);
      });
      const judged = truth === null ? "" : top === truth ? " \u2713" : " \u2717";
      verdict.textContent = `predicts ${classNames[top]}${judged}`;
      list.setAttribute("aria-label", `${name}: ` + classNames.map((c, k) => `${c} ${Math.round(100 * probabilities[k])} percent`).join(", "));
    },
  };
}

// ---- start

// Jupyter may run a script before the output stands in the document: try again until it does.
// The same figure twice on a page: each is mounted once, the second under a new id.
function mount(name, data, tries) {
  const waiting = document.querySelectorAll(`[data-lmc="${name}"]:not([data-ready])`);
  if (!waiting.length && tries < 200) return void setTimeout(() => mount(name, data, tries + 1), 50);
  waiting.forEach((root) => {
    root.dataset.ready = "true";
    if (document.querySelectorAll(`[id="${root.id}"]`).length > 1) root.id += "-copy" + ++mounted.count;
    const caption = root.querySelector("figcaption");
    caption.id = uid(root, "caption");
    root.setAttribute("aria-labelledby", caption.id);
    for (const event of ["keydown", "keypress", "keyup"]) root.addEventListener(event, (e) => e.stopPropagation());
    root.querySelectorAll(".lmc-fallback").forEach((node) => node.remove());
    build(root, data);
  });
}
