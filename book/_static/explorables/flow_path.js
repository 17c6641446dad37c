// Paths of digits through a network as an explorable: choose an image and walk along its path, block by block.
// It needs flow_path.css and flow_path.data.js beside it and nothing else; README.md says how a page includes it.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = window.flowPathData;

  /** An element with attributes and children; `create("svg:g")` makes an SVG element. */
  function create(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const steps = (points) => points.slice(1).map(([x, y], k) => [x - points[k][0], y - points[k][1]]);
  const visible = (points) => steps(points).map(([x, y]) => Math.hypot(x, y));

  /** The angles, in degrees, by which the picture's polygon turns. */
  function seenTurns(points) {
    const way = steps(points);
    return way.slice(1).map(([x, y], k) => {
      const [u, v] = way[k];
      return Math.abs(Math.atan2(u * y - v * x, u * x + v * y)) * 180 / Math.PI;
    });
  }

  /** An image as a small picture of its own. */
  function thumbnail(pixels) {
    const side = Math.sqrt(pixels.length);
    const canvas = create("canvas", { width: side, height: side, "aria-hidden": true });
    const context = canvas.getContext("2d");
    const colours = context.createImageData(side, side);
    pixels.forEach((ink, k) => colours.data.set([255 - ink, 255 - ink, 255 - ink, 255], 4 * k));
    context.putImageData(colours, 0, 0);
    return canvas;
  }

  function explore(root) {
    const choice = create("select", {}, ...data.nets.map((net, k) => create("option", { value: k }, net.name)));
    const sentence = create("p", { class: "flow-sentence", "aria-live": "polite" });
    const detail = create("p", { class: "flow-detail" });
    const others = create("svg:g", { class: "flow-others" });
    const line = create("svg:polyline", { class: "flow-line" });
    const ahead = create("svg:polyline", { class: "flow-ahead" });
    const dots = create("svg:g", { class: "flow-dots" });
    const svg = create("svg:svg", { viewBox: "-110 -80 220 160", role: "img" }, others, ahead, line, dots);
    const slider = create("input", { type: "range", min: 1, step: 1, "aria-label": "Block" });
    const bars = create("div", { class: "flow-bars" });
    const thumbs = create("div", { class: "flow-thumbs", role: "group", "aria-label": "Test images" });
    let net, chosen = data.first, place;

    /** Fit all paths of the network into the picture; one scale for both axes, so that angles are kept. */
    function load(index) {
      net = data.nets[index];
      const all = net.points.flat();
      const [low, high] = [Math.min, Math.max].map((end) => [0, 1].map((axis) => end(...all.map((point) => point[axis]))));
      const scale = Math.min(200 / (high[0] - low[0]), 140 / (high[1] - low[1]));
      place = ([x, y]) => [(x - (low[0] + high[0]) / 2) * scale, ((low[1] + high[1]) / 2 - y) * scale];
      others.replaceChildren(...net.points.map((points, image) => {
        const path = create("svg:polyline", { points: polyline(points) });
        path.addEventListener("click", () => choose(image));
        return path;
      }));
      slider.max = net.points[0].length;
      slider.value = slider.max;
      choose(chosen);
    }

    const polyline = (points) => points.map((point) => place(point).map((part) => part.toFixed(2)).join()).join(" ");

    function choose(image) {
      thumbs.children[chosen].setAttribute("aria-pressed", false);
      chosen = image;
      thumbs.children[chosen].setAttribute("aria-pressed", true);
      [...others.children].forEach((path, k) => path.classList.toggle("flow-alike", data.labels[k] === data.labels[chosen]));
      dots.replaceChildren(...net.points[chosen].map((point, k) => {
        const [x, y] = place(point);
        const guess = create("svg:text", { x: x + 4.5, y: y - 3.5 }, `${net.guesses[chosen][k]}`);
        return create("svg:g", {}, create("svg:circle", { cx: x, cy: y, r: 2.6 }), guess);
      }));
      const [true_, seen] = [net.length[chosen], visible(net.points[chosen])];
      const longest = Math.max(...net.length.flat());
      bars.replaceChildren(...true_.map((length, k) => {
        const bar = create("div", { class: "flow-bar" }, create("span"), create("span"));
        bar.children[0].style.width = `${100 * length / longest}%`;
        bar.children[1].style.width = `${100 * seen[k] / longest}%`;
        return create("div", { class: "flow-row" }, create("span", { class: "flow-name" }, `into ${k + 2}`), bar);
      }));
      const share = Math.round(100 * sum(seen) / sum(true_));
      const [turns, turnsSeen] = [sum(net.angle[chosen]), sum(seenTurns(net.points[chosen]))].map(Math.round);
      detail.textContent =
        `The picture shows ${share} % of the length of this path and ${turnsSeen}° of its ${turns}° of turning.`;
      walk();
    }

    /** Show the path up to the slider's block. */
    function walk() {
      const block = Number(slider.value);
      const points = net.points[chosen];
      line.setAttribute("points", polyline(points.slice(0, block)));
      ahead.setAttribute("points", polyline(points.slice(block - 1)));
      [...dots.children].forEach((dot, k) => dot.classList.toggle("flow-coming", k >= block));
      [...bars.children].forEach((row, k) => row.classList.toggle("flow-coming", k >= block - 1));
      const guess = net.guesses[chosen][block - 1];
      const right = guess === data.labels[chosen];
      sentence.replaceChildren(
        create("strong", {}, `A ${data.labels[chosen]} after block ${block} of ${points.length}`),
        `: the net would say ${guess}${right ? ", which is right" : ""}.`,
      );
      svg.setAttribute("aria-label", `Path of a ${data.labels[chosen]} in two dimensions, up to block ${block}`);
    }

    data.images.forEach((pixels, image) => {
      const button = create("button", {
        type: "button", "aria-pressed": false, "aria-label": `Image ${image + 1}, a ${data.labels[image]}`,
      }, thumbnail(pixels));
      button.addEventListener("click", () => choose(image));
      thumbs.append(button);
    });
    choice.addEventListener("change", () => load(Number(choice.value)));
    slider.addEventListener("input", walk);
    const key = create("p", { class: "flow-key" },
      create("span", { class: "flow-true" }), "true length of a step", create("span", { class: "flow-seen" }), "in the picture");
    root.replaceChildren(
      create("div", { class: "flow-head" }, create("label", {}, "Network ", choice), sentence),
      create("div", { class: "flow-panels" },
        create("div", { class: "flow-picture" }, svg, create("label", { class: "flow-walk" }, "Block ", slider)),
        create("div", { class: "flow-side" }, thumbs, key, bars, detail)),
    );
    load(0);
  }

  for (const root of document.querySelectorAll(".flow-path")) explore(root);
})();
