// Mends what the tools behind the book get wrong for screen readers; tests/test_pages.py holds it to account.
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
});
