// A loss surface over a plane through networks: straight paths drawn in it, and what was measured along them.
// data: {u, v, uLabel, vLabel, panels: [{title, unit, levels: base64 uint16, low, high, under, over}],
//   points: [{name, at: [u, v]}], paths: [{name, ends: [point, point], y: [[..]]}], x, xLabel, start}
function build(root, data) {
  const stage = root.querySelector(".lmc-stage");
  const card = root.querySelector(".lmc-card");
  const names = data.paths.map((p) => p.name);
  const last = data.x.length - 1;
  const nearest = (v) => best(data.x.map((x) => -Math.abs(x - v)));
  const shared = (e) => (data.paths.every((p) => p.ends[e] === data.paths[0].ends[e]) ? data.points[data.paths[0].ends[e]].name : "");
  let now = 0;
  let control = null;

  // A picture has no parts for a screen reader; this one has a place to point at.
  stage.setAttribute("role", "group");
  const map = plane(root, data, data.panels.map((panel) => surface(data, panel)));

  function curves(p) {
    const panel = data.panels[p];
    const all = data.paths.flatMap((path) => path.y[p]);
    const positive = Math.min(...all) >= 0;
    const share = panel.unit === "%" && Math.min(...all) >= 0.6;
    const ySpan = share ? fractionSpan(all) : span(all, positive);
    return { title: panel.title, unit: panel.unit, ySpan, curves: data.paths.map((path) => ({ x: data.x, y: path.y[p] })) };
  }
  const spec = {
    ...curves(0), xLabel: data.xLabel, ends: [shared(0), shared(1)], xSpan: [data.x[0], data.x[last]], onPick: (v) => control.set(nearest(v)),
    // Beside a tall plane there is room for a tall chart.
    get height() { return lines.node.offsetLeft > map.node.offsetLeft + 100 ? 330 : 0; },
  };
  const lines = chart(spec);

  function walk(k) {
    map.walk(data.x[k]);
    lines.mark(data.x[k], data.paths.map((path) => path.y[now][k]));
    data.paths.forEach((path, row) => path.y.forEach((y, p) => table.set(row, p, y[k])));
  }
  function turn(p) {
    now = p;
    Object.assign(spec, curves(p));
    map.turn(p);
    lines.draw();
    control.tell();
  }
  const above = [legend(names)];
  if (data.panels.length > 1) above.push(choice(root, "quantity shown", data.panels.map((p) => p.title), turn));
  stage.append(el("div", { class: "lmc-above" }, ...above), el("div", { class: "lmc-plane" }, map.node, lines.node));

  const table = readout(names, data.panels);
  table.node.classList.add("lmc-tight");
  control = slider(root, {
    name: data.xLabel, max: last, value: nearest(data.start), interval: Math.max(60, 2400 / (last || 1)),
    text: (k) => data.x[k].toFixed(2),
    spoken: (k) => `${data.x[k]}; ` + data.paths.map((p) => `${p.name}: ${data.panels[now].title} ${show(p.y[now][k], data.panels[now].unit)}`).join("; "),
    onInput: walk,
  });
  card.append(control.node, table.node);
  control.tell();
  followTheme(root, () => map.draw());
}

// Buttons of which one is pressed.
function choice(root, name, titles, onChange) {
  const options = titles.map((title, k) => {
    const input = el("input", { type: "radio", name: uid(root, "choice"), autocomplete: "off", checked: k ? null : "", onchange: () => onChange(k) });
    return el("label", {}, input, el("span", {}, title));
  });
  return el("div", { class: "lmc-choice", role: "radiogroup", "aria-label": name }, ...options);
}

// ---- the measured grid

// Where a coordinate lies: the line of the grid below it and the share of the way to the next.
function locate(axis, value) {
  let k = 0;
  while (k < axis.length - 2 && axis[k + 1] <= value) k++;
  return [k, Math.min(1, Math.max(0, (value - axis[k]) / (axis[k + 1] - axis[k])))];
}

