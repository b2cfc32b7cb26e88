import inspect
import json
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from erc_jax.config import (
    base_config,
    check_same_run,
    check_values,
    find_config,
    flatten,
    load_config,
    read_config,
    save_config,
)
from erc_jax.config.checks import CHOICES, RANGES
from erc_jax.errors import UserError

SHIPPED = ("dailydialog", "emorynlp", "iemocap", "meld", "mosi", "own", "quickstart")
WITH_PAPER = ("dailydialog", "emorynlp", "iemocap", "meld")


def changed(**fields) -> ConfigDict:
    config = base_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize("name", [*SHIPPED, *(f"{name}:paper" for name in WITH_PAPER)])
def test_every_shipped_config_loads_and_has_the_base_fields(name):
    config = read_config(find_config(name))
    assert [field for field, _ in flatten(config)] == [field for field, _ in flatten(base_config())]
    check_values(config)


def test_these_are_all_the_shipped_configs():
    folder = Path(find_config("meld")).parent
    assert sorted(path.stem for path in folder.glob("*.py")) == sorted(SHIPPED)


@pytest.mark.parametrize("name", WITH_PAPER)
def test_the_papers_recipe(name):
    paper, ours = read_config(find_config(f"{name}:paper")), read_config(find_config(name))
    assert paper.encoder == f"./roberta-large-{name}"
    assert (paper.model.dropout, paper.train.epochs, paper.train.batch_size) == (0.2, 100, 32)
    assert paper.data.name == ours.data.name == name


def test_every_base_field_is_commented():
    lines = inspect.getsource(base_config).splitlines()
    fields = [i for i, line in enumerate(lines) if " = " in line and "ConfigDict()" not in line]
    assert len(fields) == len(list(flatten(base_config()))) - 2  # one line holds three polarities
    for i in fields:
        assert "  # " in lines[i] or lines[i - 1].strip().startswith("# "), lines[i]


def test_a_config_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_config("meld")
    assert Path(shipped).is_file()
    assert find_config("configs/meld.py") == find_config("meld.py") == shipped
    assert find_config("configs/meld.py:paper") == find_config("meld:paper") == f"{shipped}:paper"
    Path("meld.py").write_text("")  # one's own file comes first
    assert find_config("meld.py") == "meld.py"


def test_an_unknown_config_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"configs/melt\.py: no such file.*did you mean meld\?"):
        find_config("configs/melt.py")
    with pytest.raises(UserError, match=r"known are dailydialog, .*, quickstart"):
        find_config("zzzz")


def test_an_unknown_variant_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown variant 'papr'; did you mean paper\?"):
        read_config(find_config("meld:papr"))
    path = tmp_path / "mine.py"
    path.write_text(BASE + "def get_config():\n    return base_config()\n")
    with pytest.raises(UserError, match=r"unknown variant 'paper'; .*mine\.py has none"):
        read_config(f"{path}:paper")


BASE = "from erc_jax.config import base_config\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = (\n", r"mine\.py:2: '\(' was never closed"),
        ("x = 1\n", r"mine\.py: no function get_config"),
        ("def get_config():\n    return 1 / 0\n", r"mine\.py:2: ZeroDivisionError"),
        ("import nowhere_to_be_found\n", r"mine\.py:1: ModuleNotFoundError: .*nowhere"),
        ("def get_config():\n    pass\n", r"mine\.py: get_config returns NoneType"),
        (
            BASE
            + "def get_config():\n    c = base_config()\n    c.train.epoch = 3\n    return c\n",
            r"""mine\.py:4: AttributeError: .*Did you mean "epochs" """,
        ),
        (
            BASE + "def get_config():\n    c = base_config()\n    c.train.epochs = '3'\n",
            r"mine\.py:4: TypeError: .*train.*epochs|mine\.py:4: TypeError",
        ),
    ],
)
def test_a_config_that_fails_is_told_with_its_line(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        read_config(str(path))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seeds", 0, "seeds is 0; expected at least 1"),
        ("seed", -1, "expected at least 0"),
        ("log_every", 0, "expected at least 1"),
        ("model__dropout", 1.0, r"model\.dropout is 1\.0; expected at least 0\.0 and below 1\.0"),
        ("train__epochs", 0, r"train\.epochs is 0; expected at least 1"),
        ("train__batch_size", 0, "expected at least 1"),
        ("train__learning_rate", -1e-3, "expected at least 0"),
        ("train__learning_rate", math.nan, "expected at least 0"),
        ("train__learning_rate", math.inf, "expected at least 0"),
        ("train__patience", -1, "expected at least 0"),
        ("train__decay", "cosin", "'cosin'; expected none or linear or cosine"),
        ("train__select_on", "train", "'train'; expected validation or test"),
        ("data__first_shift", "none", "expected ignore or strong_negative"),
    ],
)
def test_values_that_could_only_fail_later_are_refused(field, value, expected):
    with pytest.raises(UserError, match=expected):
        check_values(changed(**{field: value}))


def test_every_checked_field_exists():
    fields = dict(flatten(base_config()))
    assert set(RANGES) | set(CHOICES) <= set(fields)


def test_a_run_keeps_its_config(tmp_path):
    config = changed(data__polarity__negative=("sad", "angry"), init_from="elsewhere", seed=3)
    save_config(config, tmp_path)
    assert dict(flatten(load_config(tmp_path))) == dict(flatten(config))
    check_same_run(config, tmp_path)


def test_no_run_and_a_damaged_one(tmp_path):
    check_same_run(base_config(), tmp_path)  # there is none yet
    with pytest.raises(UserError, match=r"not a workdir \(no config.json\)"):
        load_config(tmp_path)
    save_config(base_config(), tmp_path)
    whole = (tmp_path / "config.json").read_text()
    foreign = ('{"seed": "x"}', '{"train": 5}', '{"encoder": {"width": 3}}')
    for damaged in (whole[:-5], json.dumps([1]), *foreign):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"config\.json: damaged"):
            load_config(tmp_path)


def test_a_workdir_of_another_config_names_the_fields(tmp_path):
    save_config(base_config(), tmp_path)
    with pytest.raises(UserError, match=r"train\.epochs is 100 there and 3 here"):
        check_same_run(changed(train__epochs=3), tmp_path)
    check_same_run(changed(log_every=7), tmp_path)
    moved = changed(data__source="elsewhere")
    with pytest.raises(UserError, match=r"data\.source is None there and 'elsewhere' here"):
        check_same_run(moved, tmp_path)
    check_same_run(moved, tmp_path, free=("data.source",))


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="this is a file, expected a folder"):
        check_same_run(base_config(), tmp_path / "run")


def test_a_run_of_an_older_version_has_the_defaults_of_newer_fields(tmp_path):
    config = base_config()
    config.train.epochs = 7
    save_config(config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["fine_tuning"], record["train"]["accumulate"]
    record["of_a_later_version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(record))
    loaded = load_config(tmp_path)
    assert (loaded.train.epochs, loaded.train.accumulate) == (7, 1)
    assert loaded.fine_tuning.to_dict() == config.fine_tuning.to_dict()
    del record["of_a_later_version"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    check_same_run(config, tmp_path)
    config.train.accumulate = 2
    with pytest.raises(UserError, match=r"train\.accumulate is 1 there and 2 here"):
        check_same_run(config, tmp_path)
