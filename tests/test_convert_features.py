"""Old pickles, written here as Python 2 and numpy 1 wrote them, and malicious ones."""

import collections
import dataclasses
import functools
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from erc_jax import convert_features
from erc_jax.convert_features import MODALITIES, convert, find_utterances, read_pickle
from erc_jax.data.corpora import load_corpus
from erc_jax.data.feature_files import align, load_split
from erc_jax.errors import UserError

FIXTURES = Path(__file__).parent / "data" / "fixtures"
WIDTHS = {"text": 4, "audio": 3, "visual": 2}


# Pickles as Python 2.7 and numpy 1.x wrote them, with protocol 2.


def python2(value):
    """The opcodes that push a value."""
    match value:
        case np.ndarray():
            code = f"{value.dtype.kind}{value.dtype.itemsize}"
            dtype = _call("numpy", "dtype", code, 0, 1)
            dtype += python2((3, "<", None, None, None, -1, -1, 0)) + b"b"
            content = b"(" + python2(1) + python2(value.shape) + dtype + python2(False)
            content += python2(value.tobytes().decode("latin1")) + b"tb"
            array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            return array + python2((0,)) + python2("b") + b"tR" + content
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            raw = value.encode("latin1")
            return b"T" + struct.pack("<i", len(raw)) + raw
        case tuple():
            return b"(" + b"".join(map(python2, value)) + b"t"
        case list():
            return b"](" + b"".join(map(python2, value)) + b"e"
        case set():
            return _call("__builtin__", "set", sorted(value))
        case dict():
            return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def _call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + python2(arguments) + b"R"


def dump_python2(value):
    return b"\x80\x02" + python2(value) + b"."


def content_of(dialogues, more=(), roberta=True, as_array=False):
    """What a pickle of dialogues, texts by id, holds; the features say whose they are."""
    features = {name: {} for name in (*MODALITIES, "roberta")}
    for number, (key, texts) in enumerate(dialogues.items()):
        for modality, of in features.items():
            rows = [
                np.full(WIDTHS.get(modality, 4), vector(modality, number, t), np.float32)
                for t in range(1, len(texts) + 1)
            ]
            of[key] = np.array(rows) if as_array else rows
    labels = {key: [0] * len(texts) for key, texts in dialogues.items()}
    head = ({key: ["u"] for key in dialogues}, labels, labels, features["text"])
    layers = (features["roberta"],) * 3 if roberta else ()
    splits = (set(dialogues), list(dialogues))
    return (*head, *layers, features["audio"], features["visual"], dialogues, *splits, *more)


def vector(modality, number, position):
    kind = (*MODALITIES, "roberta").index(modality)
    return 100 * kind + 10 * number + position


@pytest.fixture
def iemocap(tmp_path):
    return load_corpus("iemocap", FIXTURES / "iemocap", cache=tmp_path / "cache")


@pytest.fixture
def meld(tmp_path):
    return load_corpus("meld", FIXTURES / "meld", cache=tmp_path / "cache")


def write(tmp_path, raw):
    path = tmp_path / "features.pkl"
    path.write_bytes(raw)
    return path


def read_modality(folder, modality, corpus, split):
    """For each utterance of a split its vector's number, or None where it is missing."""
    table = load_split(folder / modality, split)
    assert table.width == WIDTHS[modality]
    features, there = align(table, corpus.splits[split], "features")
    assert (features == features[:, :1]).all()
    return [
        int(row[0]) if is_there else None for row, is_there in zip(features, there, strict=True)
    ]


IEMOCAP = {
    # As in the corpus, but for an utterance that the corpus calls xxx and leaves out.
    "Ses01F_impro01": ["Is the ladder safe?", "Which ladder?", "All of them.", "Now I am angry."],
    "Ses01M_impro01": ["We are going to  the SEA!", "How nice."],
    "Ses09F_impro01": ["In no session."],
}