// Values in [0, 1] of the colour scale, row by row upwards, and readings between the grid's points.
function surface(data, panel) {
  const z = Float32Array.from(new Uint16Array(bytes(panel.levels).buffer), (level) => level / 65535);
  const columns = data.u.length;
  const value = (share) => panel.low + share * (panel.high - panel.low);

  function read(u, v) {
    const [j, a] = locate(data.u, u);
    const [i, b] = locate(data.v, v);
    const k = i * columns + j;
    const corners = [[z[k], (1 - a) * (1 - b)], [z[k + 1], a * (1 - b)], [z[k + columns], (1 - a) * b], [z[k + columns + 1], a * b]];
    const used = corners.filter((c) => c[1] > 1e-9);
    const share = used.reduce((sum, c) => sum + c[0] * c[1], 0);
    const bound = panel.over && used.some((c) => c[0] === 1) ? "\u2265 " : panel.under && used.some((c) => c[0] === 0) ? "\u2264 " : "";
    return { share, value: value(share), bound };
  }

  // Marching squares: the segments on which the surface has one value.
  function contour(level, sx, sy) {
    let d = "";
    const cut = (p, q) => {
      const w = (level - p[2]) / (q[2] - p[2]);
      return (sx(p[0]) + w * (sx(q[0]) - sx(p[0]))).toFixed(1) + " " + (sy(p[1]) + w * (sy(q[1]) - sy(p[1]))).toFixed(1);
    };
    for (let i = 0; i + 1 < data.v.length; i++) {
      for (let j = 0; j + 1 < columns; j++) {
        const corner = (di, dj) => [data.u[j + dj], data.v[i + di], z[(i + di) * columns + j + dj]];
        const ring = [corner(0, 0), corner(0, 1), corner(1, 1), corner(1, 0)];
        const high = ring.map((p) => p[2] > level);
        const cuts = ring.map((p, e) => (high[e] === high[(e + 1) % 4] ? null : cut(p, ring[(e + 1) % 4])));
        const found = cuts.filter((c) => c !== null);
        if (found.length === 2) d += `M${found[0]}L${found[1]}`;
        if (found.length < 4) continue;
        const joined = ring.reduce((sum, p) => sum + p[2] / 4, 0) > level === high[0];
        d += joined ? `M${cuts[0]}L${cuts[1]}M${cuts[2]}L${cuts[3]}` : `M${cuts[3]}L${cuts[0]}M${cuts[1]}L${cuts[2]}`;
      }
    }
    return d;
  }
  return { panel, value, read, contour, z };
}

// ---- colour: one scale from the page's own tone to its opposite, with even steps of lightness (OKLab)

function slope(dark) {
  const table = new Uint8Array(768);
  for (let k = 0; k < 256; k++) {
    const t = dark ? 1 - k / 255 : k / 255;
    const light = 0.97 - 0.71 * t;
    const hue = ((190 + 95 * t) * Math.PI) / 180;
    const chroma = 0.015 + 0.095 * Math.sin(Math.PI * (0.03 + 0.83 * t));
    const [a, b] = [chroma * Math.cos(hue), chroma * Math.sin(hue)];
    const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const linear = [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ];
    linear.forEach((c, n) => {
      const clipped = Math.min(1, Math.max(0, c));
      table[3 * k + n] = Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
    });
  }
  return table;
}

// ---- the picture

