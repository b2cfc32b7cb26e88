r"""Audio features of utterances from wav files, with openSMILE.

    pip install 'erc-jax[audio]'
    python -m erc_jax.audio --input talk.jsonl --wavs wavs --output features/audio/train.safetensors

Each utterance has a wav file of its own in the folder; ``--pattern`` says how it is called. An
utterance without a file is counted and left out: it is then a missing one. Several channels are
mixed into one.

By default the features are the 88 functionals of eGeMAPS (Eyben et al., 2016). The field's tables
on IEMOCAP have the 1582 of the INTERSPEECH 2010 challenge, ``--opensmile_config IS10``; any other
configuration is a file as the opensmile package describes them, whose level "func" is taken.
openSMILE's licence allows research, but no commercial use.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from erc_jax import main as command_line
from erc_jax.data.dialogue import Dialogue, load_dialogues, read_bytes
from erc_jax.data.feature_files import FeatureTable, check_suffix, save_feature_file
from erc_jax.errors import UserError
from erc_jax.progress import Counter, say

PATTERN = "{dialogue}_{utterance}.wav"
DEFAULT_CONFIG = "eGeMAPSv02"


def audio_features(
    dialogues: Sequence[Dialogue],
    wavs: Path,
    *,
    pattern: str = PATTERN,
    opensmile_config: str = DEFAULT_CONFIG,
) -> FeatureTable:
    """Features of all utterances that have a wav file.

    Args:
      dialogues: their ids and the utterances' places, from 1, name the files.
      wavs: folder of the files.
      pattern: path of an utterance's file in the folder, with {dialogue}, {utterance} and, in
        braces, any further field of the utterance's record.
      opensmile_config: a name in opensmile.FeatureSet, or a configuration's file.

    Raises:
      UserError: no utterance has a file; one is empty, cut off or no wav file, or too short for the
        features; the pattern or the configuration is wrong; or opensmile is not installed.
    """
    paths = wav_paths(dialogues, wavs, pattern)
    there = {key: path for key, path in paths.items() if path.is_file()}
    if not there:
        looked_for = next(iter(paths.values()), wavs)
        raise UserError(
            f"{wavs}: none of {len(paths)} utterances has a file there; looked for "
            f"{looked_for.name} and so on. Say with --pattern how the files are called"
        )
    for path in there.values():  # at once, and not after hours of work
        check_wav(path)
    smile, extractor, version = _load_smile(opensmile_config)
    counter = Counter("audio features")
    rows = []
    for done, path in enumerate(there.values(), start=1):
        rows.append(_features_of(path, smile))
        counter(done, len(there))
    features = np.stack(rows)
    short = [
        path
        for path, row in zip(there.values(), features, strict=True)
        if not np.isfinite(row).all()
    ]
    if short:
        raise UserError(
            f"{short[0]}: too short for openSMILE, which gives no features of it "
            f"({len(short)} such files: {', '.join(path.name for path in short[:20])}). Take them "
            "out of the folder: their utterances then count as missing"
        )
    missing = len(paths) - len(there)
    say(f"audio: {len(there):,} of {len(paths):,} utterances; {missing:,} have no file")
    return FeatureTable(
        features,
        np.array([dialogue for dialogue, _ in there], str),
        np.array([position for _, position in there], np.int32),
        extractor,
        version,
    )


def wav_paths(
    dialogues: Sequence[Dialogue], wavs: Path, pattern: str
) -> dict[tuple[str, int], Path]:
    """The utterances' files, by dialogue and position; they need not be there.

    Raises:
      UserError: the pattern is wrong, or does not tell utterances apart.
    """
    paths: dict[tuple[str, int], Path] = {}
    of: dict[Path, tuple[str, int]] = {}
    for dialogue in dialogues:
        for position, utterance in enumerate(dialogue.utterances, start=1):
            key = (dialogue.id, position)
            fields = {**utterance.extra, "dialogue": dialogue.id, "utterance": position}
            try:
                path = wavs / pattern.format(**fields)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(
                    f"--pattern {pattern}: {type(error).__name__} {error} for dialogue "
                    f"{dialogue.id}, utterance {position}, which has the fields "
                    f"{', '.join(fields)}; expected something like {PATTERN}"
                ) from error
            other = of.setdefault(path, key)
            if other != key:
                raise UserError(
                    f"--pattern {pattern}: {path.name} would be the file of dialogue {other[0]}, "
                    f"utterance {other[1]} and of dialogue {key[0]}, utterance {key[1]}; the "
                    "pattern, with the dialogues' ids, has to tell all utterances apart"
                )
            paths[key] = path
    return paths


def check_wav(path: Path) -> None:
    """Raises UserError unless a file is a whole wav file with some sound in it.

    libsndfile, which reads them, takes what is there of a file that was cut off.
    """
    raw = read_bytes(path)
    if not raw:
        raise UserError(f"{path}: the file is empty; get it again, or remove it")
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        raise UserError(
            f"{path}: not a wav file; convert it, for instance with: ffmpeg -i {path.name} out.wav"
        )
    place = 12
    while place + 8 <= len(raw):
        name, size = struct.unpack_from("<4sI", raw, place)
        place += 8
        if name == b"data":
            if place + size > len(raw):
                raise UserError(
                    f"{path}: cut off: {size} bytes of sound announced, {len(raw) - place} there. "
                    "Get it again; if a program wrote it into a pipe, rewrite it with: "
                    f"ffmpeg -i {path.name} out.wav"
                )
            if size == 0:
                raise UserError(f"{path}: the file holds no sound; get it again, or remove it")
            return
        place += size + size % 2  # chunks begin at even places
    raise UserError(f"{path}: cut off: the file holds no sound; get it again, or remove it")


def _load_smile(opensmile_config: str) -> tuple[Any, str, str]:
    """The extractor, its name and version."""
    try:
        import opensmile
    except ImportError as error:
        raise UserError(
            "audio features need the package opensmile: pip install 'erc-jax[audio]'"
        ) from error
    path = Path(opensmile_config).expanduser()
    version = opensmile.__version__
    if opensmile_config in opensmile.FeatureSet.__members__:
        feature_set: Any = opensmile.FeatureSet[opensmile_config]
    elif path.is_file():
        feature_set = str(path)
        version += f", configuration sha256 {hashlib.sha256(read_bytes(path)).hexdigest()}"
    else:
        raise UserError(
            f"--opensmile_config {opensmile_config}: there is no such file, and the names of "
            f"feature sets are {', '.join(opensmile.FeatureSet.__members__)}"
        )
    try:
        smile = opensmile.Smile(
            feature_set, opensmile.FeatureLevel.Functionals, mixdown=True, channels=None
        )
        if not smile.num_features:
            raise ValueError('no features at its level "func"')
    except Exception as error:  # OpenSmileException, a plain Exception that says "Code: 7"
        raise UserError(
            f"--opensmile_config {opensmile_config}: openSMILE cannot use it ({error}); see "
            "https://audeering.github.io/opensmile-python for how such files look"
        ) from error
    return smile, f"opensmile {path.stem}", version


def _features_of(path: Path, smile: Any) -> np.ndarray:
    """float32 [D]; NaN where the sound is too short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Segment too short, filling with NaN"
        try:
            frame = smile.process_file(str(path))
        except Exception as error:  # libsndfile has errors of its own, openSMILE plain ones
            raise UserError(
                f"{path}: cannot be read as a wav file ({error}); get it again, or convert it, for "
                f"instance with: ffmpeg -i {path.name} out.wav"
            ) from error
    if len(frame) != 1:
        raise UserError(
            f"{path}: the openSMILE configuration gives {len(frame)} vectors; expected one for the "
            "whole file (functionals)"
        )
    return frame.to_numpy(np.float32)[0]


