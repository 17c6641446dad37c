// Estimators of mutual information against the truth: choose the correlation and the number of pairs.
import { chooser, create, decimal, follow, range, slider, view } from "../explorable.js";

const EDGE = 8, ROW = 46, TOP = 26; // of the drawing, in pixels

function render({ model, el }) {
  const [pairs, correlations, truths, estimators] =
    ["pairs", "correlations", "truth", "estimators"].map((key) => model.get(key));
  const choose = chooser(model);
  const sentence = create("p", { "aria-live": "polite" });
  const height = TOP + ROW * estimators.length + 24;
  const svg = create("svg:svg", { role: "img" });
  const rho = slider("Correlation", 0, correlations.length - 1, (correlation) => choose({ correlation }));
  const count = slider("Pairs", 0, pairs.length - 1, (number) => choose({ pairs: number }));

  function draw({ pairs: i, correlation: j }) {
    rho.show(j, correlations[j].toFixed(2));
    count.show(i, String(pairs[i]));
    const width = Math.min(Math.max(root.clientWidth, 300), 640); // letters keep their size on a phone
    const right = width - EDGE;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const truth = truths[i][j];
    const answers = estimators.map(({ name, values }) => ({ name, value: values[i][j] }));
    const limit = Math.max(1, 1.25 * truth, truth + 0.6);
    const place = (value) => EDGE + (right - EDGE) * (Math.min(Math.max(value, 0), limit) / limit);
    const step = [0.25, 0.5, 1, 2, 5, 10].find((size) => limit / size <= width / 60) || 20;
    const ticks = range(Math.floor(limit / step + 1e-9) + 1).map((k) => k * step);
    const t = place(truth);
    const back = t > width / 2;
    svg.replaceChildren(
      ...ticks.flatMap((tick) => {
        const x = place(tick);
        const anchor = tick === 0 ? "start" : x > right - 12 ? "end" : "middle";
        return [create("svg:line", { class: "ig-grid", x1: x, x2: x, y1: TOP, y2: height - 20 }),
          create("svg:text", { x, y: height - 5, "text-anchor": anchor }, String(tick))];
      }),
      create("svg:line", { class: "ig-truth", x1: t, x2: t, y1: TOP - 4, y2: height - 20 }),
      create("svg:text", { x: t + (back ? -5 : 5), y: 14, "text-anchor": back ? "end" : "start" }, `truth ${decimal(truth)}`),
      ...answers.flatMap(({ name, value }, row) => {
        const y = TOP + ROW * row + 32;
        const text = (says) => create("svg:text", { x: EDGE, y: y - 10 }, `${name}: ${says}`);
        if (value === null) return [text("refuses")];
        const outside = value > limit || value < 0;
        return [text(`${decimal(value)}${value > limit ? " →" : ""}`),
          create("svg:line", { class: "ig-error", x1: t, x2: place(value), y1: y, y2: y }),
          create("svg:circle", { class: outside ? "ig-dot ig-outside" : "ig-dot", cx: place(value), cy: y, r: 6 })];
      }),
    );
    const ranked = answers.filter(({ value }) => value !== null)
      .sort((a, b) => Math.abs(a.value - truth) - Math.abs(b.value - truth));
    const [best, worst] = [ranked.at(0), ranked.at(-1)].map(({ name, value }) => `${name} (${decimal(value)})`);
    sentence.textContent = `${pairs[i]} pair${pairs[i] === 1 ? "" : "s"} of correlation ${correlations[j].toFixed(2)}, `
      + `${model.get("examples").toLocaleString("en")} examples: the truth is ${decimal(truth)} nats. `
      + `Nearest: ${best}. Furthest: ${worst}.`;
    svg.setAttribute("aria-label", answers.map(({ name, value }) => `${name} ${value === null ? "refuses" : decimal(value)}`)
      .join("; ") + `; truth ${decimal(truth)} nats`);
  }

  const root = view(el, "information-grid", [rho, count], sentence, svg,
    create("p", { class: "explorable-note" }, "mutual information in nats"));
  follow(model, draw);
  const width = new ResizeObserver(() => draw(model.get("state")));
  width.observe(root);
  return () => width.disconnect();
}

export default { render };