function plane(root, data, surfaces) {
  const art = svg("svg", { "aria-hidden": "true" });
  const canvas = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
  const bar = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
  const field = el("div", {
    class: "lmc-field", tabindex: 0, role: "application", "aria-roledescription": "map",
    "aria-label": `Plane through ${data.points.map((p) => p.name).join(", ")}. Arrow keys move a cross, Escape removes it.`,
  });
  const hint = el("p", { class: "lmc-status", "aria-live": "polite" });
  const node = el("div", { class: "lmc-chart lmc-heat" }, canvas, bar, art, field, hint);
  const size = [data.u[data.u.length - 1] - data.u[0], data.v[data.v.length - 1] - data.v[0]];
  const dots = svg("g", {});
  const cross = svg("g", { class: "lmc-cross" });
  let now = 0;
  let t = 0;
  let pinned = null;
  let pointed = null;
  let room = 0;
  let table = null;
  let [left, top, wide, high] = [0, 0, 1, 1];
  const sx = (u) => left + ((u - data.u[0]) / size[0]) * wide;
  const sy = (v) => top + high - ((v - data.v[0]) / size[1]) * high;
  const short = (value) => minus(String(+(surfaces[now].panel.unit === "%" ? 100 * value : value).toPrecision(3)));

  // ---- colours

  function ground() {
    const sharp = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(wide * sharp);
    canvas.height = Math.round(high * sharp);
    const pen = canvas.getContext("2d");
    const picture = pen.createImageData(canvas.width, canvas.height);
    const pixels = picture.data;
    const { z } = surfaces[now];
    const n = data.u.length;
    const columns = Array.from({ length: canvas.width }, (_, x) => locate(data.u, data.u[0] + ((x + 0.5) / canvas.width) * size[0]));
    for (let y = 0, at = 0; y < canvas.height; y++) {
      const [i, b] = locate(data.v, data.v[0] + (1 - (y + 0.5) / canvas.height) * size[1]);
      for (let x = 0; x < canvas.width; x++, at += 4) {
        const [j, a] = columns[x];
        const k = i * n + j;
        const share = (1 - b) * ((1 - a) * z[k] + a * z[k + 1]) + b * ((1 - a) * z[k + n] + a * z[k + n + 1]);
        const c = 3 * Math.round(255 * share);
        pixels[at] = table[c];
        pixels[at + 1] = table[c + 1];
        pixels[at + 2] = table[c + 2];
        pixels[at + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  const place = (node, x, y, w, h) => Object.assign(node.style, { left: x + "px", top: y + "px", width: w + "px", height: h + "px" });

  // The lines of equal value and their marks on the colour bar share their levels: whole numbers of the scale.
  function levels() {
    const { panel } = surfaces[now];
    const factor = panel.unit === "%" ? 100 : 1;
    const { at, text } = ticks(panel.low * factor, panel.high * factor, 6);
    const share = at.map((v) => (v / factor - panel.low) / (panel.high - panel.low));
    return share.map((s, k) => ({ share: s, text: text[k] })).filter((l) => l.share > 0.005 && l.share < 0.995);
  }

  // Readable on the colour of this level: dark lines on light ground, light ones on dark ground.
  function contrast(share) {
    const [r, g, b] = table.slice(3 * Math.round(255 * share), 3 * Math.round(255 * share) + 3);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 120 ? "#000" : "#fff";
  }

  function scale(upright) {
    const { panel } = surfaces[now];
    const length = upright ? high : Math.min(190, wide * 0.52);
    const [x0, y0] = upright ? [left + wide + 20, top] : [left + wide - length, top - 34];
    place(bar, x0, y0, upright ? 13 : length, upright ? length : 9);
    [bar.width, bar.height] = upright ? [1, 256] : [256, 1];
    const pen = bar.getContext("2d");
    const picture = pen.createImageData(bar.width, bar.height);
    for (let k = 0; k < 256; k++) {
      const at = 4 * (upright ? 255 - k : k);
      for (let c = 0; c < 3; c++) picture.data[at + c] = table[3 * k + c];
      picture.data[at + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
    const ends = [{ share: 0, text: (panel.under ? "\u2264 " : "") + short(panel.low) }, { share: 1, text: (panel.over ? "\u2265 " : "") + short(panel.high) }];
    const spot = (share) => (upright ? y0 + (1 - share) * length : x0 + share * length);
    const free = (l) => ends.every((e) => Math.abs(spot(e.share) - spot(l.share)) > (upright ? 15 : 5 + 3.6 * (e.text.length * 2 + l.text.length)));
    const label = (l, anchor) => (upright
      ? svg("text", { x: x0 + 20, y: spot(l.share) + 4 }, l.text)
      : svg("text", { x: spot(l.share), y: y0 + 22, "text-anchor": anchor }, l.text));
    const notch = (l) => (upright
      ? svg("line", { class: "lmc-axis", x1: x0 + 13, x2: x0 + 17, y1: spot(l.share), y2: spot(l.share) })
      : svg("line", { class: "lmc-axis", x1: spot(l.share), x2: spot(l.share), y1: y0 + 9, y2: y0 + 12 }));
    const inner = levels();
    return [
      svg("rect", { class: "lmc-grid", x: x0 - 0.5, y: y0 - 0.5, width: (upright ? 13 : length) + 1, height: (upright ? length : 9) + 1 }),
      ...inner.map(notch), ...inner.filter(free).map((l) => label(l, "middle")), label(ends[0], "start"), label(ends[1], "end"),
    ];
  }

  // ---- lines and names over the colours

  // A name stands away from the paths of its point, inside the picture, and clear of other points and names.
  function names() {
    const taken = data.points.map((p) => [sx(p.at[0]) - 7, sx(p.at[0]) + 7, sy(p.at[1]) - 7, sy(p.at[1]) + 7]);
    return data.points.map((point, k) => {
      const [x, y] = [sx(point.at[0]), sy(point.at[1])];
      const half = 4.2 * point.name.length + 3;
      const away = [0, 0];
      data.paths.filter((p) => p.ends.includes(k)).forEach((p) => {
        const other = data.points[p.ends[0] === k ? p.ends[1] : p.ends[0]].at;
        const far = Math.hypot(x - sx(other[0]), y - sy(other[1])) || 1;
        away[0] += (x - sx(other[0])) / far;
        away[1] += (y - sy(other[1])) / far;
      });
      const around = [1, 0.6, 0, -0.6, -1].flatMap((right) => [[right, 0], [right, -1], [right, 1]]).filter(([right, down]) => down || Math.abs(right) === 1);
      const places = around.map(([right, down]) => {
        const middle = x + right * (down ? half : half + 9);
        const base = y + (down ? 5 + 19 * down : 5);
        const box = [middle - half, middle + half, base - 13, base + 4];
        const outside = box[0] < left || box[1] > left + wide || box[2] < top || box[3] > top + high;
        const clashes = taken.filter((t, i) => i !== k && t[0] < box[1] && t[1] > box[0] && t[2] < box[3] && t[3] > box[2]).length;
        const along = (right * away[0] + down * away[1]) / Math.hypot(right, down);
        return { middle, base, box, score: along - 4 * clashes - 8 * outside };
      });
      const { middle, base, box } = places[best(places.map((p) => p.score))];
      taken.push(box);
      return svg("text", { class: "lmc-name", x: middle, y: base, "text-anchor": "middle" }, point.name);
    });
  }

  function strokes() {
    const parts = levels().map((l) => svg("path", { class: "lmc-contour", stroke: contrast(l.share), d: surfaces[now].contour(l.share, sx, sy) || "M0 0" }));
    const ends = (p) => {
      const [a, b] = p.ends.map((e) => data.points[e].at);
      return { x1: sx(a[0]), y1: sy(a[1]), x2: sx(b[0]), y2: sy(b[1]) };
    };
    data.paths.forEach((p) => parts.push(svg("line", { class: "lmc-casing", ...ends(p) })));
    data.paths.forEach((p, k) => parts.push(svg("line", { class: "lmc-curve lmc-s" + (k % 4), ...ends(p) })));
    data.points.forEach((p) => parts.push(svg("circle", { class: "lmc-point", cx: sx(p.at[0]), cy: sy(p.at[1]), r: 6.5 })));
    return [...parts, ...names()];
  }

  function axes() {
    const parts = [];
    const tickCount = wide < 360 ? 4 : 7;
    const step = ticks(data.u[0], data.u[data.u.length - 1], tickCount).step;
    const across = ticks(data.u[0], data.u[data.u.length - 1], tickCount);
    const up = ticks(data.v[0], data.v[data.v.length - 1], Math.max(2, size[1] / step));
    across.at.forEach((u, k) => {
      parts.push(svg("line", { class: "lmc-axis", x1: sx(u), x2: sx(u), y1: top + high, y2: top + high + 5 }));
      parts.push(svg("text", { x: sx(u), y: top + high + 18, "text-anchor": "middle" }, across.text[k]));
    });
    up.at.forEach((v, k) => {
      parts.push(svg("line", { class: "lmc-axis", x1: left - 5, x2: left, y1: sy(v), y2: sy(v) }));
      parts.push(svg("text", { x: left - 8, y: sy(v) + 4, "text-anchor": "end" }, up.text[k]));
    });
    parts.push(svg("text", { x: left + wide / 2, y: top + high + 36, "text-anchor": "middle" }, data.uLabel));
    parts.push(svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${top + high / 2}) rotate(-90)` }, data.vLabel));
    return parts;
  }

  function draw() {
    if (!room) return;
    const upright = room >= 560;
    const { panel } = surfaces[now];
    const title = panel.title + (panel.unit ? ` (${panel.unit})` : "");
    left = 48;
    // On a narrow page the colour bar stands beside the title, or below a long one.
    top = upright ? 28 : 7.4 * title.length > 0.42 * room ? 60 : 36;
    const margin = left + (upright ? 84 : 8);
    wide = Math.round(Math.min(room - margin, (420 * size[0]) / size[1]));
    high = Math.round((wide * size[1]) / size[0]);
    node.style.width = wide + margin + "px";
    table = slope(root.dataset.dark === "true");
    place(canvas, left, top, wide, high);
    place(field, left, top, wide, high);
    art.setAttribute("width", wide + margin);
    art.setAttribute("height", top + high + 42);
    ground();
    const heading = svg("text", { class: "lmc-title", x: 0, y: 14 }, title);
    const edge = svg("rect", { class: "lmc-grid", x: left - 0.5, y: top - 0.5, width: wide + 1, height: high + 1 });
    art.replaceChildren(heading, ...axes(), ...scale(upright), edge, ...strokes(), dots, cross);
    walk(t);
    look();
  }

  function walk(position) {
    t = position;
    if (!room) return;
    dots.replaceChildren(...data.paths.map((p, k) => {
      const [a, b] = p.ends.map((e) => data.points[e].at);
      return marker(k, sx(a[0] + t * (b[0] - a[0])), sy(a[1] + t * (b[1] - a[1])), 7);
    }));
  }

  // ---- pointing

  function look() {
    const at = pointed || pinned;
    cross.replaceChildren();
    if (!at) {
      hint.textContent = "Point at the plane, or focus it and press the arrow keys, to read a value.";
      return;
    }
    const { panel, read } = surfaces[now];
    const [x, y] = [sx(at[0]), sy(at[1])];
    for (const style of ["lmc-casing", "lmc-hair"]) cross.append(svg("path", { class: style, d: `M${x - 11} ${y}h22M${x} ${y - 11}v22` }));
    const found = read(...at);
    const far = data.points.map((p) => Math.hypot(p.at[0] - at[0], p.at[1] - at[1]));
    const k = best(far.map((d) => -d));
    const unit = panel.unit && panel.unit !== "%" ? " " + panel.unit : "";
    const digits = decimals(ticks(0, Math.max(...size), 5).step) + 1;
    hint.textContent = `At (${at.map((c) => minus(c.toFixed(digits))).join(", ")}): ${panel.title} ${found.bound}${show(found.value, panel.unit)}${unit}; `
      + `nearest network: ${data.points[k].name}, distance ${far[k].toFixed(digits)}.`;
  }

  const hold = (axis, value) => Math.min(axis[axis.length - 1], Math.max(axis[0], value));
  function under(event) {
    const box = field.getBoundingClientRect();
    const u = data.u[0] + ((event.clientX - box.left) / box.width) * size[0];
    const v = data.v[0] + (1 - (event.clientY - box.top) / box.height) * size[1];
    return [hold(data.u, u), hold(data.v, v)];
  }
  field.addEventListener("pointerdown", (event) => { pinned = under(event); field.setPointerCapture(event.pointerId); look(); });
  field.addEventListener("pointermove", (event) => {
    pointed = under(event);
    if (field.hasPointerCapture(event.pointerId)) pinned = pointed;
    look();
  });
  field.addEventListener("pointerleave", () => { pointed = null; look(); });
  field.addEventListener("pointercancel", () => { pointed = null; look(); });
  field.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Escape") pinned = pointed = null;
    else if (!move) return;
    else {
      event.preventDefault();
      const step = (Math.max(...size) / 60) * (event.shiftKey ? 5 : 1);
      const from = pinned || [data.u[0] + size[0] / 2, data.v[0] + size[1] / 2];
      pinned = pinned ? [hold(data.u, from[0] + step * move[0]), hold(data.v, from[1] + step * move[1])] : from;
      pointed = null;
    }
    look();
  });
  new ResizeObserver(() => {
    const free = Math.floor(node.parentNode.clientWidth);
    if (free && free !== room) { room = free; draw(); }
  }).observe(root);
  return { node, draw, walk, turn(p) { now = p; draw(); } };
}
