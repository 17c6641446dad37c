// Paths of digits through a network: choose an image, and walk along its path, block by block.
import { chooser, create, follow, menu, range, slider, sum, view } from "../explorable.js";

const steps = (points) => points.slice(1).map(([x, y], k) => [x - points[k][0], y - points[k][1]]);
const lengths = (points) => steps(points).map(([x, y]) => Math.hypot(x, y));

/** The angles, in degrees, by which the picture's polygon turns. */
function angles(points) {
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

function render({ model, el }) {
  const [nets, labels] = [model.get("nets"), model.get("labels")];
  const choose = chooser(model);
  const blocks = nets[0].points[0].length;
  const sentence = create("p", { "aria-live": "polite" });
  const detail = create("p", { class: "flow-detail" });
  const others = create("svg:g", { class: "flow-others" });
  const line = create("svg:polyline", { class: "flow-line" });
  const ahead = create("svg:polyline", { class: "flow-ahead" });
  const dots = create("svg:g", { class: "flow-dots" });
  const svg = create("svg:svg", { viewBox: "-110 -80 220 160", role: "img" }, others, ahead, line, dots);
  const bars = create("div");
  const network = menu("Network", nets.map(({ name }) => name), (net) => choose({ net, block: blocks }));
  const walk = slider("Block", 1, blocks, (block) => choose({ block }));
  const thumbs = model.get("images").map((pixels, image) => {
    const button = create("button", { type: "button", "aria-label": `Image ${image + 1}, a ${labels[image]}` }, thumbnail(pixels));
    button.addEventListener("click", () => choose({ image }));
    return button;
  });

  /** All paths of the net in one picture; one scale for both axes, so that angles are kept. */
  function fitted({ points }) {
    const ends = [Math.min, Math.max].map((end) => [0, 1].map((axis) => end(...points.flat().map((point) => point[axis]))));
    const middle = [0, 1].map((axis) => (ends[0][axis] + ends[1][axis]) / 2);
    const scale = Math.min(200 / (ends[1][0] - ends[0][0]), 140 / (ends[1][1] - ends[0][1]));
    return points.map((path) => path.map(([x, y]) => [(x - middle[0]) * scale, (middle[1] - y) * scale]));
  }
  const polyline = (points) => points.map((point) => point.map((part) => part.toFixed(2)).join()).join(" ");
  const pictures = nets.map(fitted);

  function draw({ net: number, image, block }) {
    const [net, paths] = [nets[number], pictures[number]];
    network.show(number);
    walk.show(block, `${block} of ${blocks}`);
    thumbs.forEach((button, k) => button.setAttribute("aria-pressed", k === image));
    others.replaceChildren(...paths.map((points, k) => {
      const path = create("svg:polyline", { points: polyline(points), class: labels[k] === labels[image] ? "flow-alike" : "" });
      path.addEventListener("click", () => choose({ image: k }));
      return path;
    }));
    line.setAttribute("points", polyline(paths[image].slice(0, block)));
    ahead.setAttribute("points", polyline(paths[image].slice(block - 1)));
    dots.replaceChildren(...paths[image].map(([x, y], k) =>
      create("svg:g", { class: k < block ? "" : "flow-coming" }, create("svg:circle", { cx: x, cy: y, r: 2.6 }),
        create("svg:text", { x: x + 4.5, y: y - 3.5 }, `${net.guesses[image][k]}`))));

    const [whole, seen] = [net.length[image], lengths(net.points[image])];
    const longest = Math.max(...net.length.flat());
    bars.replaceChildren(...range(blocks - 1).map((k) => {
      const bar = create("div", { class: "flow-bar" }, create("span"), create("span"));
      [whole, seen].forEach((of, i) => { bar.children[i].style.width = `${100 * of[k] / longest}%`; });
      return create("div", { class: `flow-row ${k < block - 1 ? "" : "flow-coming"}` }, create("span", {}, `into ${k + 2}`), bar);
    }));
    const [turns, turnsSeen] = [net.angle[image], angles(net.points[image])].map((all) => Math.round(sum(all)));
    detail.textContent = `The picture shows ${Math.round(100 * sum(seen) / sum(whole))} % of the length of this path `
      + `and ${turnsSeen}° of its ${turns}° of turning.`;
    const [digit, guess] = [labels[image], net.guesses[image][block - 1]];
    sentence.replaceChildren(create("strong", {}, `A ${digit} after block ${block} of ${blocks}`),
      `: the net would say ${guess}${guess === digit ? ", which is right" : ""}.`);
    svg.setAttribute("aria-label", `Path of a ${digit} in two dimensions, up to block ${block}`);
  }

  const key = create("p", { class: "explorable-legend" },
    create("span", {}, create("i", { class: "flow-true" }), "true length of a step"),
    create("span", {}, create("i", { class: "flow-seen" }), "in the picture"));
  view(el, "flow-path", [network, walk], sentence, create("div", { class: "explorable-panels" }, svg,
    create("div", {}, create("div", { class: "flow-thumbs", role: "group", "aria-label": "Test images" }, ...thumbs), key, bars, detail)));
  follow(model, draw);
}

export default { render };