@pytest.mark.parametrize(
    "dump", [dump_python2, *(functools.partial(pickle.dumps, protocol=p) for p in (2, 4, 5))]
)
@pytest.mark.parametrize("as_array", [False, True])
def test_iemocap_by_ids(tmp_path, iemocap, capsys, dump, as_array):
    path = write(tmp_path, dump(content_of(IEMOCAP, as_array=as_array)))
    found = convert(path, iemocap, tmp_path / "out")
    assert (found.unmatched, found.ambiguous) == (1, 0)
    assert read_modality(tmp_path / "out", "audio", iemocap, "validation") == [111, 112]
    train = [d.id for d in iemocap.splits["train"] for _ in d.utterances]
    audio = read_modality(tmp_path / "out", "audio", iemocap, "train")
    text = read_modality(tmp_path / "out", "text", iemocap, "train")
    assert [v for v, d in zip(audio, train, strict=True) if d == "Ses01F_impro01"] == [
        101,
        102,
        104,
    ]
    assert [v for v, d in zip(text, train, strict=True) if d == "Ses01F_impro01"] == [1, 2, 4]
    assert set(read_modality(tmp_path / "out", "visual", iemocap, "test")) == {None}
    table = load_split(tmp_path / "out" / "audio", "train")
    assert table.extractor == "audio of features.pkl"
    assert table.version.startswith("sha256 ")
    told = capsys.readouterr().out
    assert "train: 3 of" in told
    assert "validation: 2 of 2 utterances" in told
    assert "2 utterances of the pickle were left out; 1 dialogues are not in the corpus" in told


MELD = {  # Numbers count through all splits, and some are by chance ids of other dialogues.
    0: ["Who has the map?", "You do.", "Oh. So I do!"],
    1: ["Rain again."],
    2: ["Mind the step.", "Which step?"],
    3: [
        *("The kettle sings!", "Take it off then, before it boils dry.", "You take it off."),
        *("It\x92s off.", "And there is cake, \x93the good one\x94."),
    ],
    5: ["Something lives in this fridge.", "It left a thank-you note!"],
}


@pytest.mark.parametrize("layout", [{}, {"roberta": False}])
def test_meld_by_texts(tmp_path, meld, layout):
    path = write(tmp_path, dump_python2(content_of(MELD, more=({},), **layout)))
    found = convert(path, meld, tmp_path / "out")
    assert (found.unmatched, found.ambiguous) == (0, 0)
    visual = functools.partial(read_modality, tmp_path / "out", "visual", meld)
    assert visual("train") == [201, 202, 203, 211]
    assert visual("validation") == [221, 222]
    assert visual("test") == [231, 232, 233, 234, 235, None, None, None, 241, 242]


def test_what_is_not_certain_is_left_out(tmp_path, meld):
    # Two of the same texts; an id, 1, of a dialogue of other texts.
    pickled = {7: ["Rain again."], 8: ["Rain again."], 1: ["Another dialogue."]}
    pickled[9] = ["Mind the step.", "Which step?"]
    path = write(tmp_path, pickle.dumps(content_of(pickled)))
    found = convert(path, meld, tmp_path / "out")
    assert (found.unmatched, found.ambiguous) == (1, 2)
    assert found.places == {
        "train": [],
        "validation": [("0", 1, "9", 1), ("0", 2, "9", 2)],
        "test": [],
    }


def test_texts_without_letters_match_nothing(meld):
    dialogue = dataclasses.replace(
        meld.splits["test"][0],
        utterances=[dataclasses.replace(u, text="…") for u in meld.splits["test"][0].utterances],
    )
    corpus = dataclasses.replace(meld, splits={"test": [dialogue]})
    pickled = convert_features.PickledDialogue(["!"] * len(dialogue.utterances), {})
    assert not find_utterances({"x": pickled}, corpus).places["test"]


def test_vectors_that_are_not_finite_are_left_out(tmp_path, meld, capsys):
    content = content_of({0: MELD[0]}, as_array=True)
    content[7][0][1] = np.nan
    convert(write(tmp_path, pickle.dumps(content)), meld, tmp_path / "out")
    assert read_modality(tmp_path / "out", "audio", meld, "train") == [101, None, 103, None]
    assert read_modality(tmp_path / "out", "text", meld, "train") == [1, 2, 3, None]
    assert "audio: 1 left out, which have NaN" in capsys.readouterr().out


