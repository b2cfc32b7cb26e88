"""What plugins are refused for; what they can do is in docs/extending.md, which test_docs runs."""

import sys

import pytest

from erc_jax.config import base_config, load_config, save_config
from erc_jax.errors import UserError
from erc_jax.plugins import import_plugins


def test_a_plugin_that_is_not_there(command, tmp_path):
    with pytest.raises(UserError, match=r"plugins names 'my_corpus', .* folder that holds my_corp"):
        import_plugins(["my_corpus"])
    told = command("--config", "quickstart", "--config.plugins=('my_corpus',)", "--workdir", "x")
    assert told.startswith("Error: config.plugins names 'my_corpus'")
    with pytest.raises(UserError, match=r"email/corpora/tickets\.py"):
        import_plugins(["email.corpora.tickets"])  # there is a package email
    config = base_config()
    config.plugins = ("my.corpus",)
    save_config(config, tmp_path)
    with pytest.raises(UserError, match=r"my/corpus\.py"):
        load_config(tmp_path)


def test_what_a_plugin_itself_lacks_is_no_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        import_plugins(["lacking"])
    assert "lacking" not in sys.modules
