// One wave added to one image, and how many images each network still reads at that frequency.
// data: {rows, columns, images: base64 uint8, count, labels: [text], epsilon, maps: [{name, values: [[..]]}], low, high,
//        lowText, highText, start: [u, v], rowLabel, columnLabel}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const { rows, columns } = data;
  const pixels = rows * columns;
  const all = bytes(data.images);
  let [u, v] = data.start;
  let chosen = 0;
  let pictures = [];

  // cos - sin of the phase, scaled to largest size one: the same formula as in the package.
  function wave() {
    const out = new Float64Array(pixels);
    let top = 0;
    for (let a = 0; a < rows; a++) {
      for (let b = 0; b < columns; b++) {
        const phase = 2 * Math.PI * (((u * a) % rows) / rows + ((v * b) % columns) / columns);
        const value = Math.cos(phase) - Math.sin(phase);
        out[a * columns + b] = value;
        top = Math.max(top, Math.abs(value));
      }
    }
    return out.map((value) => value / top);
  }

  const below = "margin-top: 0.3rem";
  const framed = "width: 100%; height: auto; border: 1px solid var(--lmc-line); border-radius: 5px";
  const view = (name) => {
    const canvas = el("canvas", { width: columns, height: rows, role: "img", style: framed });
    const node = el("div", { style: "min-width: 0" }, canvas, el("p", { class: "lmc-status", style: below }, name));
    return { canvas, node, name };
  };
  const views = ["the wave", "an image", "image + wave"].map(view);
  const grid = (count, most) => `display: grid; gap: 0.9rem; grid-template-columns: repeat(${count}, minmax(0, ${most})); justify-content: center; margin-bottom: 0.8rem`;
  const strip = el("div", { style: grid(3, "11rem") }, ...views.map((one) => one.node));

  const heats = data.maps.map((map) => {
    const canvas = el("canvas", { width: columns, height: rows, role: "img", style: framed + "; cursor: crosshair" });
    const box = el("div", { style: "position: relative" }, canvas);
    const cross = el("div", { style: "position: absolute; border: 2px solid var(--lmc-c0); border-radius: 2px; pointer-events: none" });
    box.append(cross);
    const says = el("p", { class: "lmc-status", style: below });
    canvas.addEventListener("click", (event) => {
      const frame = canvas.getBoundingClientRect();
      const at = (place, size, count) => Math.min(count - 1, Math.max(0, Math.floor((place / size) * count)));
      sliders[0].set(at(event.clientY - frame.top, frame.height, rows));
      sliders[1].set(at(event.clientX - frame.left, frame.width, columns));
    });
    return { map, canvas, cross, says, node: el("div", { style: "min-width: 0" }, box, says) };
  });
  const key = el("canvas", { width: 256, height: 1, style: "width: 8rem; height: 0.7rem; display: inline-block" });
  const scale = el("p", { class: "lmc-status" }, `Images read correctly: ${data.lowText} `, key, ` ${data.highText}. Rows: ${data.rowLabel}; columns: ${data.columnLabel}.`);
  stage.append(strip, el("div", { style: grid(heats.length, "17rem") }, ...heats.map((one) => one.node)), scale);

  function level(value) {
    return Math.round(255 * Math.min(1, Math.max(0, (value - data.low) / (data.high - data.low))));
  }

  function draw() {
    const table = ramp(root, false);
    const put = (canvas, values) => {
      const pen = canvas.getContext("2d");
      const picture = pen.createImageData(canvas.width, canvas.height);
      values.forEach((value, i) => {
        for (let c = 0; c < 3; c++) picture.data[4 * i + c] = table[3 * level(value) + c];
        picture.data[4 * i + 3] = 255;
      });
      pen.putImageData(picture, 0, 0);
    };
    heats.forEach((one) => put(one.canvas, one.map.values.flat()));
    put(key, Array.from({ length: 256 }, (_, k) => data.low + (k / 255) * (data.high - data.low)));
    views.forEach((one, k) => { if (pictures[k]) paint(root, one.canvas, pictures[k]); });
  }

  const say = () => heats.map((one) => `${one.map.name} ${show(one.map.values[u][v], "%")}`).join("; ");

  function go() {
    const image = Float64Array.from(all.subarray(chosen * pixels, (chosen + 1) * pixels), (value) => value / 255);
    const shape = wave();
    pictures = [shape.map((value) => 0.5 + value / 2), image, image.map((value, i) => Math.min(1, Math.max(0, value + data.epsilon * shape[i])))];
    views.forEach((one, k) => one.canvas.setAttribute("aria-label", `${one.name}${k === 1 ? "" : `, frequency (${u}, ${v})`}${k ? `: a ${data.labels[chosen]}` : ""}.`));
    heats.forEach((one) => {
      Object.assign(one.cross.style, { left: `calc(${(100 * v) / columns}% - 1px)`, top: `calc(${(100 * u) / rows}% - 1px)`, width: `calc(${100 / columns}% + 2px)`, height: `calc(${100 / rows}% + 2px)` });
      one.says.replaceChildren(el("strong", {}, one.map.name), `: ${show(one.map.values[u][v], "%")} at (${u}, ${v})`);
      one.canvas.setAttribute("aria-label", `Accuracy of ${one.map.name} at every frequency; ${show(one.map.values[u][v], "%")} at (${u}, ${v}).`);
    });
    draw();
  }

  const sliders = [["u", data.rowLabel, rows], ["v", data.columnLabel, columns]].map(([name, label, count]) => slider(root, {
    name: `${name}: ${label}`, max: count - 1, value: name === "u" ? u : v, interval: 500, play: false,
    text: (k) => String(k),
    spoken: (k) => `${k}; ${say()}`,
    onInput(k) { if (name === "u") u = k; else v = k; go(); },
  }));
  sliders.forEach((one, k) => {  // two sliders in one figure: ids of their own
    const id = uid(root, k ? "columns" : "rows");
    one.node.querySelector("input").id = id;
    one.node.querySelectorAll("[for]").forEach((node) => node.setAttribute("for", id));
  });
  const what = el("p", { class: "lmc-status", "aria-live": "polite" });
  const pick = (k) => { chosen = k; what.textContent = `Image ${k + 1} of ${data.count}, a ${data.labels[k]}. Click a map to choose a frequency.`; go(); };
  const next = el("button", { type: "button", onclick: () => pick((chosen + 1) % data.count) }, "Next image");
  card.append(...sliders.map((one) => one.node), el("div", { class: "lmc-live" }, next, what));
  pick(0);
  sliders.forEach((one) => one.tell());
  followTheme(root, draw);
}