def test_nothing_of_the_corpus_is_an_error(tmp_path, meld):
    path = write(tmp_path, pickle.dumps(content_of(IEMOCAP)))
    with pytest.raises(UserError, match="none of its 3 dialogues is in meld"):
        convert(path, meld, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_are_read_as_they_were_written(tmp_path):
    value = {
        "arrays": [
            np.arange(6, dtype=">f8").reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
            np.array(["a", "bcd"]),
            np.array([True, False]),
            np.zeros((0, 3), np.float32),
            np.float16([1.5]),
        ],
        "objects": np.array([[1], "b", None], object),
        "scalar": np.float32(0.5),
        "dicts": [collections.OrderedDict(a=1), collections.defaultdict(list, b=2)],
        "rest": (b"", b"\xff", frozenset({1}), {2}, "ü", 2**70, 1.5, None, True),
    }
    for protocol in range(2, 6):
        read = read_pickle(write(tmp_path, pickle.dumps(value, protocol=protocol)))
        for found, expected in zip(read["arrays"], value["arrays"], strict=True):
            np.testing.assert_array_equal(found.value, expected, strict=True)
        assert read["objects"].value == [[1], "b", None]
        assert (read["scalar"], type(read["scalar"])) == (0.5, float)
        assert read["dicts"] == [{"a": 1}, {"b": 2}]
        assert read["rest"] == value["rest"]


# What is refused.


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def malicious(marker):
    """Pickles that would create a file, or do so if an allowed name led further."""
    shell = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    whole = content_of(IEMOCAP)
    nested = content_of(IEMOCAP)
    nested[7]["Ses01F_impro01"][1] = Runs(os.system, shell)
    dump = functools.partial(pickle.dumps, protocol=2)
    return {
        "system": dump(Runs(os.system, shell)),
        "eval": dump(Runs(eval, code)),
        "exec": dump((*whole, Runs(exec, code))),
        "open": dump({"a": [Runs(open, str(marker), "w")]}),
        "nested": dump(nested),
        "getattr": dump(Runs(getattr, [], "append")),
        "object array": dump(np.array([Runs(os.system, shell)], object)),
        "key": dump({Runs(os.system, shell): 1}),
        "python 2": f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
        "instance": f"(S'{shell}'\nios\nsystem\n.".encode(),
        "builtins": f"c__builtin__\neval\n(V{code}\ntR.".encode(),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "module of numpy": f"cnumpy.testing._private.utils\nruncode\n(V{code}\ntR.".encode(),
        "numpy's pickles": f"cnumpy\nload\n(V{marker}\ntR.".encode(),
        "factory": b"ccollections\ndefaultdict\n(cos\ngetcwd\ntR.",
        "persistent": b"Pdata outside\n.",
    }


@pytest.mark.parametrize("name", malicious(""))
def test_a_malicious_pickle_is_refused_and_nothing_in_it_runs(tmp_path, meld, name):
    marker = tmp_path / "ran"
    path = write(tmp_path, malicious(marker)[name])
    with pytest.raises(UserError, match=r"features\.pkl: refused, for it "):
        convert(path, meld, tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_these_pickles_would_do_harm(tmp_path):
    """Else the test above would show nothing."""
    harmless = {"getattr", "dotted", "module of numpy", "numpy's pickles", "factory", "persistent"}
    for name, raw in malicious(tmp_path / "ran").items():
        if name not in harmless:
            pickle.loads(raw)
            assert (tmp_path / "ran").exists(), name
            (tmp_path / "ran").unlink()


def test_a_refusal_names_what_the_file_wanted(tmp_path):
    path = write(tmp_path, pickle.dumps({"audio": [Runs(eval, "1")]}, protocol=2))
    with pytest.raises(UserError, match=r"wants to use (__builtin__|builtins)\.eval"):
        read_pickle(path)
    path = write(tmp_path, pickle.dumps(Runs(os.system, "true")))
    with pytest.raises(UserError, match=r"wants to use posix\.system"):
        read_pickle(path)


def test_the_stand_ins_lead_nowhere(tmp_path):
    """What may be named neither calls nor imports anything that it is given."""
    for (module, name), stand_in in convert_features._STAND_INS.items():
        own = getattr(stand_in, "__module__", "") == convert_features.__name__
        assert own or stand_in in (list, set, frozenset, bytes), (module, name)
    # With numpy's own dtype and array these states would reach its C code.
    for state in (b"(K\x01(K\x7ft", b"(K\x01(J\xff\xff\xff\xfft"):
        raw = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntR" + state
        raw += b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR\x89S'1234'\ntb."
        with pytest.raises(UserError, match="damaged"):
            read_pickle(write(tmp_path, raw))
    for code in ("V8", "O,f4", "f4,f4", "(2,3)f8", "M8[s]", "object"):
        with pytest.raises(UserError, match="damaged, cut off, or no pickle of arrays"):
            read_pickle(write(tmp_path, f"cnumpy\ndtype\n(V{code}\nI0\nI1\ntR.".encode()))


def test_a_damaged_pickle_is_told(tmp_path):
    raw = pickle.dumps(content_of(IEMOCAP), protocol=2)
    cut_off = [raw[:length] for length in range(0, len(raw), 331)]
    for damaged in (*cut_off, raw[:-1], b"no pickle", b"\x80\x63."):
        with pytest.raises(UserError, match=r"features\.pkl: (damaged|refused)"):
            read_pickle(write(tmp_path, damaged))
    with pytest.raises(UserError, match=r"nowhere\.pkl: cannot be read \(No such file"):
        read_pickle(tmp_path / "nowhere.pkl")


def changed(place, change):
    content = list(content_of(IEMOCAP))
    content[place] = change(content[place])
    return tuple(content)


OTHER_LAYOUTS = {
    "a dictionary": ({"audio": 1}, "expected a tuple of 9, 10, 12, 13 items, .* something else"),
    "many items": (tuple(range(20)), "found 20 items"),
    "lists": (changed(8, list), "expected a dictionary by dialogue as visual, item 9 of 12"),
    "sentences": (changed(9, lambda d: {k: [1] for k in d}), "Ses01F_impro01: expected a list"),
    "no labels": (changed(2, lambda d: {}), "expected a label for each of its 4 utterances"),
    "vectors as labels": (
        changed(2, lambda d: {k: [np.zeros(3)] * len(v) for k, v in d.items()}),
        "expected a label for each",
    ),
    "no vectors": (changed(7, lambda d: {}), "Ses01F_impro01: audio: expected 4 vectors"),
    "few vectors": (changed(7, lambda d: {k: v[:1] for k, v in d.items()}), "expected 4 vectors"),
    "texts": (
        changed(8, lambda d: {k: ["a b"] * len(v) for k, v in d.items()}),
        "visual: expected",
    ),
    "ragged": (changed(8, lambda d: {k: [[1], [1, 2]] * 2 for k in d}), "visual: expected 4 vec"),
    "widths": (
        changed(8, lambda d: {k: np.zeros((len(v), len(v))) for k, v in d.items()}),
        r"vectors of visual have different widths: \[1, 2, 4\]",
    ),
}


@pytest.mark.parametrize(("content", "told"), OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_other_layouts_are_told(tmp_path, iemocap, content, told):
    path = write(tmp_path, pickle.dumps(content))
    with pytest.raises(UserError, match=told):
        convert(path, iemocap, tmp_path / "out")


def test_the_command(tmp_path, command, capsys, monkeypatch):
    monkeypatch.setenv("ERC_JAX_CACHE", str(tmp_path / "cache"))
    run = functools.partial(command, main=convert_features.main)
    path = write(tmp_path, dump_python2(content_of(MELD, more=({},))))
    config = ("--config", "meld", f"--config.data.source={FIXTURES / 'meld'}")
    assert run(path, *config, "--output", tmp_path / "out") is None
    assert f"--config.data.features.audio={tmp_path / 'out' / 'audio'}" in capsys.readouterr().out
    assert load_split(tmp_path / "out" / "audio", "test").features.shape == (7, 3)
    assert "expected one pickle, --config and --output" in run(path, *config)
    assert "expected one pickle" in run(*config, "--output", tmp_path / "out")
    assert "nowhere.pkl: cannot be read" in run("nowhere.pkl", *config, "--output", tmp_path)


def test_nothing_else_reads_pickles():
    for file in Path(convert_features.__file__).parent.rglob("*.py"):
        if file.name != "convert_features.py":
            assert "import pickle" not in file.read_text(), file


@pytest.mark.slow
@pytest.mark.skipif("ERC_JAX_DATA" not in os.environ, reason="needs the real MELD: ERC_JAX_DATA")
def test_a_pickle_of_the_whole_meld_is_found(tmp_path):
    source = Path(os.environ["ERC_JAX_DATA"]) / "meld"
    meld = load_corpus("meld", source, cache=tmp_path / "cache")
    texts = [[u.text for u in d.utterances] for split in meld.splits.values() for d in split]
    # Ids as in the field's pickles; quotes and dashes as in the older release.
    older = str.maketrans({"’": "\x92", "‘": "\x91", "“": "\x93", "”": "\x94", "—": "\x97"})
    pickled = {number: [t.translate(older) for t in of] for number, of in enumerate(texts)}
    path = write(tmp_path, pickle.dumps(content_of(pickled, more=({},))))
    found = convert(path, meld, tmp_path / "out")
    # Three dialogues of one or two words occur twice, and one has no letters at all.
    assert (found.unmatched, found.ambiguous) == (0, 7)
    numbers = {}
    for split, dialogues in meld.splits.items():
        for d in dialogues:
            numbers[split, d.id] = str(len(numbers))
    for split, places in found.places.items():
        assert all(key == numbers[split, d] and t == its for d, t, key, its in places)
    assert sum(map(len, found.places.values())) == sum(map(len, texts)) - 9
