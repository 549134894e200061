"""Tables as Markdown, LaTeX and terminal text. HTML is the page's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import rich.box
import rich.table
from rich.text import Text

from prism_sweeps.reporting.tables import MINUS, Field, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    "–": "--",
    "\n": " ",
}
STYLES = {"better": "green", "worse": "red", "muted": "dim", "strong": "bold"}


# ---- Markdown


def markdown_document(title: str, summary: Sequence[str], shown: Iterable[Table]) -> str:
    """Title, summary and tables as one file."""
    items = "".join(f"- {markdown_text(sentence)}\n" for sentence in summary)
    return "\n".join([f"# {markdown_text(title)}\n", items, *map(markdown, shown)])


def markdown(table: Table) -> str:
    """A GitHub table with its title and notes."""
    lines = [
        f"## {markdown_text(table.title)}",
        "",
        markdown_row([markdown_text(name) for name in table.columns]),
        markdown_row(["---", *["---:"] * (len(table.columns) - 1)]),
        *(markdown_row([markdown_field(one) for one in row]) for row in table.rows),
    ]
    return "\n".join([*lines, "", *(f"{markdown_text(note)}\n" for note in table.notes)]) + "\n"


def markdown_row(fields: list[str]) -> str:
    return f"| {' | '.join(fields)} |"


def markdown_field(one: Field) -> str:
    text = markdown_text(one.text)
    text = f"**{text}**" if one.tone in ("better", "worse", "strong") and text else text
    return f"{text}<br>{markdown_text(one.detail)}" if one.detail else text


def markdown_text(text: str) -> str:
    """`text` so that it cannot be read as a table border, as HTML or as mark-up."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|`*_[]$":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


# ---- LaTeX


def latex(table: Table) -> str:
    """A booktabs table; needs the packages booktabs and graphicx."""
    head = " & ".join(latex_text(name) for name in table.columns)
    body = [" & ".join(latex_field(one) for one in row) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text('. '.join([table.title, *table.notes]))}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_field(one: Field) -> str:
    text = latex_text(one.text)
    text = rf"\textbf{{{text}}}" if one.tone in ("better", "worse", "strong") and text else text
    return rf"{text} {{\scriptsize {latex_text(one.detail)}}}" if one.detail else text


def latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


# ---- terminal


def terminal(table: Table) -> rich.table.Table:
    """A table for a rich console; nothing in it is read as rich mark-up."""
    shown = rich.table.Table(
        title=Text(printable(table.title)),
        caption=Text("\n".join(map(printable, table.notes))),
        box=rich.box.SIMPLE_HEAD,
        caption_justify="left",
    )
    for index, name in enumerate(table.columns):
        shown.add_column(Text(printable(name)), justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(terminal_text(one) for one in row))
    return shown


def terminal_text(one: Field) -> Text:
    style = STYLES.get(one.tone, "")
    text = Text(printable(one.text), style=style)
    return text.append(f"\n{printable(one.detail)}", style=style) if one.detail else text


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
