// Maps of CKA between the blocks of nets, before the training and after each epoch.
import { chooser, colourBar, create, decimal, follow, slider, smallMap, view } from "../explorable.js";

function render({ model, el }) {
  const [nets, layers, stages] = ["nets", "layers", "stages"].map((key) => model.get(key));
  const choose = chooser(model);
  const epochs = slider("Epoch", 0, nets[0].cka.length - 1, (epoch) => choose({ epoch }));
  const sentence = create("p", { "aria-live": "polite" });
  const maps = nets.map(() => smallMap(layers, stages));

  function draw({ epoch }) {
    const when = epoch ? `After epoch ${epoch}` : "Before the training";
    epochs.show(epoch, epoch ? `${epoch}` : "start");
    nets.forEach(({ name, cka, inside, accuracy }, k) => maps[k].show(name, cka[epoch],
      `${accuracy[epoch].toFixed(1)} % of new images right`,
      `CKA between the blocks, ${name}, ${when.toLowerCase()}; inside stages ${decimal(inside[epoch])} in the mean`));
    const said = nets.map(({ name, inside }) => `${decimal(inside[epoch])} ${name}`).join(", ");
    sentence.replaceChildren(create("strong", {}, `${when}: `), `mean CKA inside stages ${said}.`);
  }

  view(el, "cka-epochs", [epochs], sentence,
    create("div", { class: "explorable-maps" }, ...maps.map(({ node }) => node), colourBar()));
  follow(model, draw);
}

export default { render };
