"""The public names of entropix in Sphinx: a directive that lists them, links to them, a check.

A public name is an entry of the ``__all__`` of a public module. `PublicApi` writes the entries of
all of them, short names in docstrings link to the one entry that ends in them, and a name without
an entry is a warning, which the build turns into an error.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import entropix

logger = logging.getLogger(__name__)

CODE_OR_ROLE = re.compile(r"(``.*?``|:\w+:`.*?`)")
ELSEWHERE = ("flax.", "jax.", "jaxtyping.", "numpy.", "optax.")
SHAPE = re.compile(r"#\s+shape=(.*?\)|\w+)(?:,\s+dtype=(\w+))?\s*$")


def public_modules() -> list[ModuleType]:
    """Entropix and its public modules, in alphabetical order."""
    names = sorted(
        module.name
        for module in pkgutil.walk_packages(entropix.__path__, "entropix.")
        if not any(part.startswith("_") for part in module.name.split("."))
    )
    return [entropix, *(importlib.import_module(name) for name in names)]


def public_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The names that a module exports, with their objects; sub-modules are not among them."""
    for name in module.__all__:
        thing = getattr(module, name)
        if not isinstance(thing, ModuleType):
            yield name, thing


def functions_first(pair: tuple[str, Any]) -> tuple[bool, str]:
    """The order of entries: what is called, then the classes of its answers, each by name."""
    name, thing = pair
    return isinstance(thing, type), name.lower()


class PublicApi(SphinxDirective):
    """A table of the public names of some modules, then the entry of each.

    What two modules export has its entry in the first of them.
    """

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        lines: list[str] = []
        seen: set[int] = set()
        for module_name in self.arguments[0].split():
            module = importlib.import_module(module_name)
            pairs = sorted(public_names(module), key=functions_first)
            names = [name for name, thing in pairs if id(thing) not in seen]
            seen.update(id(thing) for _, thing in pairs)
            directive = "py:module" if module is entropix else "automodule"
            lines += [f".. {directive}:: {module_name}", ""]
            if not names:
                continue
            lines += [".. autosummary::", "   :nosignatures:", ""]
            lines += [f"   {name}" for name in names] + [""]
            for name in names:
                lines += self._entry(module, name)
        return self.parse_text_to_nodes(StringList(lines, source=module_name))

    def _entry(self, module: ModuleType, name: str) -> list[str]:
        thing = getattr(module, name)
        if isinstance(thing, type):
            kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
            return [f".. {kind}:: {name}", "   :members:", ""]
        return [f".. {'autofunction' if callable(thing) else 'autodata'}:: {name}", ""]


def plain_text_formulas(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    r"""Lets docstrings write \|x\| and ``# shape=(n,)`` as one does in code.

    A bar would open a substitution of reStructuredText, and the comment would be shown as it is.
    """
    del app, what, name, thing, options
    formula_indent = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if formula_indent is not None and (not line.strip() or indent > formula_indent):
            continue
        formula_indent = indent if ".. math::" in line else None
        if formula_indent is not None or line.lstrip().startswith((">>>", "...")):
            continue
        parts = CODE_OR_ROLE.split(line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = SHAPE.sub(_shape_in_words, "".join(parts))


def _shape_in_words(match: re.Match[str]) -> str:
    shape, dtype = match.groups()
    return f"Shape {shape}, {dtype}." if dtype else f"Shape {shape}."


def skip_fields(
    app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out the fields of named tuples, which the class docstring lists with their meaning."""
    del app, what, name, options
    return True if type(thing).__name__ == "_tuplegetter" else (True if skip else None)


def link_short_name(
    app: Sphinx, env: BuildEnvironment, node: Any, contnode: nodes.Element
) -> nodes.Element | None:
    """Links a name as docstrings write it to the public entry that ends in it."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    objects = env.get_domain("py").objects
    target = node["reftarget"].removesuffix("()")
    found = [full for full in objects if full == target or full.endswith("." + target)]
    if len(found) != 1:
        if target.startswith(ELSEWHERE):
            return None
        logger.warning(
            "`%s` names %d entries of the library; code is written between double backticks",
            target,
            len(found),
            location=node,
            type="public_api",
        )
        return None
    entry = objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0]
    )


def check_coverage(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of each public name without an entry."""
    del app
    objects = env.get_domain("py").objects
    documented = set()
    for module in public_modules():
        if module.__name__ not in objects:
            logger.warning("no page documents %s", module.__name__, type="public_api")
        for name, thing in public_names(module):
            if f"{module.__name__}.{name}" in objects:
                documented.add(id(thing))
    for module in public_modules():
        for name, thing in public_names(module):
            if id(thing) not in documented:
                logger.warning("%s.%s has no entry", module.__name__, name, type="public_api")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("public-api", PublicApi)
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", plain_text_formulas, priority=400)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", link_short_name)
    app.connect("env-check-consistency", check_coverage)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Fields"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
