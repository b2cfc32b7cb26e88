"""Every fenced block of the README and of docs/ does what it says, or is at least understood.

The blocks of a page are run from top to bottom in a folder of the page's own. What stands before a
fence changes that:

`NAME`:                  a line of its own: the block is written to this file; a later block uses it
<!-- not run: WHY -->    it needs what no test has: its commands are only checked
<!-- slow: WHY -->       the same, but for the slow tests, which run it

A command that is only checked is parsed by the program's own parser, its config is loaded and its
values are checked, so that a flag or field that was renamed is found. What is run reads a small
random encoder in place of all-MiniLM-L6-v2: a folder of that name comes before the hub.
"""

import argparse
import ast
import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import erc_jax
from erc_jax import main as command_line
from erc_jax.config import check_values
from erc_jax.data.corpora import CORPORA, load_corpus
from erc_jax.encoders.new_tokenizer import train_tokenizer
from erc_jax.encoders.sentence import ARCHITECTURES
from erc_jax.errors import UserError
from erc_jax.experiment import _check_fields_of_systems
from erc_jax.systems import SYSTEMS
from tests.tiny import BERT, random_tensors, write_encoder

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
EXTENDING = "docs/extending.md"
# Pages that go on with what another one has made, as they say.
GOES_ON = {"docs/predicting.md": "README.md"}
SAMPLE = ROOT / "erc_jax" / "data" / "sample"
MADE = {"exported/predict.py"}  # programs that commands of the pages write
# What the shell of a reader does, and a test need not.
TRUSTED = {"cd", "deactivate", "hf", "mkdir", "source", "unset"}
FENCE = re.compile(
    r"^(?:`(?P<file>[^`\n]+)`:\n\n|<!-- (?P<kind>not run|slow): (?P<about>[^>]+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    file: str | None  # where it is written, in place of being run
    kind: str | None  # "not run", "slow", or None: it is run
    about: str | None
    language: str
    text: str


@functools.cache
def blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [
        Block(*found.group("file", "kind", "about", "language", "text"))
        for found in FENCE.finditer(text)
    ]
    assert text.count("```") == 2 * len(blocks), f"{page}: a fence is malformed"
    assert text.count("<!--") == sum(block.kind is not None for block in blocks), (
        f"{page}: a comment stands before no fence, or is none of {__doc__}"
    )
    named = re.findall(r"^`([^`\n]+)`:$", text, re.MULTILINE)
    assert named == [block.file for block in blocks if block.file], f"{page}: names of no block"
    return blocks


def commands(block):
    """The words of each command of a block, in order; && joins two."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


# Pages that are run.


@pytest.fixture(scope="module")
def places():
    """Pages that were run, and in which folder; what their plugins registered goes at the end."""
    registries = [(registry, dict(registry)) for registry in (CORPORA, SYSTEMS, ARCHITECTURES)]
    yield {}
    for registry, before in registries:
        registry.clear()
        registry.update(before)


@pytest.fixture
def run_page(request, command, places, tmp_path_factory, monkeypatch):
    """A function that runs a page, once; it returns the page's folder.

    Slow blocks are run in their places where slow tests are, whichever test asks first.
    """
    slow = any(item.get_closest_marker("slow") for item in request.session.items)

    def run(page):
        if page in places:
            return places[page]
        if page in GOES_ON:
            folder = run(GOES_ON[page])
        else:
            folder = tmp_path_factory.mktemp(Path(page).stem)
            furnish(folder)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        variables = {}
        for block in blocks_of(page):
            if block.file:
                write(folder / block.file, block.text)
            elif block.kind is None or (slow and block.kind == "slow"):
                run_block(block, command, folder, variables)
        places[page] = folder
        return folder

    return run


@pytest.fixture
def plugin(places, tmp_path, monkeypatch):
    """A function that registers a plugin of the extending page, and runs nothing else of it."""

    def register(name):
        write(tmp_path / f"{name}.py", file_of(EXTENDING, f"{name}.py"))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module(name)

    return register


def file_of(page, name):
    (block,) = (block for block in blocks_of(page) if block.file == name)
    return block.text


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def furnish(folder):
    """What a reader's folder has: the sample of a checkout, and encoders that are here at once."""
    (folder / "erc_jax" / "data").mkdir(parents=True)
    (folder / "erc_jax" / "data" / "sample").symlink_to(SAMPLE)
    small_encoder(folder / "all-MiniLM-L6-v2", hidden_size=48)  # 16 heads divide it
    small_electra(folder / "electra-base-discriminator")


def small_electra(folder):
    small_encoder(folder, model_type="electra", embedding_size=BERT["hidden_size"])


def small_encoder(folder, **config):
    """Writes an encoder whose sentence vectors are about the means of random word vectors."""
    lines = (SAMPLE / "train.jsonl").read_text().splitlines()
    texts = [u["text"] for line in lines for u in json.loads(line)["utterances"]]
    tokenizer = train_tokenizer(texts, 600)
    config |= {"vocab_size": tokenizer.get_vocab_size()}
    tensors = {
        name: value if "word" in name or name.endswith("Norm.weight") else value * np.float32(0.1)
        for name, value in random_tensors({**BERT, **config}, seed=len(config)).items()
    }
    write_encoder(folder, tensors=tensors, **config)
    tokenizer.save(str(folder / "tokenizer.json"))


def run_block(block, command, folder, variables):
    match block.language:
        case "bash":
            for words in commands(block):
                if words[:2] == ["python", "-m"] and words[2].startswith("erc_jax."):
                    main = importlib.import_module(program(words[2])).main
                    assert command(*words[3:], main=main) is None, shlex.join(words)
                else:
                    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
                    subprocess.run(words, check=True, cwd=folder, env=env)
        case "python":
            exec(compile(block.text, "a block of the page", "exec"), variables)
        case _:
            check_text(block)


# That of extending trains three models.
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p == EXTENDING else p for p in PAGES]
)
def test_what_can_be_run_runs(page, run_page):
    run_page(page)


