// A map of CKA: choose a cell, and see how its two layers arrange the same images.
import { chooser, colour, colourBar, create, decimal, follow, menu, view } from "../explorable.js";

/** The points, rotated and perhaps mirrored so that they lie as near as they can to `target` (orthogonal Procrustes). */
function turned(points, target) {
  let [xx, xy, yx, yy] = [0, 0, 0, 0];
  points.forEach(([x, y], k) => {
    const [u, v] = target[k];
    xx += x * u; xy += x * v; yx += y * u; yy += y * v;
  });
  const mirror = Math.hypot(xx - yy, xy + yx) > Math.hypot(xx + yy, xy - yx) ? -1 : 1;
  const angle = Math.atan2(xy - mirror * yx, xx + mirror * yy);
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y]) => [c * x - mirror * s * y, s * x + mirror * c * y]);
}

function render({ model, el }) {
  const [networks, images, labels, classes] = ["networks", "images", "labels", "classes"].map((key) => model.get(key));
  const choose = chooser(model);
  const words = (value) => model.get("words").find(([least]) => value >= least)[1];

  /** One picture of the images as a layer arranges them; the mark of image k is `marks[k]`. */
  function picture(side) {
    const name = create("strong");
    const share = create("span", { class: "cka-share" });
    const marks = labels.map((label, k) => {
      const shape = classes[label].shape === "square"
        ? create("svg:rect", { x: -3.6, y: -3.6, width: 7.2, height: 7.2 })
        : create("svg:circle", { r: 4.1 });
      shape.style.fill = classes[label].colour;
      shape.dataset.image = k;
      return shape;
    });
    const svg = create("svg:svg", { viewBox: "-100 -100 200 200", role: "img" }, ...marks);
    const node = create("div", { class: `cka-picture cka-${side}` }, create("p", { class: "explorable-note" }, name, share), svg);
    const places = [];

    function show(layer, explained, points) {
      name.textContent = layer;
      share.textContent = `shows ${Math.floor(100 * explained + 0.5)} % of its variance`;
      svg.setAttribute("aria-label", `${marks.length} test images as ${layer} arranges them, in two dimensions`);
      const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
      const middle = [xs, ys].map((all) => (Math.max(...all) + Math.min(...all)) / 2);
      const reach = Math.max(...[xs, ys].map((all) => Math.max(...all) - Math.min(...all))) / 2 || 1;
      points.forEach(([x, y], k) => {
        places[k] = [(x - middle[0]) * 93 / reach, (middle[1] - y) * 93 / reach];
        marks[k].style.transform = `translate(${places[k][0].toFixed(2)}px, ${places[k][1].toFixed(2)}px)`;
      });
    }

    /** The image whose mark is nearest to the pointer, null where there is none near. */
    function at(event) {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * 200 - 100;
      const y = (event.clientY - box.top) / box.height * 200 - 100;
      const distances = places.map(([u, v]) => Math.hypot(u - x, v - y));
      const nearest = distances.indexOf(Math.min(...distances));
      return distances[nearest] < 14 ? nearest : null;
    }
    return { node, svg, marks, show, at };
  }

  const [left, right] = [picture("left"), picture("right")];
  const sentence = create("p");
  const detail = create("p", { class: "cka-detail explorable-note" });
  const map = create("div", { class: "cka-grid", role: "grid" });
  const [below, beside] = [create("div", { class: "cka-below" }), create("div", { class: "cka-beside" })];
  const legend = create("div", { class: "cka-legend explorable-note", role: "group", "aria-label": "Classes of the images" });
  const chosen = menu("Network", networks.map(({ name }) => name), (network) => {
    const [row, column] = networks[network].first;
    choose({ network, row, column });
  });
  let network, cells, kept, shown;

  // -- the map
  function load(next) {
    network = next;
    const starts = network.stages.map(([, start]) => start);
    map.setAttribute("aria-label", `CKA of every two layers of ${network.name}: arrow keys choose a cell`);
    cells = network.cka.map((row, i) => row.map((value, j) => {
      const cell = create("div", {
        role: "gridcell",
        tabindex: -1,
        "aria-selected": false,
        "aria-label": `${network.layers[i]} and ${network.layers[j]}: CKA ${decimal(value)}, ${words(value)}`,
      });
      cell.style.background = colour(value);
      cell.dataset.cell = `${i},${j}`;
      cell.classList.toggle("cka-start", j > 0 && starts.includes(j));
      return cell;
    }));
    map.replaceChildren(...cells.map((row, i) => {
      const line = create("div", { role: "row" }, ...row);
      line.classList.toggle("cka-start", i > 0 && starts.includes(i));
      return line;
    }));
    for (const axis of [below, beside]) {
      axis.replaceChildren(...network.stages.map(([label, , length]) => {
        const span = create("span", { "aria-hidden": true }, length > 1 ? label : "");
        span.style.flexGrow = length;
        return span;
      }));
    }
    kept = shown = null;
  }

  /** Show a pair of layers without choosing it for good. */
  function show(i, j) {
    shown?.classList.remove("cka-shown");
    shown = cells[i][j];
    shown.classList.add("cka-shown");
    const [a, b, value] = [network.layers[i], network.layers[j], network.cka[i][j]];
    sentence.replaceChildren(create("strong", {}, `${a} and ${b}: CKA ${decimal(value)}`), `, ${words(value)}.`);
    left.show(a, network.explained[i], network.points[i]);
    right.show(b, network.explained[j], turned(network.points[j], network.points[i]));
  }

  function draw({ network: number, row, column }) {
    if (networks[number] !== network) load(networks[number]);
    chosen.show(number);
    kept?.setAttribute("aria-selected", false);
    kept?.setAttribute("tabindex", -1);
    kept = cells[row][column];
    kept.setAttribute("aria-selected", true);
    kept.setAttribute("tabindex", 0);
    show(row, column);
  }

  const place = () => [model.get("state").row, model.get("state").column];
  const cellOf = (event) => event.target.dataset.cell?.split(",").map(Number);
  map.addEventListener("pointerover", (event) => event.pointerType === "mouse" && cellOf(event) && show(...cellOf(event)));
  map.addEventListener("pointerleave", () => show(...place()));
  map.addEventListener("click", (event) => {
    const [row, column] = cellOf(event) ?? place();
    choose({ row, column });
  });
  map.addEventListener("keydown", (event) => {
    const last = network.layers.length - 1;
    const [i, j] = place();
    const target = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [i, 0], End: [i, last],
    }[event.key];
    if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would take the key as its own
    const [row, column] = target.map((k) => Math.min(Math.max(k, 0), last));
    choose({ row, column });
    cells[row][column].focus();
  });

  // -- the pictures
  /** Bring forward one image, or one class, or (both null) nothing; the same marks on both sides. */
  function highlight(image, label) {
    root.classList.toggle("cka-dim", label !== null);
    for (const { marks } of [left, right]) {
      marks.forEach((mark, k) => {
        mark.classList.toggle("cka-of-class", labels[k] === label);
        mark.classList.toggle("cka-this", k === image);
      });
    }
    detail.textContent = image === null
      ? "Each mark is one test image, the same in both pictures; squares are vehicles."
      : `Image ${images[image]} of the test set: ${classes[label].name}.`;
  }
  for (const side of [left, right]) {
    const find = (event) => {
      const image = side.at(event);
      highlight(image, image === null ? null : labels[image]);
    };
    side.svg.addEventListener("pointermove", find);
    side.svg.addEventListener("pointerdown", find);
    side.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && highlight(null, null));
  }
  classes.forEach(({ name, colour: own, shape }, label) => {
    const button = create("button", { type: "button" }, create("span", { class: `cka-${shape}` }), name);
    button.firstChild.style.background = own;
    for (const on of ["pointerenter", "focus", "click"]) button.addEventListener(on, () => highlight(null, label));
    for (const off of ["pointerleave", "blur"]) button.addEventListener(off, () => highlight(null, null));
    legend.append(button);
  });

  const root = view(el, "cka-map", [chosen], sentence, create("div", { class: "explorable-panels" },
    create("div", { class: "cka-map-panel" }, beside, map, below, colourBar()),
    create("div", { class: "cka-pictures" }, left.node, right.node, detail, legend)));
  highlight(null, null);
  follow(model, draw);
}

export default { render };
