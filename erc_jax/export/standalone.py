"""Names the emotions of conversations. Needs jax, numpy and tokenizers, and the files beside it.

    python predict.py talk.jsonl --output labelled.jsonl

Each line of talk.jsonl is a conversation, {"utterances": [{"speaker": "Ann", "text": "We won!"}]},
and comes back with "emotion" and "probabilities" in each utterance, and what else the model knows.
In Python::

    import predict

    model = predict.load("folder")
    model.predict([{"utterances": [{"speaker": "Ann", "text": "We won!"}]}])

The model reads a conversation to its end: the label of a turn can change when it goes on.

Shapes: B dialogues of T places for utterances, R token sequences of up to W tokens.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from tokenizers import Tokenizer

FORMAT = 1  # of the folder; raised when an older predict.py would misread it
FILES = ("model.stablehlo", "weights.npz", "tokenizer.json")
TOGETHER = 16  # dialogues that are read at once
# Places that these fill, padding included: attention is of the square of the longest one's.
PLACES = 1024
SHORTEST = 8  # places of a dialogue, at least
NOBODY = -1  # owner of a token that belongs to no utterance; speaker where there is none


class InputError(ValueError):
    """A mistake in what was given: the folder, or a conversation. The message says which."""


class Model:
    """An exported model; made by ``load``."""

    def __init__(self, about: Mapping[str, Any], run: Callable[..., Any], tokenizer: Tokenizer):
        """Args:
        about: what labels.json holds.
        run: from tokens, lengths, owners and speakers to what is predicted, by name.
        tokenizer: without padding and truncation.
        """
        self.about = about
        self._run = run
        self._tokenizer = tokenizer

    def predict(self, dialogues: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Labels conversations.

        Args:
          dialogues: as in the lines of talk.jsonl, above.

        Returns:
          The same with ``emotion``, ``probabilities`` (label to probability) and, where the model
          learned them, ``sentiment`` and ``shift`` (``global``, ``speaker``; None on firsts), or
          ``vad`` and ``similarity`` (emotion to cosine) in each utterance. A label that was given
          is kept under ``gold``.

        Raises:
          InputError: one is no conversation, or too long.
        """
        records = [checked(dialogue, self.about) for dialogue in dialogues]
        labelled: list[dict[str, Any]] = [{}] * len(records)
        for chosen in calls([len(record["utterances"]) for record in records]):
            outputs = self._run(*self._arrays([records[i] for i in chosen]))
            arrays = {name: np.asarray(array) for name, array in outputs.items()}
            for row, i in enumerate(chosen):
                of_dialogue = {name: array[row] for name, array in arrays.items()}
                labelled[i] = self._labelled(records[i], of_dialogue)
        return labelled

    def _arrays(self, records: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, ...]:
        """Tokens [R, W], lengths [R], owners [R, W] and speakers [B, T], int32.

        Sizes are rounded up to powers of two: each new one costs a compilation.
        """
        n_places = round_up(max(len(record["utterances"]) for record in records), least=SHORTEST)
        speakers = np.full((round_up(len(records)), n_places), NOBODY, np.int32)
        texts, places = [], []
        in_context = self.about["reading"]["context"] == "dialogue"
        for row, record in enumerate(records):
            number: dict[str, int] = {}
            for place, utterance in enumerate(record["utterances"]):
                name, text = utterance["speaker"], utterance["text"]
                speakers[row, place] = number.setdefault(name, len(number))
                texts.append(f"{name}: {text}" if in_context else text)
                places.append(row * n_places + place)
        sequences = self._sequences(texts, places, [len(r["utterances"]) for r in records])
        width = round_up(max(len(ids) for ids, _ in sequences), least=16)
        height = round_up(len(sequences), least=self.about["rows"])
        tokens = np.zeros((height, width), np.int32)
        owners = np.full((height, width), NOBODY, np.int32)
        lengths = np.zeros(height, np.int32)
        for row, (ids, of) in enumerate(sequences):
            lengths[row] = len(ids)
            tokens[row, : len(ids)] = ids
            owners[row, : len(ids)] = of
        return tokens, lengths, owners, speakers

    def _sequences(
        self, texts: Sequence[str], places: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[list[int], list[int]]]:
        """What the encoder reads at once: token numbers, and the place that each belongs to.

        Args:
          texts: of all utterances, dialogue by dialogue.
          places: where each of them goes.
          counts: utterances of each dialogue.
        """
        reading = self.about["reading"]
        begin, end = reading["begin"], reading["end"]
        # JSON can hold half of a surrogate pair, which no tokenizer takes.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        if reading["lower_case"]:
            texts = [text.lower() for text in texts]
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        pieces = [[*encoding.ids[: reading["max_length"] - 2], end] for encoding in encoded]
        if reading["context"] != "dialogue":
            return [
                ([begin, *piece], [place] * (len(piece) + 1))
                for piece, place in zip(pieces, places, strict=True)
            ]
        sequences = []
        start = 0
        for count in counts:
            lengths = [len(piece) for piece in pieces[start : start + count]]
            for shown, own in windows(lengths, reading["max_length"] - 1):
                ids, owners = [begin], [NOBODY]
                for i in shown:
                    ids += pieces[start + i]
                    owners += [places[start + i] if i in own else NOBODY] * lengths[i]
                sequences.append((ids, owners))
            start += count
        return sequences

    def _labelled(
        self, record: Mapping[str, Any], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """The record with what is predicted of its T utterances; outputs are float32 [T', C]."""
        scale = self.about["vad_scale"]
        about = {"vad_scale": scale} if "vad" in outputs else {}
        last: dict[str, int] = {}  # where each speaker last spoke
        utterances = []
        for i, given in enumerate(record["utterances"]):
            of_utterance = {name: array[i] for name, array in outputs.items()}
            previous = {"global": i > 0, "speaker": given["speaker"] in last}
            last[given["speaker"]] = i
            predicted = self._described(of_utterance, previous)
            utterance = {**given, **predicted}
            gold = {key: given[key] for key in predicted if key in given}
            if gold and "probabilities" not in given:
                utterance["gold"] = gold
            utterances.append(utterance)
        moved = {k: record[k] for k in about if record.get(k, about[k]) != about[k]}
        return {
            **record,
            **about,
            **({"gold": moved} if moved else {}),
            "utterances": utterances,
        }

    def _described(
        self, outputs: Mapping[str, np.ndarray], previous: Mapping[str, bool]
    ) -> dict[str, Any]:
        """What an utterance's outputs, float32 [C], say in words.

        Args:
          outputs: by name.
          previous: whether there is an utterance before it, and one of the same speaker.
        """
        names = self.about["tasks"]

        def likeliest(task: str) -> str:
            return names[task][int(outputs[task].argmax())]

        emotions = names["emotion"]
        described: dict[str, Any] = {
            "emotion": likeliest("emotion"),
            "probabilities": dict(zip(emotions, outputs["emotion"].tolist(), strict=True)),
        }
        if "sentiment" in outputs:
            described["sentiment"] = likeliest("sentiment")
        if "shift_global" in outputs:
            described["shift"] = {
                level: likeliest(f"shift_{level}") if there else None
                for level, there in previous.items()
            }
        if "similarity" in outputs:
            described["similarity"] = dict(
                zip(emotions, outputs["similarity"].tolist(), strict=True)
            )
        if "vad" in outputs:
            low, high = self.about["vad_scale"]
            ratings = low + (high - low) * outputs["vad"].astype(np.float64)
            described["vad"] = dict(zip(self.about["vad"], ratings.tolist(), strict=True))
        return described


def load(folder: str | Path) -> Model:
    """Loads the model in a folder.

    Raises:
      InputError: a file is missing, is not the one that was exported, or is of another version.
    """
    folder = Path(folder)
    if not (folder / "labels.json").is_file():
        raise InputError(
            f"{folder / 'labels.json'}: not found; expected an exported model's folder"
        )
    try:
        about = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        written = about["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'labels.json'}: damaged; export the model again") from error
    if written != FORMAT:
        raise InputError(
            f"{folder}: the folder is of version {written}, but this predict.py reads version "
            f"{FORMAT}; use the predict.py that lies in the folder"
        )
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: not found; export the model again")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != about["sha256"][name]:
            raise InputError(
                f"{folder / name}: not the file that was exported with the others (another "
                "SHA-256); copy the whole folder again"
            )
    if importlib.util.find_spec("flatbuffers") is None:  # what jax reads programs with
        sys.path.append(str(folder / "vendor"))
    try:
        program = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
        program.mlir_module()  # reads the StableHLO, which ``deserialize`` takes as it is
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder / 'model.stablehlo'}: jax {jax.__version__} does not read it ({error}); it "
            f"was exported with jax {about['made_with']['jax']}"
        ) from error
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        weights = jax.device_put({name: arrays[name] for name in arrays.files})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Published files may pad and cut off; both are done here.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    compiled = jax.jit(program.call)
    return Model(about, lambda *arrays: compiled(weights, *arrays), tokenizer)


