// A network without some of its blocks: switch them off, and see accuracy, CKA and steps of what is left.
import { chooser, colour, colourBar, create, decimal, follow, range, view } from "../explorable.js";

const [WIDTH, HEIGHT, LEFT] = [320, 190, 34]; // of a plot, in its own units, and of its scale
const panel = (title, svg, ...rest) => create("div", {}, create("p", {}, create("strong", {}, title)), svg, ...rest);
const note = (text) => create("p", { class: "explorable-note" }, text);

function render({ model, el }) {
  const [blocks, examples, raw, refreshed, cka, steps] =
    ["blocks", "examples", "raw", "refreshed", "cka", "steps"].map((key) => model.get(key));
  const layers = ["stem", ...blocks];
  const out = (set) => range(blocks.length).filter((k) => set >> k & 1);
  const percent = (correct) => 100 * correct / examples;
  const choose = chooser(model);
  const toggle = (k) => choose({ gone: model.get("state").gone ^ 1 << k });

  const switches = blocks.map((name, k) => {
    const input = create("input", { type: "checkbox" });
    input.addEventListener("change", () => toggle(k));
    return { node: create("label", {}, input, name), show: (gone) => { input.checked = !gone; } };
  });
  const sentence = create("p", { "aria-live": "polite" });

  // -- the map: stem and blocks, each with each
  const cells = layers.map((_, i) => layers.map((_, j) => create("svg:rect", { x: 30 + 16 * j, y: 16 * i, width: 16.2, height: 16.2 })));
  const short = (name) => name.replace("layer", "");
  const beside = layers.map((name, k) => create("svg:text", { x: 27, y: 16 * k + 12, "text-anchor": "end" }, short(name)));
  const map = create("svg:svg", { class: "sets-map", viewBox: `0 0 ${30 + 16 * layers.length} ${16 * layers.length}`, role: "img" }, ...cells.flat(), ...beside);

  function drawMap(set) {
    const values = cka[set];
    let next = 0;
    for (const i of range(layers.length)) {
      cells[i][i].style.fill = colour(1);
      for (let j = i + 1; j < layers.length; j += 1) {
        for (const cell of [cells[i][j], cells[j][i]]) cell.style.fill = colour(values[next] / 100);
        next += 1;
      }
    }
    beside.forEach((text, k) => text.classList.toggle("sets-gone", k > 0 && out(set).includes(k - 1)));
    map.setAttribute("aria-label", `CKA of stem and blocks; first and last: ${decimal(values[layers.length - 2] / 100)}`);
  }

  // -- the steps, one bar a block
  const limit = Math.max(...steps.flat());
  const [top, floor] = [8, HEIGHT - 22];
  const up = (share) => floor - (floor - top) * share;
  const scale = (ticks, show) => ticks.flatMap((tick) => [
    create("svg:line", { class: "sets-grid", x1: LEFT, x2: WIDTH, y1: up(tick), y2: up(tick) }),
    create("svg:text", { x: LEFT - 5, y: up(tick) + 4, "text-anchor": "end" }, show(tick))]);
  const wide = (WIDTH - LEFT) / blocks.length;
  const bars = blocks.map((_, k) => create("svg:rect", { class: "sets-bar", x: LEFT + wide * k + 5, width: wide - 10 }));
  const below = blocks.map((name, k) => create("svg:text", { x: LEFT + wide * (k + 0.5), y: HEIGHT - 6, "text-anchor": "middle" }, short(name)));
  const halves = range(Math.floor(limit / 500) + 1).map((k) => 500 * k / limit);
  const path = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    ...scale(halves, (share) => (share * limit / 1000).toFixed(1)), ...bars, ...below);

  function drawSteps(set) {
    bars.forEach((bar, k) => {
      bar.setAttribute("y", up(steps[set][k] / limit));
      bar.setAttribute("height", floor - up(steps[set][k] / limit));
    });
    below.forEach((text, k) => text.classList.toggle("sets-gone", out(set).includes(k)));
    path.setAttribute("aria-label", `Relative steps: ${blocks.map((name, k) => `${name} ${(steps[set][k] / 1000).toFixed(2)}`).join(", ")}`);
  }

  // -- all sets: accuracy against the number of blocks that are gone
  const across = (count) => LEFT + 8 + (WIDTH - LEFT - 16) * count / blocks.length;
  const all = create("svg:path", {
    class: "sets-all",
    d: refreshed.map((correct, set) => `M${across(out(set).length) - 6} ${up(correct / examples).toFixed(1)}h12`).join(""),
  });
  const here = create("svg:circle", { class: "sets-here", r: 5 });
  const counts = range(blocks.length + 1).map((k) => create("svg:text", { x: across(k), y: HEIGHT - 6, "text-anchor": "middle" }, k));
  const sets = create("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    ...scale([0, 0.25, 0.5, 0.75, 1], (share) => 100 * share), ...counts, all, here);

  function draw({ gone }) {
    const names = out(gone).map((k) => blocks[k]);
    const rivals = range(refreshed.length).filter((set) => out(set).length === names.length);
    const better = rivals.filter((set) => refreshed[set] > refreshed[gone]).length;
    const right = percent(refreshed[gone]).toFixed(1);
    switches.forEach(({ show }, k) => show(gone >> k & 1));
    sentence.replaceChildren(
      create("strong", {}, `${names.length ? `Without ${names.join(", ")}` : "With every block"}: ${right} % right`),
      `, ${percent(raw[gone]).toFixed(1)} % with the old batch norm statistics. `,
      rivals.length > 1 ? `Of ${rivals.length} sets of this size, ${better} keep more.` : "There is one set of this size.");
    drawMap(gone);
    drawSteps(gone);
    here.style.transform = `translate(${across(names.length)}px, ${up(refreshed[gone] / examples)}px)`;
    sets.setAttribute("aria-label", `Accuracy of all ${refreshed.length} sets; this one, ${names.length} blocks gone: ${right} %`);
  }

  view(el, "block-sets", switches, sentence, create("div", { class: "explorable-panels" },
    panel("CKA", map, colourBar()),
    panel("Accuracy, %", sets, note("each line is a set of blocks, the dot is yours; below: blocks gone")),
    panel("Steps", path, note("relative to the features; a block that opens a stage (2.0, 3.0) has none"))));
  follow(model, draw);
}

export default { render };
