import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import erc_jax

ROOT = Path(erc_jax.__file__).parent.parent
HEAVY = (
    *("jax", "flax", "optax", "orbax", "transformers", "tokenizers", "tensorflow_datasets"),
    *("sklearn", "matplotlib", "torch", "numpy"),
)


def test_the_import_is_light():
    code = f"import erc_jax, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_training_needs_not_is_not_imported():
    """Training and prediction take in nothing that only tests, other systems or tools need."""
    modules = "erc_jax.train, erc_jax.predict, erc_jax.data.corpora.meld, erc_jax.show"
    heavy = ("transformers", "sklearn", "matplotlib", "torch", "tensorflow", "pandas")
    code = f"import {modules}, sys; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[]\n"


def test_public_names_resolve():
    for name in erc_jax.__all__:
        assert getattr(erc_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        erc_jax.Recogniser  # noqa: B018


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Builds the wheel from a copy of the checkout, and unpacks it."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling"):
        build = ["hatchling", "build", "-t", "wheel", "-d", str(folder)]
    else:  # needs the network once, for the build tool
        build = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", *build], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if done.returncode and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("the build tool hatchling cannot be had without network")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("erc_jax-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_configs_sample_and_checksums(installed):
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*")}
    names = ("dailydialog", "emorynlp", "iemocap", "meld", "own", "quickstart")
    sample = ("train", "validation", "test", "talk")
    assert {
        *(f"erc_jax/configs/{name}.py" for name in names),
        *(f"erc_jax/data/sample/{name}.jsonl" for name in sample),
        "erc_jax/data/corpora/checksums.tsv",
        "erc_jax/data/descriptions.json",
        *(f"erc_jax/templates/{name}.html.j2" for name in ("compare", "page", "parts", "report")),
    } <= found
    assert not any(name.startswith(("tests", "configs")) for name in found)


@pytest.mark.slow
def test_shipped_configs_work_from_the_wheel(installed, tmp_path):
    code = (
        "import json, erc_jax; from erc_jax.config import find_config, read_config; "
        "path = find_config('configs/meld.py'); "
        "print(json.dumps([erc_jax.__file__, path, read_config(path).data.name]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}  # before the checkout
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    package, path, name = json.loads(done.stdout)
    assert package == str(installed / "erc_jax" / "__init__.py")
    assert path == str(installed / "erc_jax" / "configs" / "meld.py")
    assert name == "meld"
