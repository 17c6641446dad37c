// What the explorables share: elements, numbers, colours, controls, and the state that a figure shows.

// matplotlib's colour map viridis at 33 places, evenly spaced.
const VIRIDIS = (
  "440154 470d60 48186a 482374 472d7b 453781 424086 3e4989 3b528b 375b8d 33638d 2f6b8e 2c728e 297a8e 26828e 23898e 21918c "
  + "1f988b 1fa088 22a785 28ae80 32b67a 3fbc73 4ec36b 5ec962 70cf57 84d44b 98d83e addc30 c2df23 d8e219 ece51b fde725"
).split(" ").map((hex) => [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16)));

/** An element with attributes and children; `create("svg:g")` makes an SVG element. */
export function create(tag, attributes = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const range = (count) => [...Array(count).keys()];
export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const mean = (values) => sum(values) / values.length;

/** A value with two decimals and a proper minus sign. */
export const decimal = (value) => value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

/** The colour of a value between 0 and 1. */
export function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [a, b] = [VIRIDIS[low], VIRIDIS[low + 1]];
  return `rgb(${a.map((part, k) => Math.round(part + (place - low) * (b[k] - part))).join(" ")})`;
}

/** The scale of a map of CKA. */
export function colourBar() {
  const bar = create("span");
  bar.style.background = `linear-gradient(to right, ${range(33).map((k) => colour(k / 32))})`;
  return create("p", { class: "explorable-bar", "aria-hidden": true }, "CKA 0", bar, "1");
}

/** A map of CKA between layers; thin gaps where a stage begins, their names below. */
export function smallMap(layers, stages) {
  const [title, said] = [create("strong"), create("p", { class: "explorable-note" })];
  const place = (k) => 10 * k + 2 * stages.filter(([, first]) => first > 0 && first <= k).length;
  const size = place(layers.length - 1) + 10;
  const cells = layers.map((_, i) => layers.map((_, j) =>
    create("svg:rect", { x: place(j), y: place(i), width: 10.2, height: 10.2 })));
  const names = stages.filter(([, , length]) => length > 1).map(([label, first, length]) =>
    create("svg:text", { x: place(first) + 5 * length, y: size + 11, "text-anchor": "middle" }, label));
  const svg = create("svg:svg", { viewBox: `0 0 ${size} ${size + 14}`, role: "img" }, ...cells.flat(), ...names);
  const show = (name, cka, note, label) => {
    title.textContent = name;
    said.textContent = note;
    svg.setAttribute("aria-label", label);
    cells.forEach((row, i) => row.forEach((cell, j) => { cell.style.fill = colour(cka[i][j]); }));
  };
  return { node: create("div", {}, create("p", {}, title), svg, said), show };
}

/** A menu of names: `choose` hears the number of the chosen one. */
export function menu(label, names, choose) {
  const input = create("select", {}, ...names.map((name, k) => create("option", { value: k }, name)));
  input.addEventListener("change", () => choose(Number(input.value)));
  return { node: create("label", {}, label, input), show: (number) => { input.value = number; } };
}

/** A slider over whole numbers from `first` to `last`: `choose` hears where it stands, `show` moves it and says so. */
export function slider(label, first, last, choose) {
  const input = create("input", { type: "range", min: first, max: last, step: 1 });
  const output = create("output");
  input.addEventListener("input", () => choose(Number(input.value)));
  const show = (number, text) => {
    input.value = number;
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  return { node: create("label", {}, label, input, output), input, show };
}

/** Put a figure into `el`: controls, a sentence that says what is seen, and what is seen. */
export function view(el, name, controls, sentence, ...parts) {
  sentence.className = "explorable-sentence";
  const head = create("div", { class: "explorable-head" }, ...controls.map(({ node }) => node));
  const root = create("div", { class: `explorable-view ${name}` }, head, sentence, ...parts);
  el.replaceChildren(root);
  return root;
}

/** What changes the model's `state`, an object: `choose({ epoch: 3 })`. */
export const chooser = (model) => (change) => {
  model.set("state", { ...model.get("state"), ...change });
  model.save_changes();
};

/** Draw the model's `state`, now and whenever it changes, here or in Python. */
export function follow(model, draw) {
  model.on("change:state", () => draw(model.get("state")));
  draw(model.get("state"));
}