FLAGS = flags.FLAGS
for _name in ("input", "output"):  # those of the main command
    flags.declare_key_flag(_name)
flags.DEFINE_string("wavs", None, "Folder of the utterances' wav files.")
flags.DEFINE_string(
    "pattern",
    PATTERN,
    "File of an utterance in the folder; besides {dialogue} and {utterance}, from 1, in braces any "
    "field of its record.",
)
flags.DEFINE_string(
    "opensmile_config",
    DEFAULT_CONFIG,
    "A feature set of the opensmile package, such as IS10, or an openSMILE configuration file.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command line; a user's mistake becomes one message and exit code 1."""
    command_line.quiet_logs()
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected arguments: {' '.join(argv[1:])}; flags begin with --")
        for name in ("input", "wavs", "output"):
            if not FLAGS[name].value:
                raise UserError(
                    f"--{name} is missing; for instance python -m erc_jax.audio --input talk.jsonl "
                    "--wavs wavs --output features/audio/train.safetensors"
                )
        check_suffix(Path(FLAGS.output))
        dialogues = load_dialogues(FLAGS.input)
        table = audio_features(
            dialogues,
            Path(FLAGS.wavs),
            pattern=FLAGS.pattern,
            opensmile_config=FLAGS.opensmile_config,
        )
        save_feature_file(FLAGS.output, table)
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(f"{len(table.positions):,} vectors of width {table.width} in {FLAGS.output}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
