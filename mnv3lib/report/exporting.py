"""An executed notebook as a page that opens offline."""

import re
from importlib.resources import files
from pathlib import Path

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from traitlets.config import Config

from mnv3lib.provenance import ROOT

# All that the pages need of HTML in outputs: tables, and lists that fold.
TAGS = "table caption thead tbody tr th td details summary div p span br b i em strong code pre ul ol li".split()
ATTRIBUTES = ["class", "id", "border", "colspan", "rowspan", "scope", "open"]


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, display="block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display="block")


class Exporter(HTMLExporter):
    """nbconvert's lab pages, except that nothing in them is fetched from anywhere.

    The code of a cell tagged remove-input is left out, that of one tagged hide-input is folded.
    """

    @pass_context
    def markdown2html(self, context, source):
        source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", source)
        renderer = _Renderer(escape=False, embed_images=True, path=str(ROOT / "notebooks"), anchor_link_text="")
        return MarkdownWithMath(renderer=renderer).render(source)


def show_as_text(notebook: nbformat.NotebookNode) -> None:
    """Make markup in outputs text, except for TAGS: outputs may quote a record, a class or a file from anywhere."""
    allowed = SanitizeHTML(tags=TAGS, attributes=ATTRIBUTES, sanitized_output_types={"text/html"})
    allowed.safe_output_keys = allowed.safe_output_keys | {"text/markdown"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            if "text/html" in shown:  # pandas puts a style sheet before each of its tables
                shown["text/html"] = re.sub(r"<style\b.*?</style>\s*", "", shown["text/html"], flags=re.DOTALL)
            if "text/markdown" in shown:
                shown["text/markdown"] = re.sub(r"<(?=[a-z/!?])", "&lt;", shown["text/markdown"], flags=re.IGNORECASE)
        allowed.sanitize_code_outputs(cell.get("outputs", []))


def export(executed: Path, page, all_pages: list, made: str) -> str:
    """The executed notebook of `page` as one HTML document with links to `all_pages`; both are pages.Page."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata["title"] = page.title
    notebook.metadata.pop("widgets", None)
    show_as_text(notebook)
    exporter = Exporter(
        template_name="mnv3",
        extra_template_basedirs=[str(files("mnv3lib.report") / "templates")],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"remove-input"}}}),
    )
    shared = {"pages": all_pages, "name": page.name, "made": made}
    return exporter.from_notebook_node(notebook, resources={"mnv3": shared})[0]
