"""HTML pages of one file: no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from erc_jax.charts import N_COLOURS, colour_number, shade
from erc_jax.data.dialogue import write_whole
from erc_jax.drawing import COLOURS, NEUTRAL_ON_DARK, NEUTRAL_ON_LIGHT


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fills a template of erc_jax/templates and writes it.

    Args:
      path: of the page.
      template: the file's name.
      content: what the template names. Texts are escaped, whatever they hold; only charts
        (``markupsafe.Markup``) are taken as they are.

    Raises:
      UserError: the page cannot be written.
    """
    templates = environment(autoescape=True)
    templates.globals.update(
        colours=COLOURS[:N_COLOURS],
        neutral=(NEUTRAL_ON_LIGHT, NEUTRAL_ON_DARK),
        colour_number=colour_number,
        shade=shade,
    )
    write_whole(path, templates.get_template(template).render(**content))


def environment(*, autoescape: bool) -> Environment:
    """The templates of erc_jax/templates; what one names must be given.

    Args:
      autoescape: whether texts are escaped for HTML.
    """
    return Environment(
        loader=PackageLoader("erc_jax"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
