// A walk along paths between two networks: curves, a marker, numbers, and one example's prediction.
// data: {x, xLabel, ends, start, panels: [{title, unit}], curves: [{name, y: [[..]], low, high}], sample}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const names = data.curves.map((c) => c.name);
  const last = data.x.length - 1;
  const span01 = [data.x[0], data.x[last]];
  const nearest = (v) => best(data.x.map((x) => -Math.abs(x - v)));
  let control = null;

  const charts = data.panels.map((panel, p) => {
    const curves = data.curves.map((c) => ({ x: data.x, y: c.y[p], low: c.low && c.low[p], high: c.high && c.high[p] }));
    const all = curves.flatMap((c) => [...c.y, ...(c.low || []), ...(c.high || [])]);
    const ySpan = panel.unit === "%" ? fractionSpan(all) : span(all, Math.min(...all) >= 0);
    return chart({ ...panel, xLabel: data.xLabel, ends: data.ends, xSpan: span01, ySpan, curves, onPick: (v) => control.set(nearest(v)) });
  });
  stage.append(legend(names), el("div", { class: "lmc-charts" + (charts.length > 1 ? " lmc-pair" : "") }, ...charts.map((c) => c.node)));

  const table = readout(names, data.panels);
  const views = data.sample ? data.sample.probabilities.map((_, k) => bars(names[k], k, data.sample.classNames)) : [];
  const sampled = data.sample ? exhibit(data.sample, views) : null;
  const places = Math.max(2, ...data.x.map((x) => (String(x).split(".")[1] || "").length));

  control = slider(root, {
    name: data.xLabel, max: last, value: nearest(data.start), interval: Math.max(60, 2400 / (last || 1)),
    text: (k) => data.x[k].toFixed(Math.min(3, places)),
    spoken: (k) => `${data.x[k]}; ` + data.curves.map((c) => `${c.name}: ` + data.panels.map((p, i) => `${p.title} ${show(c.y[i][k], p.unit)}`).join(", ")).join("; "),
    onInput(k) {
      data.panels.forEach((_, p) => charts[p].mark(data.x[k], data.curves.map((c) => c.y[p][k])));
      data.curves.forEach((c, row) => c.y.forEach((y, p) => table.set(row, p, y[k])));
      views.forEach((view, row) => view.set(data.sample.probabilities[row][k], data.sample.truth));
    },
  });
  card.append(control.node, table.node);
  if (sampled) card.append(sampled.node);
  control.tell();
  followTheme(root, () => { if (sampled) paint(root, sampled.canvas, data.sample.pixels); });
}

function exhibit(sample, views) {
  const truth = sample.classNames[sample.truth];
  const canvas = el("canvas", { width: sample.width, height: sample.height, role: "img", "aria-label": `the example's image, class ${truth}` });
  const picture = el("div", { class: "lmc-picture" }, canvas, el("p", {}, "One test image.", el("br"), `True class: ${truth}`));
  return { canvas, node: el("div", { class: "lmc-sample" }, picture, el("div", { class: "lmc-says" }, ...views.map((v) => v.node))) };
}