def checked(record: Any, about: Mapping[str, Any], where: str = "dialogue") -> dict[str, Any]:
    """A conversation with an id, and without labels that are null.

    Args:
      record: what was given.
      about: what labels.json holds.
      where: its place, for the message of an error.

    Raises:
      InputError: it is no conversation, or too long.
    """

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{where}: {message}")

    utterances = record.get("utterances") if isinstance(record, Mapping) else None
    require(isinstance(utterances, list | tuple), 'expected an object with a list "utterances"')
    assert isinstance(utterances, list | tuple)
    most = about["limits"]["utterances"]
    require(len(utterances) > 0, "the dialogue has no utterances; remove it")
    require(
        len(utterances) <= most,
        f"the dialogue has {len(utterances)} utterances; the model reads up to {most} at a time; "
        "split it",
    )
    kept = []
    for number, utterance in enumerate(utterances, start=1):
        place = f"utterance {number}: "
        require(isinstance(utterance, Mapping), f"{place}expected an object")
        for key in ("speaker", "text"):
            require(isinstance(utterance.get(key), str), f'{place}expected text as "{key}"')
        require(utterance["speaker"].strip() != "", f'{place}"speaker" is empty')
        labels = ("emotion", "sentiment", "vad")
        kept.append({k: v for k, v in utterance.items() if v is not None or k not in labels})
    identifier = record.get("id", where)
    require(isinstance(identifier, str | int), 'expected text as "id"')
    return {**record, "id": str(identifier), "utterances": kept}


