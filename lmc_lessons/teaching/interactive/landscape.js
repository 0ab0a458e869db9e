// Two classes in the plane, attacked with a growing radius, beside the loss around the weights that training finds.
// data: {points: [[x1, x2]], classes: [0 | 1], classNames, span: [low, high], stepLabel, labels, start, alpha,
//   alphaLabel, lossLabel, names: [without, with], steps: [{epsilon, way: [u1, u2], loss: [..], row: [..]}], columns: [{title, unit}]}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  let now = data.start;
  const [low, high] = data.span;

  const HEIGHT = 320;
  const wide = () => (high * Math.max(200, plane.node.clientWidth - 38)) / (HEIGHT - 70);

  // Both axes have one scale, so that the attack is seen to be perpendicular to the line.
  const plane = chart({
    title: "attacked samples", unit: "", xLabel: "first coordinate", ySpan: [low, high], curves: [], height: HEIGHT,
    get xSpan() { return [-wide(), wide()]; },
    under: draw,
  });
  plane.node.style.cursor = "default";

  function draw({ sx, sy }) {
    const step = data.steps[now];
    const [u, v] = step.way;
    const parts = [];
    // The line where the score is zero, and where it is plus and minus the radius.
    for (const shift of step.epsilon ? [0, step.epsilon, -step.epsilon] : [0]) {
      const ends = [-1, 1].map((s) => clip([shift * u, shift * v], [-v * s, u * s]));
      parts.push(svg("line", { class: shift ? "lmc-rule" : "lmc-cursor", x1: sx(ends[0][0]), y1: sy(ends[0][1]), x2: sx(ends[1][0]), y2: sy(ends[1][1]) }));
    }
    data.points.forEach((p, k) => {
      const sign = data.classes[k] ? -1 : 1;
      const q = [p[0] - sign * step.epsilon * u, p[1] - sign * step.epsilon * v];
      parts.push(svg("line", { class: "lmc-grid", style: "stroke: currentColor; opacity: 0.45", x1: sx(p[0]), y1: sy(p[1]), x2: sx(q[0]), y2: sy(q[1]) }));
      parts.push(marker(data.classes[k], sx(p[0]), sy(p[1]), 4), marker(data.classes[k], sx(q[0]), sy(q[1]), 2, true));
    });
    return parts;
  }

  // Where a ray from a point leaves the picture.
  function clip(from, way) {
    const far = [wide(), high];
    const t = Math.min(...[0, 1].map((c) => (way[c] ? (Math.sign(way[c]) * far[c] - from[c]) / way[c] : Infinity)));
    return [from[0] + t * way[0], from[1] + t * way[1]];
  }

  const all = data.steps.flatMap((step) => step.loss);
  const last = data.alpha.length - 1;
  const spec = {
    title: data.lossLabel, unit: "nats", xLabel: data.alphaLabel, xSpan: [data.alpha[0], data.alpha[last]], ySpan: span(all, true), curves: [],
    height: HEIGHT,
  };
  const loss = chart(spec);
  loss.node.style.cursor = "default";

  const classKeys = data.classNames.map((name, k) => el("span", { class: "lmc-key" }, svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, marker(k, 7, 7, 4)), el("span", {}, name)));
  stage.append(el("div", { class: "lmc-legend" }, ...classKeys, ...data.names.map(key)), el("div", { class: "lmc-charts lmc-pair" }, plane.node, loss.node));

  const table = readout(data.names, data.columns);
  table.node.classList.add("lmc-tight");
  data.columns.forEach((_, c) => table.set(0, c, data.steps[0].row[c]));
  const control = slider(root, {
    name: data.stepLabel, max: data.steps.length - 1, value: data.start, interval: 500, text: (k) => data.labels[k],
    spoken: (k) => `${data.labels[k]}; ` + data.columns.map((c, i) => `${c.title} ${show(data.steps[k].row[i], c.unit)}`).join(", "),
    onInput(k) {
      now = k;
      spec.curves = [0, k].map((i) => ({ x: data.alpha, y: data.steps[i].loss }));
      plane.draw();
      loss.draw();
      data.columns.forEach((_, c) => table.set(1, c, data.steps[k].row[c]));
    },
  });
  card.append(control.node, table.node);
  control.tell();
  followTheme(root, () => { plane.draw(); loss.draw(); });
}
