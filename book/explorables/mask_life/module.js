// Masks of a layer, epoch by epoch: which weights are alive, which grow, which die.
import { chooser, create, follow, mean, menu, range, slider, sum, view } from "../explorable.js";

const number = (value) => value.toLocaleString("en");
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;

function render({ model, el }) {
  const [side, units] = [model.get("side"), model.get("units")];
  const pixels = side * side;
  const all = range(units * pixels);
  const columns = Math.ceil(Math.sqrt(units));
  const pitch = side + 1.5; // of the units' small images
  const corner = (unit) => [(unit % columns) * pitch, Math.floor(unit / columns) * pitch];

  /** A mask, unit by unit, from its bits in base64: one 0 or 1 a weight. */
  function unpack(text) {
    const bytes = atob(text);
    return all.map((k) => (bytes.charCodeAt(k >> 3) >> (7 - (k & 7))) & 1);
  }
  const methods = model.get("methods").map(({ name, frames }) => ({ name, frames: frames.map(unpack) }));
  const last = methods[0].frames.length - 1;

  /** Connections of each pixel. */
  const connections = (mask) => range(pixels).map((p) => sum(range(units).map((u) => mask[u * pixels + p])));

  /** One path of squares of the given size, one for each of these weights. */
  function squares(weights, size) {
    return weights.map((k) => {
      const [[left, top], p] = [corner(Math.floor(k / pixels)), k % pixels];
      const [x, y] = [left + (p % side), top + Math.floor(p / side)].map((edge) => (edge + (1 - size) / 2).toFixed(2));
      return `M${x} ${y}h${size}v${size}h${-size}z`;
    }).join("");
  }

  /** A small map of the pixels: the darker, the more, relative to the average. */
  function pixelMap(title) {
    const cells = range(pixels).map((p) => create("svg:rect", { x: p % side, y: Math.floor(p / side), width: 1, height: 1 }));
    const svg = create("svg:svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": title }, ...cells);
    const show = (values) => {
      const average = mean(values) || 1;
      cells.forEach((cell, p) => { cell.style.fillOpacity = Math.min(values[p] / average / 2.5, 1).toFixed(3); });
    };
    return { node: create("div", {}, svg, create("p", { class: "explorable-note" }, title)), show };
  }

  const choose = chooser(model);
  const menuOfMethods = menu("Method", methods.map(({ name }) => name), (method) => choose({ method }));
  const epochs = slider("Epoch", 0, last, (epoch) => { pause(); choose({ epoch }); });
  const play = create("button", { type: "button" }, "Play");
  const sentence = create("p", { "aria-live": "polite" });
  const paths = Object.fromEntries(["alive", "grown", "died"].map((state) => [state, create("svg:path", { class: `life-${state}` })]));
  const frames = range(units).map((unit) => {
    const [x, y] = corner(unit).map((edge) => edge - 0.25);
    return create("svg:rect", { class: "life-unit", x, y, width: side + 0.5, height: side + 0.5 });
  });
  const [width, height] = [columns, Math.ceil(units / columns)].map((count) => count * pitch - 0.5);
  const tiles = create("svg:svg", { viewBox: `-0.5 -0.5 ${width} ${height}`, role: "img" }, ...frames, ...Object.values(paths));
  const [ink, start, now] = ["ink of the digits", "connections at the start", "connections now"].map(pixelMap);
  ink.show(model.get("ink"));

  function draw({ method: k, epoch }) {
    const { name, frames: masks } = methods[k];
    const [mask, before] = [masks[epoch], masks[Math.max(epoch - 1, 0)]];
    const alive = all.filter((i) => mask[i]);
    const [grown, died] = [alive.filter((i) => !before[i]), all.filter((i) => before[i] && !mask[i])];
    const tried = all.filter((i) => masks.slice(0, epoch + 1).some((past) => past[i]));
    menuOfMethods.show(k);
    epochs.show(epoch, epoch ? `epoch ${epoch}` : "start");
    paths.alive.setAttribute("d", squares(alive.filter((i) => before[i]), 0.94));
    paths.grown.setAttribute("d", squares(grown, 0.94));
    paths.died.setAttribute("d", squares(died, 0.6));
    start.show(connections(masks[0]));
    now.show(connections(mask));
    const edge = alive.filter((i) => [0, side - 1].includes(i % side));
    const empty = units - new Set(alive.map((i) => Math.floor(i / pixels))).size;
    const when = epoch ? `epoch ${epoch}` : "at the start";
    sentence.replaceChildren(
      create("strong", {}, `${name}, ${when}: ${number(alive.length)} of ${number(mask.length)} weights alive.`),
      epoch ? ` Since epoch ${epoch - 1}, ${number(died.length)} died and ${number(grown.length)} grew; ${percent(tried.length / mask.length)} have been alive at some time.` : "",
      alive.length ? ` ${percent(edge.length / alive.length)} of those alive look at the two outer columns, a quarter of the pixels with hardly any ink.` : "",
      empty ? ` ${empty} of ${units} units have none.` : "",
    );
    tiles.setAttribute("aria-label", `Masks of ${units} units under ${name}, ${when}`);
  }

  let timer;
  function pause() {
    clearInterval(timer);
    timer = undefined;
    play.textContent = "Play";
  }
  play.addEventListener("click", () => {
    if (timer) return pause();
    play.textContent = "Pause";
    if (model.get("state").epoch === last) choose({ epoch: 0 });
    timer = setInterval(() => {
      choose({ epoch: model.get("state").epoch + 1 });
      if (model.get("state").epoch === last) pause();
    }, 500);
  });
  // Readers who want no motion move the slider at their own pace.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const calm = () => { pause(); play.hidden = still.matches; };
  still.addEventListener("change", calm);
  calm();

  const legend = [["alive", "alive"], ["grown", "grown since the epoch before"], ["died", "died since"]].map(([state, text]) =>
    create("span", {}, create("svg:svg", { viewBox: "0 0 1 1", "aria-hidden": true },
      create("svg:path", { class: `life-${state}`, d: state === "died" ? "M.2 .2h.6v.6h-.6z" : "M0 0h1v1h-1z" })), text));
  view(el, "mask-life", [menuOfMethods, epochs, { node: play }], sentence, create("div", { class: "explorable-panels" },
    create("div", {}, tiles, create("p", { class: "explorable-legend" }, ...legend)),
    create("div", { class: "life-maps" }, ink.node, start.node, now.node)));
  follow(model, draw);
  return () => { pause(); still.removeEventListener("change", calm); };
}

export default { render };
