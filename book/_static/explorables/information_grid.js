// Estimators of mutual information against the truth: choose the correlation and the number of pairs.
// It needs information_grid.css and information_grid.data.js beside it and nothing else.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = window.informationGridData;
  const LEFT = 8, ROW = 46, TOP = 26;

  /** An element with attributes and children; `create("svg:g")` makes an SVG element. */
  function create(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** A value with two decimals and a proper minus sign. */
  const decimal = (value) => value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

  /** A slider over the entries of a list, with its value in words. */
  function slider(label, list, start, says, change) {
    const shown = create("output");
    const input = create("input", { type: "range", min: 0, max: list.length - 1, step: 1, value: start });
    const update = () => {
      shown.textContent = says(list[input.value]);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => { update(); change(); });
    update();
    return { node: create("label", {}, create("span", {}, label), input, shown), value: () => Number(input.value) };
  }

  function build(root) {
    const sentence = create("p", { class: "ig-sentence", "aria-live": "polite" });
    const height = TOP + ROW * data.estimators.length + 24;
    const svg = create("svg:svg", { role: "img" });
    const pairs = slider("pairs of features", data.pairs, data.first[0], String, draw);
    const rho = slider("correlation of each pair", data.correlations, data.first[1], (r) => r.toFixed(2), draw);

    function draw() {
      const width = Math.min(Math.max(root.clientWidth, 300), 640); // letters keep their size on a phone
      const right = width - LEFT;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const [i, j] = [pairs.value(), rho.value()];
      const truth = data.truth[i][j];
      const answers = data.estimators.map((estimator) => ({ name: estimator.name, value: estimator.values[i][j] }));
      const limit = Math.max(1, 1.25 * truth, truth + 0.6);
      const place = (value) => LEFT + (right - LEFT) * (Math.min(Math.max(value, 0), limit) / limit);
      const parts = [];
      const step = [0.25, 0.5, 1, 2, 5, 10].find((s) => limit / s <= width / 60) || 20;
      for (let tick = 0; tick <= limit + 1e-9; tick += step) {
        const x = place(tick);
        parts.push(create("svg:line", { class: "ig-grid", x1: x, x2: x, y1: TOP, y2: height - 20 }));
        const anchor = tick === 0 ? "start" : x > right - 12 ? "end" : "middle";
        parts.push(create("svg:text", { class: "ig-tick", x, y: height - 5, "text-anchor": anchor }, String(tick)));
      }
      const t = place(truth);
      parts.push(create("svg:line", { class: "ig-truth", x1: t, x2: t, y1: TOP - 4, y2: height - 20 }));
      const side = t > width / 2 ? "end" : "start";
      parts.push(create("svg:text", { class: "ig-name", x: t + (side === "end" ? -5 : 5), y: 14, "text-anchor": side },
        `truth ${decimal(truth)}`));
      answers.forEach(({ name, value }, row) => {
        const y = TOP + ROW * row + 32;
        const shown = value === null ? `${name}: refuses` : `${name}: ${decimal(value)}${value > limit ? " →" : ""}`;
        const outside = value !== null && (value > limit || value < 0);
        parts.push(create("svg:text", { class: "ig-name", x: LEFT, y: y - 10 }, shown));
        if (value === null) return;
        parts.push(create("svg:line", { class: "ig-error", x1: t, x2: place(value), y1: y, y2: y }));
        parts.push(create("svg:circle", { class: outside ? "ig-dot ig-outside" : "ig-dot", cx: place(value), cy: y, r: 6 }));
      });
      svg.replaceChildren(...parts);
      const ranked = answers.filter(({ value }) => value !== null)
        .sort((a, b) => Math.abs(a.value - truth) - Math.abs(b.value - truth));
      const [best, worst] = [ranked[0], ranked[ranked.length - 1]];
      const what = data.pairs[i] === 1 ? "1 pair" : `${data.pairs[i]} pairs`;
      sentence.textContent = `${what} of correlation ${data.correlations[j].toFixed(2)}, `
        + `${data.examples.toLocaleString("en")} examples: the truth is ${decimal(truth)} nats. `
        + `Nearest: ${best.name} (${decimal(best.value)}). Furthest: ${worst.name} (${decimal(worst.value)}).`;
      svg.setAttribute("aria-label", answers.map(({ name, value }) =>
        `${name} ${value === null ? "refuses" : decimal(value)}`).join("; ") + `; truth ${decimal(truth)} nats`);
    }

    draw();
    window.addEventListener("resize", draw);
    root.replaceChildren(create("div", { class: "ig-head" }, rho.node, pairs.node), sentence, svg,
      create("p", { class: "ig-axis" }, "mutual information in nats"));
  }

  document.querySelectorAll(".information-grid").forEach(build);
})();
