// Curves or bars that change with one setting, beside a summary of every setting.
// data: {x, xTicks, xLabel, yLabel, unit, bars, labels, stepLabel, valuesLabel, start,
//   curves: [{name, y: [[..]], low, high}], series: [{title, y}], reference: {name, value} or null}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const names = data.curves.map((c) => c.name);
  const styles = dress(names, data.series.map((s) => s.title));
  let control = null;

  const detail = frames(data, styles.curves);
  const parts = [detail.node];
  let summary = null;
  if (data.series.length) {
    summary = overview(data, names, styles.series, (k) => control.set(k));
    parts.push(summary.node);
  }
  const keys = data.curves.map((c, k) => (data.bars ? barKey(c.name, styles.curves[k]) : key(c.name, styles.curves[k])));
  stage.append(el("div", { class: "lmc-legend" }, ...keys), el("div", { class: "lmc-charts" + (summary ? " lmc-pair" : "") }, ...parts));

  const brief = data.labels.every((label) => label.length <= 24);
  const where = el("th", { scope: "col", style: brief ? "white-space: nowrap" : null });
  const cells = data.series.map(() => el("td", {}));
  const rows = data.series.map((s, k) => el("tr", {}, el("th", { scope: "row" }, key(s.title, styles.series[k])), cells[k]));
  const table = el("table", { class: "lmc-readout" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }), where)), el("tbody", {}, ...rows));

  control = slider(root, {
    name: data.stepLabel, max: data.labels.length - 1, value: data.start, interval: 700,
    text: (k) => data.labels[k],
    spoken: (k) => [data.labels[k], ...data.series.map((s) => `${s.title} ${show(s.y[k], "")}`)].join("; "),
    onInput(k) {
      detail.to(k);
      if (summary) summary.to(k);
      where.textContent = data.labels[k];
      cells.forEach((cell, i) => { cell.textContent = show(data.series[i].y[k], ""); cell.dataset.value = data.series[i].y[k]; });
    },
  });
  control.node.classList.add("lmc-wrap");
  card.append(control.node);
  if (summary) card.append(el("div", { "aria-live": "polite" }, table));
  control.tell();
  followTheme(root, () => {});
}

// The curve with whose name a title begins; -1 for none.
function owner(names, title) {
  return best([0, ...names.map((name) => (title.startsWith(name) ? name.length : 0))]) - 1;
}

// A series whose title begins with a curve's name looks like that curve; the others take what is left, solid first.
function dress(names, titles) {
  const curves = names.length === 1 ? [1] : names.map((_, k) => k);
  if (names.length === 1 && titles.length === 1) return { curves, series: [1] };
  const owners = titles.map((title) => owner(names, title));
  const taken = owners.map((k, i) => (k >= 0 && owners.indexOf(k) === i ? curves[k] : -1));
  const rest = [1, 0, 2, 3].filter((k) => !taken.includes(k));
  const spare = rest.filter((k) => !curves.includes(k)).concat(rest.filter((k) => curves.includes(k)));
  return { curves, series: taken.map((k) => (k < 0 ? spare.shift() : k)) };
}

// What "A: barrier" and "B: barrier" have in common, when that says it all; the curves' legend names the rest.
function quantity(names, titles) {
  const owners = titles.map((title) => owner(names, title));
  const rests = titles.map((title, i) => (owners[i] < 0 ? "" : title.slice(names[owners[i]].length).replace(/^[\s:,\u2013-]+/, "")));
  const one = new Set(rests).size === 1 && new Set(owners).size === titles.length;
  return one ? rests[0] : "";
}

function barKey(name, index) {
  const art = svg("svg", { width: 18, height: 14, "aria-hidden": "true" }, svg("rect", { class: `lmc-bar lmc-f${index}`, x: 0, y: 0, width: 18, height: 14, rx: 2 }), marker(index, 9, 7, 4));
  return el("span", { class: "lmc-key" }, art, el("span", {}, name));
}

// A list in which every curve stands at the place of its style.
function styled(curves, indices) {
  const list = [0, 1, 2, 3].map(() => ({ x: [], y: [] }));
  curves.forEach((c, k) => { list[indices[k]] = c; });
  return list;
}

function clipped(text, length) {
  return text.length > length ? text.slice(0, length - 1).trimEnd() + "\u2026" : text;
}

// ---- the curves of one setting; the axes are the same for every setting

