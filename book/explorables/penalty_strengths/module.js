// Nets under penalties of three strengths, beside the net without one: CKA, paths, accuracy after pruning, scales.
import { chooser, colourBar, create, follow, mean, menu, range, slider, smallMap, view } from "../explorable.js";

const [WIDTH, HEIGHT] = [320, 170]; // of a plot, in its own units
const heading = (text) => create("p", {}, create("strong", {}, text));
const note = (text = "") => create("p", { class: "explorable-note" }, text);

function render({ model, el }) {
  const [none, penalties, layers, stages] = ["none", "penalties", "layers", "stages"].map((key) => model.get(key));
  const nets = [none, ...penalties.flatMap(({ strengths }) => strengths.map(({ net }) => net))];
  const largest = (pick) => Math.max(...nets.flatMap(pick));
  const blocks = range(layers.length).filter((k) => layers[k].startsWith("layer"));
  const neighbours = (net) => mean(blocks.slice(1).map((k) => net.cka[k - 1][k]));

  /** A plot with two marks at each label: hollow for the net without a penalty, filled for the chosen one. */
  function dots(title, what, labels, pick, limit) {
    const [left, top, bottom] = [30, 8, HEIGHT - 20];
    const across = (k) => left + (k + 0.5) * (WIDTH - left) / labels.length;
    const up = (value) => bottom - (bottom - top) * Math.min(value, limit) / limit;
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((size) => limit / size <= 5) || 100;
    const axis = range(Math.floor(limit / step + 1e-9) + 1).map((k) => k * step).flatMap((tick) => [
      create("svg:line", { class: "strengths-grid", x1: left, x2: WIDTH, y1: up(tick), y2: up(tick) }),
      create("svg:text", { x: left - 5, y: up(tick) + 4, "text-anchor": "end" }, `${Number(tick.toFixed(1))}`)]);
    const names = labels.map((label, k) => create("svg:text", { x: across(k), y: HEIGHT - 4, "text-anchor": "middle" }, label));
    const filled = labels.map(() => create("svg:circle", { class: "strengths-chosen", r: 4 }));
    const hollow = pick(none).map((value, k) => create("svg:circle", { class: "strengths-none", r: 5.5, cx: across(k), cy: up(value) }));
    const svg = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...axis, ...names, ...filled, ...hollow);
    const show = (name, net) => {
      pick(net).forEach((value, k) => { filled[k].style.transform = `translate(${across(k)}px, ${up(value)}px)`; });
      const said = labels.map((label, k) => `${label}: ${pick(net)[k]}, without ${pick(none)[k]}`);
      svg.setAttribute("aria-label", `${what}, ${name}. ${said.join("; ")}`);
    };
    return { node: create("div", {}, heading(title), svg, note(what)), show };
  }

  /** The path, stage by stage: two relative steps with the angle between them. */
  function path() {
    const corners = (net, stage) => {
      const [a, b] = net.steps.slice(2 * stage, 2 * stage + 2);
      const angle = net.angles[stage] * Math.PI / 180;
      return [[0, 0], [a, 0], [a + b * Math.cos(angle), b * Math.sin(angle)]];
    };
    const [width, height] = [0, 1].map((axis) =>
      largest((net) => net.angles.flatMap((_, stage) => corners(net, stage).map((corner) => corner[axis]))));
    const scale = 98 / width;
    const [floor, left] = [scale * height + 6, (stage) => 5 + 106 * stage];
    const place = (stage) => ([x, y]) => `${(left(stage) + scale * x).toFixed(1)},${(floor - scale * y).toFixed(1)}`;
    const drawn = (kind, net) => net.angles.map((_, stage) =>
      create("svg:polyline", { class: `strengths-${kind}`, points: corners(net, stage).map(place(stage)).join(" ") }));
    const chosen = create("svg:g");
    const texts = (y, text = "") => none.angles.map((_, stage) => create("svg:text", { x: left(stage), y }, text && `${text} ${stage + 1}`));
    const turns = texts(floor + 34);
    const svg = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${floor + 40}`, role: "img" },
      ...drawn("none", none), chosen, ...texts(floor + 20, "stage"), ...turns);
    const show = (name, net) => {
      chosen.replaceChildren(...drawn("chosen", net));
      turns.forEach((text, stage) => { text.textContent = `turns ${net.angles[stage]}° (${none.angles[stage]}°)`; });
      svg.setAttribute("aria-label", `Path of the features, ${name}: relative steps ${net.steps.join(", ")}, without a `
        + `penalty ${none.steps.join(", ")}; turns of ${net.angles.join("°, ")}°, without ${none.angles.join("°, ")}°`);
    };
    return { node: create("div", {}, heading("Path"), svg, note("steps relative to the features, true angles between them")), show };
  }

  const choose = chooser(model);
  const menuOfPenalties = menu("Penalty", ["none", ...penalties.map(({ name }) => name)], (entry) => choose({ penalty: entry - 1 }));
  const strengths = slider("Strength", 0, penalties[0].strengths.length - 1, (strength) => choose({ strength }));
  const sentence = create("p", { "aria-live": "polite" });
  const limit = 1.05 * largest((net) => [...net.inner, ...net.last]);
  const scales = "mean |γ| of the batch norm, block by block";
  const [without, under] = [smallMap(layers, stages), smallMap(layers, stages)];
  const drawMap = (map, name, net) => {
    const value = neighbours(net).toFixed(2);
    map.show(name, net.cka, `CKA of neighbours: ${value}`, `CKA between the layers, ${name}; neighbouring blocks ${value}`);
  };
  const parts = [
    path(),
    dots("Accuracy after pruning, %", "dense; weights gone; multiply-adds left (no fine-tuning)", model.get("pruned"),
      (net) => net.accuracy, 10 * Math.ceil(largest((net) => net.accuracy) / 10)),
    dots("Behind the inner filters", scales, model.get("blocks"), (net) => net.inner, limit),
    dots("At the end of the branches", scales, model.get("blocks"), (net) => net.last, limit),
  ];

  function draw({ penalty, strength }) {
    const chosen = penalties[penalty]; // none at −1
    const { label, net } = chosen ? chosen.strengths[strength] : { label: "–", net: none };
    const name = chosen ? `${chosen.name} at ${label}` : "no penalty";
    menuOfPenalties.show(penalty + 1);
    strengths.show(strength, chosen ? label : "none");
    strengths.input.disabled = !chosen;
    drawMap(under, name, net);
    for (const part of parts) part.show(name, net);
    const [now, then] = [net, none].map((one) => ({
      dense: one.accuracy[0].toFixed(1), pruned: one.accuracy[4].toFixed(1), cka: neighbours(one).toFixed(2), step: mean(one.steps).toFixed(2),
    }));
    sentence.replaceChildren(create("strong", {}, `${chosen ? name : "No penalty"}: ${now.dense} % right`), chosen
      ? `, without a penalty ${then.dense} %; with 90 % of the weights gone ${now.pruned} %, without ${then.pruned} %. `
        + `CKA of neighbours ${now.cka}, without ${then.cka}; relative step ${now.step}, without ${then.step}.`
      : `; with 90 % of the weights gone ${now.pruned} %. CKA of neighbours ${now.cka}, relative step ${now.step}.`);
  }

  const mark = (kind, r, says) => create("span", {}, create("svg:svg", { viewBox: "-7 -7 14 14", "aria-hidden": true },
    create("svg:circle", { class: `strengths-${kind}`, r })), says);
  view(el, "penalty-strengths", [menuOfPenalties, strengths], sentence,
    create("p", { class: "explorable-legend" }, mark("none", 5.5, "no penalty"), mark("chosen", 4, "the chosen one")),
    create("div", { class: "explorable-panels" },
      create("div", { class: "explorable-maps" }, without.node, under.node, colourBar()), ...parts.map(({ node }) => node)));
  drawMap(without, "no penalty", none);
  follow(model, draw);
}

export default { render };
