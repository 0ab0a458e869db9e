// A slider over pictures that were drawn beforehand.
// data: {name, sources, labels, alts}
function build(root, data) {
  const image = root.querySelector("img");
  const control = slider(root, {
    name: data.name, max: data.sources.length - 1, value: 0, interval: 700, text: (k) => data.labels[k],
    spoken: (k) => `${data.labels[k]}: ${data.alts[k]}`,
    onInput(k) { image.src = data.sources[k]; image.alt = data.alts[k]; },
  });
  root.querySelector(".lmc-plate").after(control.node);
  control.tell();
  followTheme(root, () => {});
}
