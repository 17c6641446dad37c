// Nets under penalties of three strengths, beside the net without one: CKA, paths, scales, accuracy after pruning.
// It needs penalty_strengths.css, explorable.css and penalty_strengths.data.js beside it and nothing else; README.md
// says how a page includes it.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = window.penaltyStrengthsData;
  const [WIDTH, HEIGHT] = [320, 170]; // of a plot, in its own units

  /** An element with attributes and children; `create("svg:g")` makes an SVG element. */
  function create(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const nets = [data.none, ...data.penalties.flatMap(({ strengths }) => strengths.map(({ net }) => net))];
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const blocks = data.layers.map((layer, k) => (layer.startsWith("layer") ? k : -1)).filter((k) => k >= 0);
  const neighbours = (net) => mean(blocks.slice(1).map((k) => net.cka[k - 1][k]));

  /** The colour of a value between 0 and 1: the stops of the book's colour map, blended. */
  function colour(value) {
    const place = Math.min(Math.max(value, 0), 1) * (data.colours.length - 1);
    const low = Math.min(Math.floor(place), data.colours.length - 2);
    const [a, b] = [data.colours[low], data.colours[low + 1]];
    return `rgb(${a.map((part, k) => Math.round(part + (place - low) * (b[k] - part))).join(" ")})`;
  }

  /** A map of CKA; thin gaps where a stage begins, their names below. */
  function map() {
    const title = create("p", { class: "strengths-title" });
    const note = create("p", { class: "strengths-note" });
    const gaps = data.layers.map((_, k) => data.stages.filter(([, first]) => first > 0 && first <= k).length);
    const place = (k) => 10 * k + 2 * gaps[k];
    const size = place(data.layers.length - 1) + 10;
    const cells = data.layers.map((_, i) => data.layers.map((_, j) =>
      create("svg:rect", { x: place(j), y: place(i), width: 10.2, height: 10.2 })));
    const names = data.stages.filter(([, , length]) => length > 1).map(([label, first, length]) =>
      create("svg:text", { x: place(first) + 5 * length, y: size + 11, "text-anchor": "middle" }, label));
    const svg = create("svg:svg", { viewBox: `0 0 ${size} ${size + 14}`, role: "img" }, ...cells.flat(), ...names);
    const show = (name, net) => {
      title.textContent = name;
      note.textContent = `CKA of neighbours: ${neighbours(net).toFixed(2)}`;
      svg.setAttribute("aria-label", `CKA between the layers, ${name}; neighbouring blocks ${neighbours(net).toFixed(2)}`);
      cells.forEach((row, i) => row.forEach((cell, j) => { cell.style.fill = colour(net.cka[i][j]); }));
    };
    return { node: create("div", {}, title, svg, note), show };
  }

  /** A plot with two marks at each label: hollow for the net without a penalty, filled for the chosen one. */
  function dots(heading, what, labels, pick, limit) {
    const [left, top, bottom] = [30, 8, HEIGHT - 20];
    const across = (k) => left + (k + 0.5) * (WIDTH - left) / labels.length;
    const up = (value) => bottom - (bottom - top) * Math.min(value, limit) / limit;
    const parts = [];
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((size) => limit / size <= 5) || 100;
    for (let tick = 0; tick <= limit + 1e-9; tick += step) {
      parts.push(create("svg:line", { class: "strengths-grid", x1: left, x2: WIDTH, y1: up(tick), y2: up(tick) }));
      parts.push(create("svg:text", { x: left - 5, y: up(tick) + 4, "text-anchor": "end" }, `${Number(tick.toFixed(1))}`));
    }
    labels.forEach((label, k) =>
      parts.push(create("svg:text", { x: across(k), y: HEIGHT - 4, "text-anchor": "middle" }, label)));
    const filled = labels.map(() => create("svg:circle", { class: "strengths-chosen", r: 4 }));
    const hollow = labels.map((_, k) =>
      create("svg:circle", { class: "strengths-none", r: 5.5, cx: across(k), cy: up(pick(data.none)[k]) }));
    const svg = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...parts, ...filled, ...hollow);
    const show = (name, net) => {
      pick(net).forEach((value, k) => { filled[k].style.transform = `translate(${across(k)}px, ${up(value)}px)`; });
      const said = labels.map((label, k) => `${label}: ${pick(net)[k]}, without ${pick(data.none)[k]}`);
      svg.setAttribute("aria-label", `${what}, ${name}. ${said.join("; ")}`);
    };
    const title = create("p", { class: "strengths-title" }, heading);
    return { node: create("div", {}, title, svg, create("p", { class: "strengths-note" }, what)), show };
  }

  /** The path, stage by stage: two relative steps with the angle between them. */
  function path() {
    const corners = (net, stage) => {
      const [a, b] = net.steps.slice(2 * stage, 2 * stage + 2);
      const angle = net.angles[stage] * Math.PI / 180;
      return [[0, 0], [a, 0], [a + b * Math.cos(angle), b * Math.sin(angle)]];
    };
    const ends = nets.flatMap((net) => net.angles.flatMap((_, stage) => corners(net, stage)));
    const [width, height] = [0, 1].map((axis) => Math.max(...ends.map((corner) => corner[axis])));
    const scale = 98 / width;
    const [floor, left] = [scale * height + 6, (stage) => 5 + 106 * stage];
    const place = (stage) => ([x, y]) => `${(left(stage) + scale * x).toFixed(1)},${(floor - scale * y).toFixed(1)}`;
    const draw = (kind, net) => net.angles.map((_, stage) =>
      create("svg:polyline", { class: `strengths-${kind}`, points: corners(net, stage).map(place(stage)).join(" ") }));
    const chosen = create("svg:g");
    const names = data.none.angles.map((_, stage) => create("svg:text", { x: left(stage), y: floor + 20 }, `stage ${stage + 1}`));
    const says = data.none.angles.map((_, stage) => create("svg:text", { x: left(stage), y: floor + 34 }));
    const svg = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${floor + 40}`, role: "img" },
      ...draw("none", data.none), chosen, ...names, ...says);
    const show = (name, net) => {
      chosen.replaceChildren(...draw("chosen", net));
      says.forEach((text, stage) => { text.textContent = `turns ${net.angles[stage]}° (${data.none.angles[stage]}°)`; });
      svg.setAttribute("aria-label", `Path of the features, ${name}: relative steps ${net.steps.join(", ")}, without a `
        + `penalty ${data.none.steps.join(", ")}; turns of ${net.angles.join("°, ")}°, without ${data.none.angles.join("°, ")}°`);
    };
    const note = create("p", { class: "strengths-note" }, "steps relative to the features, true angles between them");
    return { node: create("div", {}, create("p", { class: "strengths-title" }, "Path"), svg, note), show };
  }

  function explore(root) {
    const options = ["none", ...data.penalties.map(({ name }) => name)];
    const choice = create("select", {}, ...options.map((name, k) => create("option", { value: k - 1 }, name)));
    const slider = create("input", { type: "range", min: 0, max: 2, step: 1 });
    const shown = create("output");
    const sentence = create("p", { class: "strengths-sentence", "aria-live": "polite" });
    const largest = (pick) => Math.max(...nets.flatMap(pick));
    const scales = 1.05 * largest((net) => [...net.inner, ...net.last]);
    const [without, under] = [map(), map()];
    const scale = "mean |γ| of the batch norm, block by block";
    const parts = [
      path(),
      dots("Accuracy after pruning, %", "dense; weights gone; multiply-adds left (no fine-tuning)", data.pruned,
        (net) => net.accuracy, 10 * Math.ceil(largest((net) => net.accuracy) / 10)),
      dots("Behind the inner filters", scale, data.blocks, (net) => net.inner, scales),
      dots("At the end of the branches", scale, data.blocks, (net) => net.last, scales),
    ];

    function show() {
      const penalty = data.penalties[choice.value];
      slider.disabled = !penalty;
      slider.max = penalty ? penalty.strengths.length - 1 : 2;
      const { label, net } = penalty ? penalty.strengths[slider.value] : { label: "–", net: data.none };
      const name = penalty ? `${penalty.name} at ${label}` : "no penalty";
      shown.textContent = label;
      slider.setAttribute("aria-valuetext", penalty ? `strength ${label}` : "no strength");
      without.show("no penalty", data.none);
      for (const part of [under, ...parts]) part.show(name, net);
      const [now, then] = [net, data.none].map((n) => ({
        dense: n.accuracy[0].toFixed(1), pruned: n.accuracy[4].toFixed(1), cka: neighbours(n).toFixed(2), step: mean(n.steps).toFixed(2),
      }));
      sentence.replaceChildren(create("strong", {}, `${penalty ? name : "No penalty"}: ${now.dense} % right`), penalty
        ? `, without a penalty ${then.dense} %; with 90 % of the weights gone ${now.pruned} %, without ${then.pruned} %. `
          + `CKA of neighbours ${now.cka}, without ${then.cka}; relative step ${now.step}, without ${then.step}.`
        : `; with 90 % of the weights gone ${now.pruned} %. CKA of neighbours ${now.cka}, relative step ${now.step}.`);
    }
    choice.addEventListener("change", show);
    slider.addEventListener("input", show);

    const mark = (kind, r) => create("svg:svg", { viewBox: "-7 -7 14 14", "aria-hidden": true }, create("svg:circle", { class: `strengths-${kind}`, r }));
    const bar = create("p", { class: "strengths-bar", "aria-hidden": true }, "CKA 0", create("span"), "1");
    bar.children[0].style.background = `linear-gradient(to right, ${data.colours.map((c) => `rgb(${c.join(" ")})`)})`;
    root.replaceChildren(
      create("div", { class: "strengths-head" }, create("label", {}, "Penalty ", choice), create("label", {}, "Strength ", slider, shown)),
      sentence,
      create("p", { class: "strengths-key" }, create("span", {}, mark("none", 5.5), "no penalty"), create("span", {}, mark("chosen", 4), "the chosen one")),
      create("div", { class: "strengths-panels" },
        create("div", { class: "strengths-maps" }, without.node, under.node, bar), ...parts.map(({ node }) => node)),
    );
    choice.value = data.first[0];
    slider.max = 2;
    slider.value = data.first[1];
    show();
  }

  for (const root of document.querySelectorAll(".penalty-strengths")) explore(root);
})();