SLOW_PAGES = [page for page in PAGES if any(block.kind == "slow" for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES)
def test_what_takes_longer_runs(page, run_page):
    run_page(page)


# Blocks that are only checked.


def test_the_readme_activates_every_environment_that_it_makes():
    for block in blocks_of("README.md"):
        if "make quickstart" in block.text or "-m venv" in block.text:
            assert "source .venv/bin/activate" in block.text


class Parsed(Exception):
    """The command was understood; it is not to be carried out."""


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_is_understood(page, command, places, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for mode in command_line.MODES:
        monkeypatch.setitem(command_line.MODES, mode, lambda workdir: check_config())
    monkeypatch.setattr(command_line, "_annotate", check_config)
    monkeypatch.setattr(command_line, "_compare", lambda workdirs: None)
    parse_args = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments, **options):
        parse_args(self, *arguments, **options)
        raise Parsed

    for block in blocks_of(page):
        if block.file:
            write(tmp_path / block.file, block.text)
        if block.kind not in ("not run", "slow"):
            continue
        assert block.about.strip()
        if block.language == "python":
            check_python(block.text)
            continue
        assert block.language == "bash", "what else is there to be run?"
        for words in commands(block):
            with monkeypatch.context() as patched:
                patched.setattr(argparse.ArgumentParser, "parse_args", only_parse)
                check_command(words, command)


def program(module):
    """The module that ``python -m`` runs."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    return f"{module}.__main__" if spec.submodule_search_locations else module


def check_command(words, command):
    match words:
        case ["python", "-m", "erc_jax.benchmarks", name, *options]:
            from erc_jax.benchmarks import __main__, harness

            assert name in __main__.BENCHMARKS
            module = importlib.import_module(f"erc_jax.benchmarks.{name}")
            with pytest.raises(Parsed):
                harness.main(name, module, options)
        case ["python", "-m", "erc_jax.main", *arguments]:
            assert command(*arguments) is None, shlex.join(words)
        case ["python", "-m", module, *arguments] if module.startswith("erc_jax."):
            found = importlib.import_module(program(module))
            if hasattr(found, "FLAGS"):  # its flags are those of absl
                told = command(*arguments, main=lambda argv: check_config())
                assert told is None, shlex.join(words)
            else:
                with pytest.raises(Parsed):
                    found.main(arguments)
        case ["python" | "python3", "-m", "pytest" | "venv", *_]:
            pass
        case ["python", script, *_]:
            assert script in MADE or (ROOT / script).is_file(), script
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert {t for t in targets if "=" not in t} <= set(rules)
        case ["pip", "install", *what]:
            for extra in re.findall(r"(?:erc-jax|\.)\[([\w,-]+)\]", " ".join(what)):
                assert set(extra.split(",")) <= set(extras()), extra
        case ["curl", *arguments]:
            check_request(arguments)
        case [script, *_] if "/" in script:
            assert os.access(ROOT / script, os.X_OK), script
        case [name, *_]:
            assert name in TRUSTED, f"how is {shlex.join(words)} to be checked?"


def check_config():
    """The experiment that the flags name is one that could begin."""
    config = command_line.flags.FLAGS["config"].value
    if config is None:
        return
    check_values(config)
    _check_fields_of_systems(config)
    assert config.data.name in CORPORA
    assert config.system in SYSTEMS


@functools.cache
def extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def check_request(arguments):
    """Sends what curl would, to a server whose model stands in for a real one."""
    from starlette.testclient import TestClient

    from erc_jax.serve.app import make_app
    from tests.stand_in import ABOUT, StandIn

    parser = argparse.ArgumentParser()
    for argument in ("-H", "-d", "address"):
        parser.add_argument(argument)
    given, rest = parser.parse_known_args(arguments)
    assert not rest
    with TestClient(make_app(StandIn(), StandIn(), ABOUT), base_url="http://127.0.0.1") as client:
        path = re.fullmatch(r"http://127\.0\.0\.1:\d+(/\w*)", given.address)[1]
        name, value = given.H.split(": ")
        answer = client.post(path, content=given.d, headers={name: value})
    assert answer.status_code == 200, answer.text


def check_python(text):
    """It is Python, and what it takes from the package is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "erc_jax":
                assert hasattr(erc_jax, node.attr), node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("erc_jax"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"


def check_text(block):
    """A block of data is well-formed, and one of plain text holds no command that nobody checks."""
    if block.language == "json":
        for line in block.text.splitlines() if block.text.startswith('{"') else [block.text]:
            json.loads(line)
        return
    assert block.language in ("csv", "text"), f"a block of {block.language or 'no language'}"
    assert "python" not in block.text


# What pages promise besides.


def scores(folder, run):
    return json.loads((folder / "runs" / run / "metrics.json").read_text())


@pytest.mark.slow
def test_the_extending_page(run_page):
    """A corpus and a system that the page adds, without a change in the package."""
    folder = run_page(EXTENDING)
    for run, name in (("tickets-own", "own"), ("tickets", "tickets")):
        content = scores(folder, run)
        assert content["run"]["corpus"]["name"] == name
        supports = {emotion: s["support"] for emotion, s in content["test"]["per_class"].items()}
        assert supports == {"angry": 0, "calm": 1, "pleased": 2}
    two_turns = scores(folder, "two-turns")
    assert two_turns["run"]["system"] == "two_turns"
    # Always neutral scores 0.15.
    assert two_turns["test"]["weighted_f1"] > 0.2
    (labelled,) = map(json.loads, (folder / "labelled.jsonl").read_text().splitlines())
    emotions = set(load_corpus("sample").labels.emotions)
    assert [set(u["probabilities"]) for u in labelled["utterances"]] == [emotions] * 2


@pytest.mark.slow
def test_the_encoder_of_the_extending_page_is_trained_on(run_page):
    folder = run_page(EXTENDING)
    named, electra = (
        scores(folder, run)["run"]["encoder"] for run in ("tickets", "tickets-electra")
    )
    assert electra["name"] == "./electra-base-discriminator"
    assert electra["sha256"] != named["sha256"]


def test_the_corpus_of_the_extending_page_tells_mistakes_by_line(plugin, tmp_path):
    plugin("tickets")
    table = file_of(EXTENDING, "tickets.csv").splitlines()
    table[4] = table[4].replace(",2", ",7")
    (tmp_path / "tickets.csv").write_text("\n".join(table) + "\n")
    with pytest.raises(UserError, match=r"tickets\.csv:5: unknown mood '7'"):
        load_corpus("tickets", tmp_path, cache=tmp_path / "cache")


@pytest.mark.parity
def test_the_encoder_of_the_extending_page_equals_transformers(plugin, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import ElectraModel

    plugin("electra")
    small_electra(tmp_path / "encoder")
    ours = erc_jax.SentenceEncoder.from_pretrained(str(tmp_path / "encoder"))
    theirs = ElectraModel.from_pretrained(tmp_path / "encoder").eval()
    ids = np.random.default_rng(0).integers(5, 300, (2, 9))
    positions = np.broadcast_to(np.arange(9), ids.shape)
    hidden = ours.module.apply({"params": ours.params}, ids, np.ones_like(ids), positions)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, "launch/README.md"])
def test_links_lead_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(
                r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, target
