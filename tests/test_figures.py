import json
import sys

import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.config import base_config
from erc_jax.errors import UserError

pytest.importorskip("matplotlib")

import matplotlib.image
from matplotlib.figure import Figure

from erc_jax.figures import confusion_matrix, label_histogram, run_figures

NAMES = ["neutral", "joy", "fear"]
CONFUSION = np.array([[5, 1, 0], [2, 1200, 1], [0, 0, 0]])
COUNTS = {"train": [1000, 60, 20], "validation": [10, 7, 1], "test": [0, 0, 0]}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    figures = []
    savefig = Figure.savefig

    def spy(figure, *args, **kwargs):
        if figure not in figures:
            figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures


@pytest.fixture
def workdir(tmp_path):
    """A finished run of two seeds, as far as its figures read it."""
    (tmp_path / "config.json").write_text(json.dumps(base_config().to_dict()))
    (tmp_path / "metrics.json").write_text(json.dumps(content()))
    return tmp_path


def content():
    block = metrics.block(CONFUSION, NAMES, "neutral")
    splits = {s: {"emotions": dict(zip(NAMES, COUNTS[s], strict=True))} for s in COUNTS}
    corpus = {"name": "own", "neutral": "neutral", "splits": splits}
    return {"validation": block, "test": block, "run": {"corpus": corpus, "seeds": [0, 1]}}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def is_picture(path):
    if path.suffix == ".svg":
        return b"<svg" in path.read_bytes()
    return matplotlib.image.imread(path).std() > 0


def overlaps(figure, artists):
    """Pairs of texts whose boxes on the canvas meet."""
    renderer = figure.canvas.get_renderer()
    boxes = [a.get_window_extent(renderer) for a in artists if a.get_text()]
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_confusion_matrix(tmp_path, drawn):
    files = confusion_matrix(CONFUSION, NAMES, tmp_path / "new" / "c.png", "own, test")
    assert [file.name for file in files] == ["c.png", "c.svg"]
    assert all(is_picture(file) for file in files)
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "own, test"
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares[0], [5 / 6, 1 / 6, 0])
    np.testing.assert_array_equal(shares[2], 0)  # nothing is fear: no share, no NaN
    assert texts(axes)[:3] == ["5\n83%", "1\n17%", "0"]
    assert texts(axes)[4:6] == ["1,200\n100%", "1\n<1%"]
    # Rows are the truth, with their sums; columns what was predicted.
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "neutral (6)",
        "joy (1,203)",
        "fear (0)",
    ]
    assert [t.get_text() for t in axes.get_xticklabels()] == NAMES


@pytest.mark.parametrize("n_classes", [2, 7, pytest.param(28, marks=pytest.mark.slow)])
def test_nothing_overlaps_in_a_confusion_matrix(n_classes, tmp_path, drawn):
    names = [f"a rather long name {i}" for i in range(n_classes)]
    confusion = np.full((n_classes, n_classes), 123_456)
    confusion_matrix(confusion, names, tmp_path / "c.png", "title " * 10)
    (axes,) = drawn[0].axes
    assert not overlaps(drawn[0], [*axes.texts, *axes.get_yticklabels()])


def test_label_histogram(tmp_path, drawn):
    files = label_histogram(COUNTS, NAMES, "neutral", tmp_path / "h.png", "own: emotions")
    assert all(is_picture(file) for file in files)
    (axes,) = drawn[0].axes
    shares = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(shares, np.array([[0.75, 0.25], [0.875, 0.125], [0, 0]]))
    assert texts(axes) == ["60", "20", "7", "1", "0", "0"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["joy", "fear"]
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["train (80)", "validation (8)", "test (0)"]
    left_out = "neutral: train 1,000 (93%), validation 10 (56%), test 0 (0%)"
    assert axes.get_xlabel().endswith(left_out)
    renderer = drawn[0].canvas.get_renderer()
    legend, title = axes.get_legend(), axes.get_title(loc="left")
    assert title == "own: emotions"
    assert legend.get_window_extent(renderer).y0 >= axes.bbox.y1  # above all bars
    assert not overlaps(drawn[0], [*axes.texts, *axes.get_yticklabels()])


def test_frequent_emotions_come_first(tmp_path, drawn):
    label_histogram({"train": [1, 5, 3]}, NAMES, None, tmp_path / "h.png", "own")
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["joy", "fear", "neutral"]
    assert texts(axes) == ["5", "3", "1"]
    assert "neutral" not in axes.get_xlabel()


def test_names_are_not_formulas(tmp_path):
    names = ["$\\frac{", "a_b^"]
    confusion_matrix(np.eye(2, dtype=int), names, tmp_path / "c.png", "$x{")
    label_histogram({"train": [1, 2]}, names, names[0], tmp_path / "h.png", "$x{")


def test_the_figures_of_a_run(workdir, drawn):
    files = run_figures(workdir)
    assert [str(file.relative_to(workdir / "figures")) for file in files] == [
        "confusion_validation.png",
        "confusion_validation.svg",
        "confusion_test.png",
        "confusion_test.svg",
        "labels.png",
        "labels.svg",
    ]
    assert all(is_picture(file) for file in files)
    titles = [figure.axes[0].get_title(loc="left").replace("\n", " ") for figure in drawn]
    assert titles == [
        "own, validation, sum of 2 seeds",
        "own, test, sum of 2 seeds",
        "own: emotions",
    ]


def test_without_matplotlib(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'erc-jax\[figures\]'"):
        run_figures(workdir)


def test_no_finished_run(workdir):
    (workdir / "metrics.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        run_figures(workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match="not a workdir"):
        run_figures(workdir)


def without_counts(stored):
    del stored["run"]["corpus"]["splits"]["train"]["emotions"]


def without_scores(stored):
    del stored["validation"], stored["test"]


def without_a_row(stored):
    stored["test"]["confusion"].pop()


def with_words(stored):
    stored["run"]["corpus"]["splits"]["test"]["emotions"]["joy"] = "many"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_counts, "earlier version"),
        (without_scores, "damaged"),
        (without_a_row, "damaged"),
        (with_words, "damaged"),
    ],
)
def test_a_metrics_file_of_another_shape(change, message, workdir):
    stored = content()
    change(stored)
    (workdir / "metrics.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=message):
        run_figures(workdir)
    assert not (workdir / "figures").exists()


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"null"], ids=str)
def test_a_metrics_file_that_is_none(raw, workdir):
    (workdir / "metrics.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"metrics\.json"):
        run_figures(workdir)


def test_shapes_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="3 names"):
        confusion_matrix(CONFUSION[:2], NAMES, tmp_path / "c.png", "")
    with pytest.raises(ValueError, match="2 names"):
        label_histogram(COUNTS, NAMES[:2], None, tmp_path / "h.png", "")
