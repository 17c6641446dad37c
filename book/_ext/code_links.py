"""Code that names something of the package, `cka_map` or `companion.flow`, leads to its entry on the API page, and an
entry to its lines in the repository.

Inline code does so in every kind of output, names in the code of cells and programs on the pages of the site.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.domains.python import ObjectEntry
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import companion
from companion.experiments import EXPERIMENTS

PYTHON = ("ipython3", "python")


# --------------------------------------------------------------------------------------------------------- inline code
class CodeLinks(SphinxPostTransform):
    """Makes a reference of inline code with one meaning."""

    default_priority = 100  # after Sphinx's own references

    def run(self, **kwargs: Any) -> None:
        meanings = names(self.env.domains["py"].data["objects"])
        here = self.env.docname
        for literal in list(self.document.findall(nodes.literal)):
            around = list(above(literal))
            called = re.fullmatch(r"([A-Za-z_][\w.]*)(?:\(.*\))?", literal.astext(), re.DOTALL)
            if not called or any(isinstance(node, nodes.reference | nodes.title) for node in around):
                continue
            # What people type first the package itself offers too: `companion.cka`.
            name = called[1] if called[1] in meanings else called[1].removeprefix("companion.")
            if len(meanings[name]) != 1 or literal.astext() in EXPERIMENTS:
                continue
            ((full, entry),) = meanings[name].items()
            if (entry.objtype, entry.docname) != ("module", here) and not own_word(name, full, around):
                code = literal.deepcopy()
                literal.replace_self(make_refnode(self.app.builder, here, entry.docname, entry.node_id, [code], full))


def names(objects: dict[str, ObjectEntry]) -> defaultdict[str, dict[str, ObjectEntry]]:
    """What each name may mean: full names and their ends, but `flow` alone is no module and `keep` alone no method."""
    meanings: defaultdict[str, dict[str, ObjectEntry]] = defaultdict(dict)
    for full, entry in objects.items():
        parts = full.split(".")
        for length in range(1 if entry.objtype in ("function", "class") else 2, len(parts) + 1):
            meanings[".".join(parts[-length:])][full] = entry
    return meanings


def above(node: nodes.Node) -> Iterator[nodes.Element]:
    """What the node stands in, from the inside out."""
    while node.parent is not None:
        yield (node := node.parent)


def own_word(name: str, full: str, around: list[nodes.Element]) -> bool:
    """Is this an argument, a member or a key in the text of an API entry, as `steps` is where no path is meant?"""
    entries = [node for node in around if isinstance(node, addnodes.desc)]
    arguments = {one[0].astext() for entry in entries for one in entry.findall(addnodes.desc_parameter)}
    members = {one.astext() for entry in entries for one in entry.findall(addnodes.desc_name)}
    elsewhere = any(not full.startswith(f"{entry[0].get('module')}.") for entry in entries)
    return name in arguments | members or (elsewhere and re.fullmatch("[a-z]+", name) is not None)


# ------------------------------------------------------------------------------------------------------ cells, programs
def link_blocks(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Links the names that the page's code imports from the package, unless it gives them another meaning too."""
    if doctree is None:
        return
    objects = app.env.domains["py"].data["objects"]
    meanings = names(objects)
    known = imported([b.astext() for b in doctree.findall(nodes.literal_block) if b.get("language") in PYTHON])

    def link(found: re.Match[str]) -> str:
        first, *rest = re.findall(r">([\w.]+)<", found[0].replace('<span class="o">.</span>', ""))
        for count in range(len(rest), -1, -1):  # `plots.style` before `plots`
            if first not in known and not first.startswith("companion"):
                break
            full = ".".join([known.get(first, first), *rest[:count]])
            # A name may be imported from elsewhere than where it is documented: `from companion import cka`.
            meant = [objects[full]] if full in objects else list(meanings[full.rpartition(".")[2]].values())
            if len(meant) == 1 and not (meant[0].objtype == "module" and rest):  # a constant, `plots.GREY`
                address = f"{app.builder.get_relative_uri(pagename, meant[0].docname)}#{meant[0].node_id}"
                spans = re.findall(r"<span.*?</span>", found[0])[: 2 * count + 1]
                linked = "".join(spans)
                return f'<a class="code-link" href="{address}">{linked}</a>{found[0].removeprefix(linked)}'
        return found[0]

    name = r'(?<!<span class="o">\.</span>)<span class="n[nc]?">[\w.]+</span>'
    chain = re.compile(rf'{name}(?:<span class="o">\.</span><span class="n">\w+</span>)*+(?!<span class="o">=</span>)')
    block = rf'<div class="highlight-(?:{"|".join(PYTHON)})[ "].*?</pre>'
    context["body"] = re.sub(block, lambda code: chain.sub(link, code[0]), context["body"], flags=re.DOTALL)


def imported(sources: list[str]) -> dict[str, str]:
    """Names that the programs import from the package, with what they stand for; none that is ever bound otherwise."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for source in sources:
        try:
            tree = ast.parse(source)
        except SyntaxError:  # the setup cell, a line for the shell
            continue
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "companion":
                    for alias in node.names:
                        found[alias.asname or alias.name].add(f"{module}.{alias.name}")
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                    found[name].add("")
    return {name: meaning.pop() for name, meaning in found.items() if len(meaning) == 1 and meaning != {""}}


# -------------------------------------------------------------------------------------------------------------- source
def source_address(repository: str, branch: str, module: str, name: str) -> str | None:
    """Where the repository shows the lines of `module.name`; None of what has none, such as a field of a record."""
    thing: Any = importlib.import_module(module) if module else None  # a field that a docstring lists
    for part in name.split("."):
        # A module may load a name when it is asked for; a property must not be asked.
        thing = getattr(thing, part, None) if inspect.ismodule(thing) else inspect.getattr_static(thing, part, None)
        thing = (
            getattr(thing, "fget", None) or getattr(thing, "func", None) or getattr(thing, "__func__", None) or thing
        )
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(thing))
        path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").relative_to(Path(companion.__file__).parents[1])
    except (TypeError, ValueError):
        return None
    return f"{repository}/blob/{branch}/{path.as_posix()}#L{first}-L{first + len(lines) - 1}"


def resolve_source(app: Sphinx, config: Config) -> None:
    """Tell `sphinx.ext.linkcode` where the code of an entry is: at the address in `_config.yml`."""
    place = yaml.safe_load((Path(__file__).parents[2] / "_config.yml").read_text())["repository"]
    address = functools.partial(source_address, place["url"], place["branch"])
    config.linkcode_resolve = lambda domain, info: address(info["module"], info["fullname"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(CodeLinks)
    app.connect("html-page-context", link_blocks)
    app.connect("config-inited", resolve_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
