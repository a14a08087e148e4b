"""Renders the pages of reports: templates, filters and the colours of their charts."""

from __future__ import annotations

import jinja2

from pacx_jax.evaluate.comparison import verdict
from pacx_jax.evaluate.reports import figures, tables


def render(template: str, title: str, **values) -> str:
    """A page as HTML text; text among the values is escaped.

    Args:
      template: file name, of a page that extends base.html.j2.
      title: of the page.
      values: names that the template uses.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "budget": tables.budget,
        "labelled": tables.labelled,
        "number": tables.number,
        "minus": tables.minus,
        "signed": lambda value: tables.minus(tables.number(value, True)),
        "span": lambda r: tables.minus(tables.interval(r["low"], r["high"], True)),
        "integer": "{:,}".format,
        "seconds": "{:,.1f}".format,
        "verdict": verdict,
        "p_holm": tables.p_after_holm,
        "png": figures.png_uri,
        "svg": figures.svg,
    }
    page = environment.get_template(template)
    return page.render(title=title, colours=figures.COLOURS, **values)
