// Mends what the tools behind the book get wrong on paper and for screen readers; tests/test_pages.py holds it to account.

// A page printed from dark mode would put pale letters on white paper, and pictures not yet scrolled to would be missing.
addEventListener("beforeprint", () => {
  for (const image of document.querySelectorAll("img[loading=lazy]")) image.loading = "eager";
  const { dataset } = document.documentElement;
  const theme = dataset.theme;
  dataset.theme = "light";
  addEventListener("afterprint", () => (dataset.theme = theme), { once: true });
});

document.addEventListener("DOMContentLoaded", () => {
  // Sphinx lays a long signature out as a list of definitions that defines no term: plain lines say the same.
  for (const list of document.querySelectorAll("dt.sig > dl")) {
    list.replaceWith(...Array.from(list.children, (definition) => {
      const line = document.createElement("div");
      line.className = "sig-line";
      line.append(...definition.childNodes);
      return line;
    }));
  }

  // The theme's button has its handler in an attribute, where the page's policy allows none.
  for (const button of document.querySelectorAll(".btn-download-pdf-button")) button.addEventListener("click", () => print());

  // docutils marks references as entries of a bibliography, a role that a list must not hold: they are its items.
  for (const entry of document.querySelectorAll(".citation-list > .citation")) entry.setAttribute("role", "listitem");
});
