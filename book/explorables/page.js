// A page without a kernel: the model is the data, and what is set stays on the page.

function showOnPage(explorable, name, data) {
  const listeners = [];
  const model = {
    get: (key) => data[key],
    set(key, value) {
      data[key] = value;
      for (const [event, listener] of listeners) if (event === `change:${key}`) listener();
    },
    on: (event, listener) => listeners.push([event, listener]),
    save_changes() {},
  };
  for (const el of document.querySelectorAll(`#explorable-${name.replaceAll("_", "-")} > div`)) explorable.render({ model, el });
}
