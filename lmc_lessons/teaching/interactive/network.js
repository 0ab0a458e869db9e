// A ReLU network that runs in the page. One flat list of numbers holds, layer by layer, the weight (in, out)
// and then the bias (out). Inlined before the figures that need it.

function floats(base64, half) {
  const raw = bytes(base64);
  if (!half) return new Float32Array(raw.buffer);
  return Float32Array.from(new Uint16Array(raw.buffer), (h) => {
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    const size = exponent ? Math.pow(2, exponent - 15) * (1 + fraction / 1024) : Math.pow(2, -14) * (fraction / 1024);
    return h >> 15 ? -size : size;
  });
}

// Logits (count, classes) of a ReLU network for inputs (count, in). Zero inputs cost nothing.
function forward(weights, layers, inputs, count) {
  let x = inputs;
  let offset = 0;
  layers.forEach(([nIn, nOut], depth) => {
    const bias = offset + nIn * nOut;
    const y = new Float64Array(count * nOut);
    for (let r = 0; r < count; r++) {
      const row = y.subarray(r * nOut, (r + 1) * nOut);
      for (let j = 0; j < nOut; j++) row[j] = weights[bias + j];
      for (let i = 0; i < nIn; i++) {
        const xi = x[r * nIn + i];
        if (xi === 0) continue;
        const w = offset + i * nOut;
        for (let j = 0; j < nOut; j++) row[j] += xi * weights[w + j];
      }
      if (depth < layers.length - 1) for (let j = 0; j < nOut; j++) if (row[j] < 0) row[j] = 0;
    }
    x = y;
    offset = bias + nOut;
  });
  return x;
}

function softmax(logits) {
  const top = Math.max(...logits);
  const e = Array.from(logits, (v) => Math.exp(v - top));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / total);
}
