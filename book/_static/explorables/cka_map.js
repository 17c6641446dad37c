// The CKA map as an explorable: choose a cell of the map and see how its two layers arrange the same images.
// It needs cka_map.css and cka_map.data.js beside it and nothing else; README.md says how a page includes it.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = window.ckaMapData;

  /** An element with attributes and children; `create("svg:g")` makes an SVG element. */
  function create(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** The colour of a value between 0 and 1: the stops of the book's colour map, blended. */
  function colour(value) {
    const place = Math.min(Math.max(value, 0), 1) * (data.colours.length - 1);
    const low = Math.min(Math.floor(place), data.colours.length - 2);
    const [a, b] = [data.colours[low], data.colours[low + 1]];
    return `rgb(${a.map((part, k) => Math.round(part + (place - low) * (b[k] - part))).join(" ")})`;
  }

  /** A value with two decimals and a proper minus sign. */
  const decimal = (value) => value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

  /** What a value of CKA says, in words. */
  const words = (value) => data.words.find(([least]) => value >= least)[1];

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

  /** One picture of the images as a layer arranges them; the mark of image k is `marks[k]`. */
  function picture(side) {
    const name = create("strong");
    const share = create("span", { class: "cka-share" });
    const marks = data.labels.map((label, k) => {
      const shape = data.shapes[label] === "square"
        ? create("svg:rect", { x: -3.6, y: -3.6, width: 7.2, height: 7.2 })
        : create("svg:circle", { r: 4.1 });
      shape.style.fill = data.palette[label];
      shape.dataset.image = k;
      return shape;
    });
    const svg = create("svg:svg", { viewBox: "-100 -100 200 200", role: "img" }, ...marks);
    const node = create("div", { class: `cka-picture cka-${side}` }, create("p", {}, name, share), svg);
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

  function explore(root) {
    const [left, right] = [picture("left"), picture("right")];
    const sentence = create("p", { class: "cka-sentence" });
    const detail = create("p", { class: "cka-detail" });
    const choice = create("select", {}, ...data.networks.map((network, k) => create("option", { value: k }, network.name)));
    const map = create("div", { class: "cka-grid", role: "grid" });
    const [below, beside] = [create("div", { class: "cka-below" }), create("div", { class: "cka-beside" })];
    const legend = create("div", { class: "cka-legend", role: "group", "aria-label": "Classes of the images" });
    let network, cells, kept, shown;

    // -- the map
    function load(index) {
      network = data.networks[index];
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
      keep(...network.first);
    }

    /** Show a pair of layers without choosing it for good. */
    function show(i, j) {
      if (shown) cells[shown[0]][shown[1]].classList.remove("cka-shown");
      shown = [i, j];
      cells[i][j].classList.add("cka-shown");
      const [a, b, value] = [network.layers[i], network.layers[j], network.cka[i][j]];
      sentence.replaceChildren(create("strong", {}, `${a} and ${b}: CKA ${decimal(value)}`), `, ${words(value)}.`);
      left.show(a, network.explained[i], network.points[i]);
      right.show(b, network.explained[j], turned(network.points[j], network.points[i]));
    }

    /** Show a pair of layers and come back to it when the pointer has left the map. */
    function keep(i, j) {
      if (kept) {
        cells[kept[0]][kept[1]].setAttribute("aria-selected", false);
        cells[kept[0]][kept[1]].tabIndex = -1;
      }
      kept = [i, j];
      cells[i][j].setAttribute("aria-selected", true);
      cells[i][j].tabIndex = 0;
      show(i, j);
    }

    const cellOf = (event) => event.target.dataset.cell?.split(",").map(Number);
    map.addEventListener("pointerover", (event) => event.pointerType === "mouse" && cellOf(event) && show(...cellOf(event)));
    map.addEventListener("pointerleave", () => show(...kept));
    map.addEventListener("click", (event) => cellOf(event) && keep(...cellOf(event)));
    map.addEventListener("keydown", (event) => {
      const last = network.layers.length - 1;
      const [i, j] = kept;
      const target = {
        ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
        Home: [i, 0], End: [i, last],
      }[event.key];
      if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keep(...target.map((k) => Math.min(Math.max(k, 0), last)));
      cells[kept[0]][kept[1]].focus();
    });

    // -- the pictures
    /** Bring forward one image, or one class, or (both null) nothing; the same marks on both sides. */
    function highlight(image, label) {
      root.classList.toggle("cka-dim", label !== null);
      for (const { marks } of [left, right]) {
        marks.forEach((mark, k) => {
          mark.classList.toggle("cka-of-class", data.labels[k] === label);
          mark.classList.toggle("cka-this", k === image);
        });
      }
      detail.textContent = image === null
        ? "Each mark is one test image, the same in both pictures; squares are vehicles."
        : `Image ${data.images[image]} of the test set: ${data.classes[label]}.`;
    }
    for (const side of [left, right]) {
      const find = (event) => {
        const image = side.at(event);
        highlight(image, image === null ? null : data.labels[image]);
      };
      side.svg.addEventListener("pointermove", find);
      side.svg.addEventListener("pointerdown", find);
      side.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && highlight(null, null));
    }
    data.classes.forEach((name, label) => {
      const button = create("button", { type: "button" }, create("span", { class: `cka-${data.shapes[label]}` }), name);
      button.firstChild.style.background = data.palette[label];
      for (const on of ["pointerenter", "focus", "click"]) button.addEventListener(on, () => highlight(null, label));
      for (const off of ["pointerleave", "blur"]) button.addEventListener(off, () => highlight(null, null));
      legend.append(button);
    });

    choice.addEventListener("change", () => load(Number(choice.value)));
    const bar = create("div", { class: "cka-bar", "aria-hidden": true }, "CKA 0", create("span"), "1");
    bar.children[0].style.background = `linear-gradient(to right, ${data.colours.map((c) => `rgb(${c.join(" ")})`)})`;
    root.replaceChildren(
      create("div", { class: "cka-head" }, create("label", {}, "Network ", choice), sentence),
      create("div", { class: "cka-panels" },
        create("div", { class: "cka-map-panel" }, beside, map, below, bar),
        create("div", { class: "cka-pictures" }, left.node, right.node, detail, legend)),
    );
    highlight(null, null);
    load(0);
  }

  for (const root of document.querySelectorAll(".cka-map")) explore(root);
})();