def calls(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the dialogues of these lengths that are read at once.

    Those of about the same length go together, so that little is padded; a long one goes alone.
    """
    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        places = round_up(lengths[i], least=SHORTEST) * (len(chosen) + 1)
        if chosen and (len(chosen) == TOGETHER or places > PLACES):
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


def windows(lengths: Sequence[int], limit: int) -> Iterator[tuple[range, range]]:
    """Cuts a dialogue into windows of at most ``limit`` tokens.

    A window encodes utterances of up to half of the limit; what came before and after them fills
    the rest, from both sides in turn.

    Args:
      lengths: tokens of each utterance; none above the limit.

    Yields:
      The utterances that a window shows, and those of them that it encodes.
    """
    start = 0
    while start < len(lengths):
        whole = sum(lengths) <= limit
        first, last, used = start, start + 1, lengths[start]
        while last < len(lengths) and used + lengths[last] <= (limit if whole else limit // 2):
            used += lengths[last]
            last += 1
        own = range(first, last)
        grows = True
        while grows:
            grows = False
            if first > 0 and used + lengths[first - 1] <= limit:
                first -= 1
                used += lengths[first]
                grows = True
            if last < len(lengths) and used + lengths[last] <= limit:
                used += lengths[last]
                last += 1
                grows = True
        yield range(first, last), own
        start = own.stop


def round_up(n: int, least: int = 1) -> int:
    """The next power of two times ``least``."""
    while least < n:
        least *= 2
    return least


def read_lines(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversations of a file of JSON lines.

    Raises:
      InputError: the file, or a line of it, cannot be read; the message names the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig").strip()
            if not text:
                continue
            record = json.loads(text)
            json.dumps(record, ensure_ascii=False).encode()  # JSON can spell half of a character
        except ValueError as error:
            raise InputError(f"{where}: not a JSON object in UTF-8 ({error})") from error
        records.append(checked(record, about, where))
    if not records:
        raise InputError(f"{path}: no dialogues in the file; expected one JSON object a line")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description="Names the emotions of conversations.")
    parser.add_argument("input", type=Path, help="conversations, JSON lines")
    parser.add_argument("--output", type=Path, help="file for the labelled ones, else the screen")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="the folder")
    arguments = parser.parse_args()
    try:
        model = load(arguments.model)
        labelled = model.predict(read_lines(arguments.input, model.about))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in labelled)
        if arguments.output:
            arguments.output.write_text(lines, encoding="utf-8")
        else:
            sys.stdout.buffer.write(lines.encode())
    except (InputError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
