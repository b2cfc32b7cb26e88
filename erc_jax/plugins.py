"""Corpora, systems and encoders that live outside of this package.

A plugin is a module that, when it is imported, adds a line to one of the registries: ``CORPORA``,
``SYSTEMS`` or ``ARCHITECTURES``. An experiment names its plugins in ``config.plugins``; they are
imported wherever a config is read, from the command line or from a workdir.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from erc_jax.errors import UserError


def import_plugins(names: Sequence[str]) -> None:
    """Imports modules that register something.

    Args:
      names: of modules on Python's path; ``python -m`` puts the current folder there.

    Raises:
      UserError: there is no such module.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, but something that it imports is not
            raise UserError(
                f"config.plugins names {name!r}, and there is no such module; start from the "
                f"folder that holds {name.replace('.', '/')}.py, or put that folder into PYTHONPATH"
            ) from error
