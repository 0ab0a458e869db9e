// One image, pushed along two directions of the same size; the network answers in the page.
// data: {layers: [[in, out]..], half, network: base64, images, scale, directions: [base64 x 2], labels, width, height,
//        classNames, names, xLabel, reach, start}

const MOVES = 60;

function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const weights = floats(data.network, data.half);
  const pixels = data.width * data.height;
  const images = Float64Array.from(bytes(data.images), (v) => v / data.scale);
  const directions = data.directions.map((d) => Int8Array.from(bytes(d)));
  const labels = bytes(data.labels);
  const classes = data.classNames.length;
  let chosen = 0;
  let control = null;
  let moved = [];

  // The image after a step of that size, inside the box [0, 1].
  function pushed(which, size) {
    const out = new Float64Array(pixels);
    for (let i = 0; i < pixels; i++) {
      const k = chosen * pixels + i;
      out[i] = Math.min(1, Math.max(0, images[k] + size * directions[which][k]));
    }
    return out;
  }
  const size = (k) => (k / MOVES) * data.reach;
  const answer = (x) => softmax(forward(weights, data.layers, x, 1));

  const spec = {
    title: "probability of the true class", unit: "%", xLabel: data.xLabel, xSpan: [0, data.reach], ySpan: [0, 1],
    curves: [{ x: [], y: [] }, { x: [], y: [] }], height: 190, onPick: (v) => control.set(Math.round((v / data.reach) * MOVES)),
  };
  const lines = chart(spec);
  stage.append(legend(data.names), lines.node);

  const views = data.names.map((name, k) => {
    const canvas = el("canvas", { width: data.width, height: data.height, role: "img", style: "width: 6.5rem; height: auto; border: 1px solid var(--lmc-line); border-radius: 5px" });
    const says = bars(name, k, data.classNames);
    return { canvas, says, node: el("div", {}, canvas) };
  });

  function trace() {
    const steps = Array.from({ length: MOVES + 1 }, (_, k) => k);
    spec.curves = [0, 1].map((which) => ({ x: steps.map(size), y: steps.map((k) => answer(pushed(which, size(k)))[labels[chosen]]) }));
    lines.draw();
  }

  function draw() { views.forEach((view, k) => { if (moved[k]) paint(root, view.canvas, moved[k]); }); }

  function go(k) {
    moved = [0, 1].map((which) => pushed(which, size(k)));
    views.forEach((view, which) => {
      view.says.set(answer(moved[which]), labels[chosen]);
      view.canvas.setAttribute("aria-label", `A ${data.classNames[labels[chosen]]} after a step of ${size(k).toFixed(3)}: ${data.names[which]}.`);
    });
    lines.mark(size(k), [0, 1].map((which) => spec.curves[which].y[k]));
    draw();
  }

  control = slider(root, {
    name: data.xLabel, max: MOVES, value: Math.round((data.start / data.reach) * MOVES), interval: 90, step: 1,
    text: (k) => size(k).toFixed(3),
    spoken: (k) => `${size(k).toFixed(3)}; ` + data.names.map((n, which) => `${n}: true class ${show(spec.curves[which].y[k], "%")}`).join("; "),
    onInput: go,
  });
  const what = el("p", { class: "lmc-status", "aria-live": "polite" });
  const pick = (k) => {
    chosen = k;
    what.textContent = `Image ${k + 1} of ${labels.length}, true class ${data.classNames[labels[k]]}. Every answer is computed in this page.`;
    trace();
    control.tell();
  };
  const next = el("button", { type: "button", onclick: () => pick((chosen + 1) % labels.length) }, "Next image");
  const pair = el("div", { class: "lmc-says", style: "margin-top: 0.9rem" });
  pair.style.gridTemplateRows = "auto auto 1fr";
  views.forEach((view) => pair.append(el("div", { class: "lmc-bars", style: "grid-row: span 3" }, view.node, ...view.says.node.children)));
  card.append(control.node, el("div", { class: "lmc-live" }, next, what), pair);
  pick(0);
  followTheme(root, draw);
}