function frames(data, styles) {
  const count = data.x.length;
  const all = data.curves.flatMap((c) => [c.y, c.low, c.high].filter(Boolean).flat(2)).concat(data.reference ? [data.reference.value] : []);
  const least = Math.min(...all.filter((v) => v !== null));
  const ySpan = data.unit === "%" && !data.bars && least >= 0.6 ? fractionSpan(all) : span(all, data.bars || least >= 0);
  const texts = data.xTicks && data.xTicks.map((t) => clipped(t, 14));
  const place = data.bars ? data.x.map((_, k) => k) : data.x;
  const longest = texts ? Math.max(...texts.map((t) => t.length)) : 0;
  const tilted = () => count > 1 && ((view.node.clientWidth - 70) / count) < 6.8 * longest + 6;
  let now = 0;

  const spec = {
    title: data.yLabel, unit: data.unit, xLabel: data.xLabel, ySpan, curves: [], dots: !data.bars && count <= 16,
    xSpan: data.bars ? [-0.5, count - 0.5] : [data.x[0], data.x[count - 1]],
    xTicks: texts ? { at: place, text: place.map(() => "") } : undefined,
    get foot() { return texts && tilted() ? 34 + 5 * longest : 42; },
    get height() { return 193 + this.foot; },
    under: (at) => [...(texts ? names(at) : []), ...(data.bars ? columns(at) : ghosts(at)), ...(data.reference ? [rule(at)] : [])],
    over: (at) => (data.reference ? [ruleName(at)] : []),
  };

  function names({ sx, box }) {
    const tilt = tilted();
    const every = tilt ? Math.ceil(14 / ((box.right - box.left) / count)) : 1;
    return texts.map((text, k) => {
      if (k % every) return svg("g", {});
      const x = sx(place[k]);
      return tilt
        ? svg("text", { "text-anchor": "end", transform: `translate(${x + 4} ${box.bottom + 14}) rotate(-45)` }, text)
        : svg("text", { x, y: box.bottom + 18, "text-anchor": "middle" }, text);
    });
  }

  // Every other setting, faintly: where the curves come from and where they go.
  function ghosts({ sx, sy }) {
    if (data.labels.length * data.curves.length > 60) return [];
    const path = (y) => "M" + y.map((value, i) => sx(data.x[i]).toFixed(1) + " " + sy(value).toFixed(1)).join("L");
    return data.curves.flatMap((c, s) => c.y.map((y) => svg("path", { class: `lmc-curve lmc-ghost lmc-s${styles[s]}`, d: path(y) })));
  }

  function columns({ sx, sy, box }) {
    const parts = [];
    const slot = (box.right - box.left) / count;
    const width = Math.min(34, (0.8 * slot) / data.curves.length);
    const zero = sy(0);
    const marked = data.curves.length > 1 && !data.curves.some((c) => c.low);
    data.curves.forEach((c, s) => c.y[now].forEach((value, k) => {
      if (value === null) return;
      const x = sx(k) + (s - data.curves.length / 2) * width;
      const y = sy(value);
      const style = `lmc-f${styles[s]}`;
      parts.push(svg("rect", { class: "lmc-bar " + style, x: x + width * 0.06, width: width * 0.88, y: Math.min(y, zero), height: Math.abs(y - zero) }));
      if (c.low && c.low[now][k] !== null && c.high[now][k] !== null) parts.push(svg("line", { class: "lmc-whisker", x1: x + width / 2, x2: x + width / 2, y1: sy(c.low[now][k]), y2: sy(c.high[now][k]) }));
      if (marked && width > 7) parts.push(marker(styles[s], x + width / 2, y, Math.min(4, width / 4)));
    }));
    parts.push(svg("line", { class: "lmc-axis", x1: box.left, x2: box.right, y1: zero, y2: zero }));
    return parts;
  }

  function rule({ sy, box }) {
    const y = sy(data.reference.value);
    return svg("line", { class: "lmc-rule", x1: box.left, x2: box.right, y1: y, y2: y });
  }

  function ruleName({ sy, box }) {
    const y = sy(data.reference.value);
    return svg("text", { class: "lmc-name lmc-small", x: box.right - 2, y: y - 5 < box.top + 8 ? y + 15 : y - 5, "text-anchor": "end" }, data.reference.name);
  }

  const view = chart(spec);
  view.node.style.cursor = "default";
  return {
    node: view.node,
    to(k) {
      now = k;
      if (!data.bars) spec.curves = styled(data.curves.map((c) => ({ x: data.x, y: c.y[k], low: c.low && c.low[k], high: c.high && c.high[k] })), styles);
      view.draw();
    },
  };
}

// ---- one number per setting

function overview(data, names, styles, onPick) {
  const last = data.labels.length - 1;
  const index = data.labels.map((_, k) => k);
  const all = data.series.flatMap((s) => s.y);
  const titles = data.series.map((s) => s.title);
  const title = titles.length === 1 ? titles[0] : quantity(names, titles);
  const every = Math.ceil((last + 1) / 40);
  const at = index.filter((k) => k % every === 0);
  const view = chart({
    title, unit: "", xLabel: data.valuesLabel, xSpan: [0, Math.max(1, last)], ySpan: span(all, Math.min(...all) >= 0),
    xTicks: { at, text: at.map(() => "") }, curves: styled(data.series.map((s) => ({ x: index, y: s.y })), styles), dots: last < 16, height: 235,
    onPick: (v) => onPick(Math.min(last, Math.round(v))),
    under({ box }) {
      const room = Math.floor((box.right - box.left) / 2 / 6.6);
      const y = box.bottom + 18;
      const first = svg("text", { x: box.left - 4, y }, clipped(data.labels[0], room));
      return last ? [first, svg("text", { x: box.right + 4, y, "text-anchor": "end" }, clipped(data.labels[last], room))] : [first];
    },
  });
  const keys = title ? [] : [el("div", { class: "lmc-legend" }, ...titles.map((t, k) => key(t, styles[k])))];
  const y = (k) => [0, 1, 2, 3].map((style) => { const s = styles.indexOf(style); return s < 0 ? null : data.series[s].y[k]; });
  return { node: el("div", { class: "lmc-summary" }, ...keys, view.node), to(k) { view.mark(k, y(k)); } };
}
