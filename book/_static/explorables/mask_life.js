// Masks of a layer, epoch by epoch, as an explorable: which weights are alive, which grow, which die.
// It needs mask_life.css and mask_life.data.js beside it and nothing else; README.md says how a page includes it.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = window.maskLifeData;
  const [side, units] = [data.side, data.units];
  const pixels = side * side;
  const columns = Math.ceil(Math.sqrt(units));
  const pitch = side + 1.5; // of the units' small images
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  /** An element with attributes and children; `create("svg:g")` makes an SVG element. */
  function create(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const number = (value) => value.toLocaleString("en");
  const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
  const range = (n) => [...Array(n).keys()];

  /** A mask, unit by unit, from its bits in base64: one 0 or 1 a weight. */
  function unpack(text) {
    const bytes = atob(text);
    return range(units * pixels).map((k) => (bytes.charCodeAt(k >> 3) >> (7 - (k & 7))) & 1);
  }
  const methods = data.methods.map(({ name, frames }) => ({ name, frames: frames.map(unpack) }));
  const last = methods[0].frames.length - 1;

  /** Connections of each pixel. */
  const connections = (mask) => range(pixels).map((p) => range(units).reduce((sum, u) => sum + mask[u * pixels + p], 0));

  /** One path of squares of the given size, for the weights that pass. */
  function squares(passes, size) {
    const inset = (1 - size) / 2;
    return range(units * pixels).filter(passes).map((k) => {
      const [u, p] = [Math.floor(k / pixels), k % pixels];
      const x = (u % columns) * pitch + (p % side) + inset;
      const y = Math.floor(u / columns) * pitch + Math.floor(p / side) + inset;
      return `M${x.toFixed(2)} ${y.toFixed(2)}h${size}v${size}h${-size}z`;
    }).join("");
  }

  /** A small map of the pixels: the darker, the more, relative to the average. */
  function pixelMap(title) {
    const cells = range(pixels).map((p) => create("svg:rect", { x: p % side, y: Math.floor(p / side), width: 1, height: 1 }));
    const svg = create("svg:svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": title }, ...cells);
    const show = (values) => {
      const mean = values.reduce((a, b) => a + b, 0) / pixels || 1;
      cells.forEach((cell, p) => { cell.style.fillOpacity = Math.min(values[p] / mean / 2.5, 1).toFixed(3); });
    };
    return { node: create("figure", {}, svg, create("p", {}, title)), show };
  }

  function explore(root) {
    const choice = create("select", {}, ...methods.map(({ name }, k) => create("option", { value: k }, name)));
    const slider = create("input", { type: "range", min: 0, max: last, step: 1, value: last });
    const play = create("button", { type: "button" }, "Play");
    const sentence = create("p", { class: "life-sentence", "aria-live": "polite" });
    const paths = ["alive", "grown", "died"].map((state) => create("svg:path", { class: `life-${state}` }));
    const frames = range(units).map((u) => create("svg:rect", {
      class: "life-unit", x: (u % columns) * pitch - 0.25, y: Math.floor(u / columns) * pitch - 0.25,
      width: side + 0.5, height: side + 0.5,
    }));
    const [width, height] = [columns, Math.ceil(units / columns)].map((n) => n * pitch - 0.5);
    const tiles = create("svg:svg", { viewBox: `-0.5 -0.5 ${width} ${height}`, role: "img" }, ...frames, ...paths);
    const [ink, start, now] = ["ink of the digits", "connections at the start", "connections now"].map(pixelMap);
    ink.show(data.ink);
    let method, epoch, timer;

    function show(k, e) {
      [method, epoch] = [methods[k], e];
      const [mask, before] = [method.frames[e], method.frames[Math.max(e - 1, 0)]];
      const tried = range(units * pixels).filter((i) => method.frames.slice(0, e + 1).some((frame) => frame[i])).length;
      const [alive, grown, died] = [(i) => mask[i] && before[i], (i) => mask[i] && !before[i], (i) => !mask[i] && before[i]];
      const count = (passes) => range(units * pixels).filter(passes).length;
      paths[0].setAttribute("d", squares(alive, 0.94));
      paths[1].setAttribute("d", squares(grown, 0.94));
      paths[2].setAttribute("d", squares(died, 0.6));
      start.show(connections(method.frames[0]));
      now.show(connections(mask));
      const edge = range(units * pixels).filter((i) => mask[i] && [0, side - 1].includes(i % side)).length;
      const total = count((i) => mask[i]);
      const empty = range(units).filter((u) => !range(pixels).some((p) => mask[u * pixels + p])).length;
      sentence.replaceChildren(
        create("strong", {}, `${method.name}, ${e ? `epoch ${e}` : "at the start"}: ${number(total)} of ${number(mask.length)} weights alive.`),
        e ? ` Since epoch ${e - 1}, ${number(count(died))} died and ${number(count(grown))} grew; ${percent(tried / mask.length)} have been alive at some time.` : "",
        ` ${percent(edge / total)} of those alive look at the two outer columns, a quarter of the pixels with hardly any ink.`,
        empty ? ` ${empty} of ${units} units have none.` : "",
      );
      tiles.setAttribute("aria-label", `Masks of ${units} units under ${method.name}, ${e ? `epoch ${e}` : "at the start"}`);
      slider.value = e;
      slider.setAttribute("aria-valuetext", e ? `epoch ${e}` : "start");
    }

    function pause() {
      clearInterval(timer);
      timer = undefined;
      play.textContent = "Play";
    }
    play.addEventListener("click", () => {
      if (timer) return pause();
      play.textContent = "Pause";
      if (epoch === last) show(Number(choice.value), 0);
      timer = setInterval(() => {
        show(Number(choice.value), epoch + 1);
        if (epoch === last) pause();
      }, 500);
    });
    // Readers who want no motion move the slider at their own pace.
    const calm = () => { pause(); play.hidden = still.matches; };
    still.addEventListener("change", calm);
    slider.addEventListener("input", () => { pause(); show(Number(choice.value), Number(slider.value)); });
    choice.addEventListener("change", () => show(Number(choice.value), epoch));

    const legend = [["alive", "alive"], ["grown", "grown since the epoch before"], ["died", "died since"]].map(([state, text]) =>
      create("span", {}, create("svg:svg", { viewBox: "0 0 1 1", "aria-hidden": true },
        create("svg:path", { class: `life-${state}`, d: state === "died" ? "M.2 .2h.6v.6h-.6z" : "M0 0h1v1h-1z" })), text));
    root.replaceChildren(
      create("div", { class: "life-head" },
        create("label", {}, "Method ", choice), create("label", { class: "life-epoch" }, "Epoch ", slider), play),
      sentence,
      create("div", { class: "life-panels" },
        create("div", {}, tiles, create("p", { class: "life-legend" }, ...legend)),
        create("div", { class: "life-maps" }, ink.node, start.node, now.node)),
    );
    calm();
    choice.value = data.first;
    show(data.first, last);
  }

  for (const root of document.querySelectorAll(".mask-life")) explore(root);
})();
