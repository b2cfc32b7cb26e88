"""A trained model as a folder that predicts without this package: jax, numpy and tokenizers do.

    model.stablehlo   the program, text encoder and system in one, for CPU, CUDA and TPU
    weights.npz       its weights, by name
    tokenizer.json    the tokenizer
    labels.json       names of the labels, special tokens, limits, and the SHA-256 of these files
    predict.py        reads a file of conversations, or is imported (``erc_jax.export.standalone``)
    vendor/           the Python package that jax reads programs with, but does not install
    README.md         the model card, where the run is finished

Sizes are symbols in the program (``jax.export``): any number of dialogues, of any length. Weights
are its arguments. As constants they would stand in the program, which XLA takes apart anew for
every size that it compiles, and each compiled program would hold a copy.

jax promises to read a program for six months of its own releases; export again after that.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export as jax_export

from erc_jax.data.dialogue import MAX_UTTERANCES, remove, write_whole
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import Encoder
from erc_jax.export.program import OUTPUTS, ROWS, make_program, text_encoder, weights_of
from erc_jax.export.standalone import FILES, FORMAT
from erc_jax.facts import package_version
from erc_jax.model_card import model_card
from erc_jax.systems import Params, Recognition
from erc_jax.systems.fmerl import Fmerl
from erc_jax.workdir import load_labelling_run

PLATFORMS = ("cpu", "cuda", "tpu")
SCRIPT = "predict.py"
CARD = "README.md"
# What of their paths is left out where programs name source files: they are this machine's.
SOURCES = "jax_hlo_source_file_canonicalization_regex"


def export_run(workdir: Path, folder: Path, encoder: str | None = None) -> None:
    """Writes the best checkpoint of a run as a folder that predicts by itself.

    Args:
      workdir: of the run.
      folder: made if it is not there; files of an earlier export are replaced.
      encoder: where the run's encoder is now, if it is not where it was.

    Raises:
      UserError: the folder is not a workdir, nothing in it can be read, its run replies, or reads
        more than text, or nothing can be written.
    """
    run = load_labelling_run(workdir, encoder)
    finished = (workdir / "metrics.json").is_file()
    card = model_card(workdir, exported=True) if finished else None
    export_model(run.system, run.params, run.encoder, folder, card)


def export_model(
    system: Recognition,
    params: Params,
    encoder: Encoder,
    folder: Path,
    card: str | None = None,
) -> None:
    """As ``export_run``, of a model in memory, and its model card, if it has one."""
    text = text_encoder(encoder)
    weights = {
        name: np.asarray(array)
        for name, array in traverse_util.flatten_dict(
            weights_of(system, params, text), sep="/"
        ).items()
    }
    contents = {
        "model.stablehlo": _program(system, text, weights),
        "weights.npz": _npz(weights),
        "tokenizer.json": text.reader.tokenizer.to_str(pretty=True).encode(),
    }
    about = _about(system, text)
    about["sha256"] = {name: hashlib.sha256(contents[name]).hexdigest() for name in FILES}
    script = resources.files("erc_jax.export").joinpath("standalone.py").read_bytes()
    files = {**contents, SCRIPT: script, **dict(_vendored())}
    # labels.json goes first and comes last: a folder without it is no model.
    remove(folder / "labels.json")
    remove(folder / CARD)  # of another model, perhaps
    if card is not None:
        files[CARD] = card.encode()
    for name, content in files.items():
        write_whole(folder / name, content)
    write_whole(folder / "labels.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _program(
    system: Recognition, encoder: SentenceEncoder, weights: dict[str, np.ndarray]
) -> bytes:
    """The program of ``make_program``, with weights by name, for all platforms and sizes."""
    program = make_program(system, encoder)

    def of_named(named: dict[str, jax.Array], *arrays: jax.Array) -> dict[str, jax.Array]:
        return program(traverse_util.unflatten_dict(named, sep="/"), *arrays)

    rows, width, dialogues, places = jax_export.symbolic_shape(f"{ROWS}*k, w, b, t")
    shapes = ((rows, width), (rows,), (rows, width), (dialogues, places))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    named = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    before = getattr(jax.config, SOURCES)
    jax.config.update(SOURCES, ".*/")
    try:
        exported = jax_export.export(jax.jit(of_named), platforms=PLATFORMS)(named, *arrays)
    finally:
        jax.config.update(SOURCES, before)
    return bytes(exported.serialize())


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays by name as numpy alone reads them, without pickles."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _about(system: Recognition, encoder: SentenceEncoder) -> dict[str, Any]:
    """What labels.json holds, but for the sums of the other files."""
    reader = encoder.reader
    return {
        "format": FORMAT,
        "made_with": {name: package_version(name) for name in ("erc-jax", "jax")},
        "tasks": {task.name: list(task.classes) for task in system.tasks if task.name in OUTPUTS},
        "vad": list(system.rated) if isinstance(system, Fmerl) else [],
        "vad_scale": system.about().get("vad_scale"),
        "reading": {
            "context": encoder.context,
            "lower_case": reader.lower_case,
            "max_length": reader.max_length,
            "begin": int(reader.begin[0]),
            "end": int(reader.end[0]),
        },
        "rows": ROWS,
        "limits": {"utterances": min(system.longest or MAX_UTTERANCES, MAX_UTTERANCES)},
    }


def _vendored() -> Iterator[tuple[str, bytes]]:
    """The files of flatbuffers, with which jax reads programs; name in the folder and content.

    Raises:
      UserError: it is not installed.
    """
    try:
        installed = metadata.distribution("flatbuffers")
    except metadata.PackageNotFoundError as error:
        raise UserError("jax exports with flatbuffers: pip install flatbuffers") from error
    for file in installed.files or ():
        if file.suffix == ".py" and file.name != "flexbuffers.py":  # which jax does not read
            yield f"vendor/{file}", Path(str(file.locate())).read_bytes()
