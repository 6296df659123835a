"""An executed notebook as a page that opens offline."""

import re
from importlib.resources import files
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
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
    """nbconvert's basic pages in the frame of templates/mnv3, in which nothing is fetched from anywhere.

    All code is folded; that of a cell tagged remove-input is left out.
    """

    @pass_context
    def markdown2html(self, context, source):
        source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", source)
        renderer = _Renderer(escape=False, embed_images=True, path=str(ROOT / "notebooks"), anchor_link_text="#")
        return MarkdownWithMath(renderer=renderer).render(source)


def show_as_text(notebook: nbformat.NotebookNode) -> None:
    """Make markup in outputs text, except for TAGS: outputs may quote a record, a class or a file from anywhere."""
    allowed = SanitizeHTML(tags=TAGS, attributes=ATTRIBUTES, sanitized_output_types={"text/html"})
    allowed.safe_output_keys = allowed.safe_output_keys | {"text/markdown", "image/svg+xml"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            if "text/html" in shown:  # pandas puts a style sheet before each of its tables
                shown["text/html"] = re.sub(r"<style\b.*?</style>\s*", "", shown["text/html"], flags=re.DOTALL)
            if "text/markdown" in shown:
                shown["text/markdown"] = re.sub(r"<(?=[a-z/!?])", "&lt;", shown["text/markdown"], flags=re.IGNORECASE)
        allowed.sanitize_code_outputs(cell.get("outputs", []))


def one_log(notebook: nbformat.NotebookNode) -> None:
    """Put all that a cell printed into one output, before the others: what is written bit by bit comes in many.

    Paths within the repository are told from there: where it lies on this machine is nobody's business.
    """
    for cell in notebook.cells:
        printed = [output for output in cell.get("outputs", []) if output.output_type == "stream"]
        if printed:
            others = [output for output in cell.outputs if output.output_type != "stream"]
            text = "".join(output.text for output in printed).replace(f"{ROOT}/", "")
            log = nbformat.v4.new_output("stream", name="stdout", text=text)
            cell.outputs = [log, *others]


def findings_first(notebook: nbformat.NotebookNode) -> None:
    """Move the cell tagged `findings`, which comes last because it needs all numbers, behind the opening."""
    found = [cell for cell in notebook.cells if "findings" in cell.metadata.get("tags", [])]
    others = [cell for cell in notebook.cells if cell not in found]
    notebook.cells = [*others[:1], *found, *others[1:]]


def complete(page: str) -> str:
    """Fill in what is known only of the whole page: the contents from its headings, and boxes around its tables.

    A box scrolls where a table is wider than the screen; it takes the focus, so that a keyboard scrolls it too.
    """
    soup = BeautifulSoup(page, "html.parser")
    contents = soup.new_tag("ol")
    for heading in soup.select("main h2[id], main h3[id]"):
        entry = soup.new_tag("li", attrs={"class": heading.name})
        link = soup.new_tag("a", href=f"#{heading['id']}")
        link.string = heading.get_text().removesuffix("#").strip()
        entry.append(link)
        contents.append(entry)
    for anchor in soup.select("a.anchor-link"):
        anchor["aria-label"] = "Link to this heading"
    soup.select_one("nav.contents").append(contents)
    for number, table in enumerate(soup.select("main table"), 1):
        box = {"class": "wide", "tabindex": "0", "role": "region", "aria-label": f"Table {number}"}
        table.wrap(soup.new_tag("div", attrs=box))
        for empty in table.select("th"):
            if not empty.get_text(strip=True):
                empty.name = "td"
    return str(soup)


def export(executed: Path, page, all_pages: list, made: str, figures: str = "../figures") -> str:
    """The executed notebook of `page` as one HTML document with links to `all_pages`; both are pages.Page.

    figures: where the files of the figures lie, as seen from the page.
    """
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata["title"] = page.title
    notebook.metadata.pop("widgets", None)
    show_as_text(notebook)
    one_log(notebook)
    findings_first(notebook)
    templates = str(files("mnv3lib.report") / "templates")
    exporter = Exporter(
        template_name="mnv3",
        extra_template_basedirs=[templates],
        extra_template_paths=[templates],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"remove-input"}}}),
    )
    place = [other.name for other in all_pages].index(page.name)
    shared = {"pages": all_pages, "place": place, "made": made, "figures": figures}
    return complete(exporter.from_notebook_node(notebook, resources={"mnv3": shared})[0])
