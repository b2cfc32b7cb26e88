import json
import sys
from typing import Any

import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.config import base_config
from erc_jax.errors import UserError

pytest.importorskip("matplotlib")

import matplotlib.image
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.text import Annotation, Text

from erc_jax.charts import USUAL_NAMES
from erc_jax.clouds import rating_clouds
from erc_jax.drawing import COLOURS, confusion_matrices, label_histogram
from erc_jax.figures import run_figures
from tests.fabricated import change

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
    """A finished run of two seeds, 0 and 1, of which 1 predicts, as far as its figures read it."""
    config = base_config()
    config.seeds = 2
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "metrics.json").write_text(json.dumps(content()))
    return tmp_path


def content():
    block = metrics.block(CONFUSION, NAMES, "neutral")
    splits = {s: {"emotions": dict(zip(NAMES, COUNTS[s], strict=True))} for s in COUNTS}
    corpus = {"name": "own", "neutral": "neutral", "splits": splits}
    chosen = [{"seed": 0, "best_epoch": 4}, {"seed": 1, "best_epoch": 9}]
    worse = metrics.block(CONFUSION.T, NAMES, "neutral")
    facts = {
        "system": "mtl_erc_es",
        "corpus": corpus,
        "seeds": [0, 1],
        "selected_on": "validation weighted_f1",
        "checkpoints": chosen,
    }
    return {
        "validation": block,
        "test": block,
        "seeds": [{"seed": 0, "validation": worse}, {"seed": 1, "validation": block}],
        "run": facts,
    }


def texts(axes):
    return [text.get_text() for text in axes.texts]


def is_picture(path):
    if path.suffix == ".svg":
        return b"<svg" in path.read_bytes()
    return matplotlib.image.imread(path).std() > 0


def overlaps(artists):
    """Pairs of texts whose boxes on the canvas meet."""
    boxes = [Text.get_window_extent(a) for a in artists if a.get_text()]
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_confusion_matrix(tmp_path, drawn):
    files = confusion_matrices({"": CONFUSION}, NAMES, tmp_path / "new" / "c.png", "own, test")
    assert [file.name for file in files] == ["c.png", "c.svg"]
    assert all(is_picture(file) for file in files)
    (figure,) = drawn
    (axes,) = figure.axes
    assert figure.get_suptitle() == "own, test"
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
    confusion_matrices({"": confusion}, names, tmp_path / "c.png", "title " * 10)
    (axes,) = drawn[0].axes
    assert not overlaps([*axes.texts, *axes.get_yticklabels()])


def test_nothing_overlaps_in_two_small_matrices(tmp_path, drawn):
    eye = np.eye(2, dtype=int)
    titles = ["after the first epoch", "chosen checkpoint (epoch 100)"]
    confusion_matrices(dict.fromkeys(titles, eye), ["a", "b"], tmp_path / "c.png", "title")
    drawn[0].draw_without_rendering()
    left, right = drawn[0].axes
    ticks = [tick for axes in (left, right) for tick in axes.get_xticklabels()]
    assert not overlaps([*drawn[0].texts, left.xaxis.label, right.xaxis.label, *ticks])
    below = left.get_tightbbox().x1, right.get_tightbbox().x0
    assert below[0] < below[1]  # titles and labels keep to their own panel


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
    legend, title = axes.get_legend().get_window_extent(renderer), drawn[0].texts[0]
    assert title.get_text() == "own: emotions"
    assert legend.y0 >= axes.bbox.y1  # above all bars
    assert title.get_window_extent(renderer).y0 >= legend.y1
    assert not overlaps([*axes.texts, *axes.get_yticklabels()])


def test_frequent_emotions_come_first(tmp_path, drawn):
    label_histogram({"train": [1, 5, 3]}, NAMES, None, tmp_path / "h.png", "own")
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["joy", "fear", "neutral"]
    assert texts(axes) == ["5", "3", "1"]
    assert "neutral" not in axes.get_xlabel()


def test_names_are_not_formulas(tmp_path):
    names = ["$\\frac{", "a_b^"]
    eye = np.eye(2, dtype=int)
    confusion_matrices({"$y{": eye, "": eye}, names, tmp_path / "c.png", "$x{")
    label_histogram({"train": [1, 2]}, names, names[0], tmp_path / "h.png", "$x{")
    points = np.array([[1.0, 2], [3, 4]])
    rating_clouds(
        {"$y{": points}, points, np.arange(2), names, ["a", "b"], tmp_path / "v.png", "$x{"
    )


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
    titles = [figure.get_suptitle().replace("\n", " ") for figure in drawn]
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


def test_a_run_that_replies(workdir):
    be_of(workdir, "response")
    with pytest.raises(UserError, match="this run replies; figures are of runs that name emotions"):
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
    ("spoil", "message"),
    [
        (without_counts, "earlier version"),
        (without_scores, "damaged"),
        (without_a_row, "damaged"),
        (with_words, "damaged"),
    ],
)
def test_a_metrics_file_of_another_shape(spoil, message, workdir):
    change(workdir / "metrics.json", spoil)
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
        confusion_matrices({"": CONFUSION[:2]}, NAMES, tmp_path / "c.png", "")
    with pytest.raises(ValueError, match="2 names"):
        label_histogram(COUNTS, NAMES[:2], None, tmp_path / "h.png", "")


VAD = ("valence", "arousal", "dominance")
# Two dialogues: true emotion (None: unlabelled), given ratings, predicted emotion and ratings.
SAID: list[list[Any]] = [
    [
        ("joy", [4.0, 3.0, 3.0], "joy", [3.5, 3.0, 3.0]),
        ("joy", [5.0, 5.5, 3.0], "neutral", [4.5, 4.0, 3.0]),  # off the scale
        (None, [1.0, 1.0, 1.0], "joy", [1.0, 1.0, 1.0]),
    ],
    [
        ("fear", [2.0, 4.0, 2.0], "fear", [2.0, 3.5, 2.5]),
        ("fear", None, "joy", [3.0, 4.5, 1.5]),
        ("joy", [5.0, 4.0, 4.0], "joy", [4.0, 5.0, 3.0]),
    ],
]


def save_predictions(path, said=SAID, dimensions=VAD, nearer=1.0):
    """Writes a file as training does; ``nearer`` brings predicted ratings to the scale's middle."""
    lines = []
    for dialogue in said:
        utterances = []
        for emotion, ratings, predicted, vad in dialogue:
            gold = {} if emotion is None else {"emotion": emotion}
            if ratings is not None:
                gold["vad"] = dict(zip(VAD, ratings, strict=True))
            if vad is not None:
                vad = dict(zip(VAD, 3 + nearer * (np.array(vad) - 3), strict=True))
                vad = {dimension: float(vad[dimension]) for dimension in dimensions}
            said_by = {"speaker": "Ann", "text": "So.", "emotion": predicted, "gold": gold}
            utterances.append(said_by | ({"vad": vad} if vad else {}))
        lines.append(json.dumps({"id": "d", "vad_scale": [1, 5], "utterances": utterances}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def rated(workdir):
    """The same run with predictions of seed 1, which are rated, too."""
    learn(workdir, VAD)
    save_predictions(workdir / "seeds" / "1" / "early_validation.jsonl", nearer=0.1)
    save_predictions(workdir / "seeds" / "1" / "predictions_validation.jsonl")
    return workdir


def learn(workdir, dimensions):
    change(workdir / "config.json", lambda c: c["fmerl"]["vad"].update(dimensions=dimensions))
    be_of(workdir, "fmerl")


def be_of(workdir, system):
    change(workdir / "metrics.json", lambda content: content["run"].update(system=system))


def drawn_as(figures, name, files):
    """The figure that became a file of this name."""
    return figures[[file.stem for file in files[::2]].index(name)]


def artists(axes, kind, label):
    return [a for a in axes.get_children() if isinstance(a, kind) and a.get_label() == label]


def test_early_and_best_side_by_side(rated, drawn):
    """Also of a system that learns no ratings, though its corpus gives some."""
    be_of(rated, "mtl_erc_es")
    for kind, predicted in (("early", "fear"), ("predictions", "joy")):
        said = [[("joy", None, predicted, None), *SAID[0][1:]], SAID[1]]
        path = rated / "seeds" / "1" / f"{kind}_validation.jsonl"
        save_predictions(path, said, dimensions=())
    files = run_figures(rated)
    assert [file.name for file in files[-2:]] == ["early_and_best.png", "early_and_best.svg"]
    assert all(is_picture(file) for file in files)
    figure = drawn_as(drawn, "early_and_best", files)
    assert figure.get_suptitle() == "own, validation, seed 1"
    early, best = figure.axes
    assert early.get_title(loc="left") == "after the first epoch"
    assert best.get_title(loc="left") == "chosen checkpoint (epoch 9)"
    assert early.get_position().x1 < best.get_position().x0
    # joy: three; one is neutral to both. fear: two, of which one is joy. None is neutral.
    np.testing.assert_allclose(early.images[0].get_array()[1], [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(best.images[0].get_array()[1], [1 / 3, 2 / 3, 0])
    assert [axes.images[0].get_array()[2].tolist() for axes in (early, best)] == [[0, 0.5, 0.5]] * 2
    assert texts(best) == ["0", "0", "0", "1\n33%", "2\n67%", "0", "0", "1\n50%", "1\n50%"]
    assert early.images[0].get_clim() == best.images[0].get_clim() == (0, 1)
    assert [t.get_text() for t in early.get_yticklabels()] == ["neutral (0)", "joy (3)", "fear (2)"]
    assert not any(t.get_visible() and t.get_text() for t in best.get_yticklabels())


def test_clouds_of_ratings(rated, drawn):
    files = run_figures(rated)
    assert [file.name for file in files[-4::2]] == ["early_and_best.png", "vad.png"]
    assert all(is_picture(file) for file in files)
    figure = drawn_as(drawn, "vad", files)
    assert (
        figure.get_suptitle() == "own, validation, seed 1: predicted ratings of each true emotion"
    )
    early, best, early_below, best_below = figure.axes
    assert early.get_title(loc="left") == "after the first epoch"
    assert best.get_title(loc="left") == "chosen checkpoint (epoch 9)"
    assert early.get_position().x1 < best.get_position().x0
    assert {axes.get_xlabel() for axes in figure.axes} == {"valence (scale 1 to 5)"}
    assert early.get_ylabel() == "arousal (scale 1 to 5)"
    assert early_below.get_ylabel() == "dominance (scale 1 to 5)"
    for left, right in ((early, best), (early_below, best_below)):
        assert left.get_xlim() == right.get_xlim()
        assert left.get_ylim() == right.get_ylim()

    # What is predicted of labelled utterances, by what they are.
    (points,) = artists(best, PathCollection, "joy")
    np.testing.assert_allclose(points.get_offsets(), [[3.5, 3.0], [4.5, 4.0], [4.0, 5.0]])
    assert points.get_alpha() < 0.5
    (points,) = artists(best_below, PathCollection, "fear")
    np.testing.assert_allclose(points.get_offsets(), [[2, 2.5], [3, 1.5]])
    (points,) = artists(early, PathCollection, "fear")
    np.testing.assert_allclose(points.get_offsets(), [[2.9, 3.05], [3, 3.15]])
    assert not artists(best, PathCollection, "neutral")
    # An emotion has the colour that it has on pages, whatever its place among the classes.
    for name in ("joy", "fear"):
        expected = to_rgba(COLOURS[USUAL_NAMES[name]])
        assert cloud(best, name).get_edgecolor() == expected

    # Means, and crosses at what is rated, where it is on the scale.
    means = {line.get_label(): line for line in best.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(means["joy"].get_xydata(), [[4, 4]])
    np.testing.assert_allclose(means["fear"].get_xydata(), [[2.5, 4]])
    crosses = {line.get_label(): line for line in best.lines if line.get_marker() == "X"}
    np.testing.assert_allclose(crosses["joy"].get_xydata(), [[4.5, 3.5]])
    np.testing.assert_allclose(crosses["fear"].get_xydata(), [[2, 4]])
    below = {line.get_label(): line for line in best_below.lines if line.get_marker() == "X"}
    np.testing.assert_allclose(below["joy"].get_xydata(), [[14 / 3, 10 / 3]])
    for axes in figure.axes:
        assert {t.get_text() for t in axes.texts} == {"joy", "fear"}
    (legend,) = figure.legends
    explained = ["mean of predictions", "one standard deviation", "mean of ratings"]
    assert [text.get_text() for text in legend.get_texts()] == explained


def cloud(axes, name):
    (ellipse,) = artists(axes, Ellipse, name)
    return ellipse


def test_the_ellipse_is_one_standard_deviation(tmp_path, drawn):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 2)) @ [[2.0, 0.5], [0.0, 0.3]] + [5, 1]
    rating_clouds(
        {"": points}, np.full_like(points, np.nan), np.zeros(400, int), ["joy"], ["x", "y"],
        tmp_path / "v.png", "",
    )  # fmt: skip
    (axes,) = drawn[0].axes
    ellipse = cloud(axes, "joy")
    border = ellipse.get_patch_transform().transform(ellipse.get_path().vertices)
    offsets = border - points.mean(axis=0)
    distances = np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(np.cov(points.T)), offsets)
    curve = ellipse.get_path().codes != 79  # Bézier curves lie on the circle at their ends only
    ends = np.flatnonzero(curve)[::3]
    np.testing.assert_allclose(distances[ends], 1, rtol=1e-3)
    # Nothing is rated, so nothing is said of ratings.
    assert not [line for line in axes.lines if line.get_marker() == "X"]
    assert "mean of ratings" not in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_everything_lies_within_the_axes(rated, drawn):
    figure = drawn_as(drawn, "vad", run_figures(rated))
    for axes in figure.axes:
        (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            ((x, y),) = line.get_xydata()
            assert x0 < x < x1
            assert y0 < y < y1
        for name in ("joy", "fear"):
            bounds = cloud(axes, name).get_window_extent()
            assert axes.bbox.x0 <= bounds.x0 <= bounds.x1 <= axes.bbox.x1
            assert axes.bbox.y0 <= bounds.y0 <= bounds.y1 <= axes.bbox.y1


def test_names_at_the_border_stay_within_the_axes(tmp_path, drawn):
    points = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    names = [f"a rather long name {i}" for i in range(4)]
    rating_clouds({"": points}, points, np.arange(4), names, ["x", "y"], tmp_path / "v.png", "")
    drawn[0].draw_without_rendering()
    (axes,) = drawn[0].axes
    for name in axes.texts:
        corners = Text.get_window_extent(name).corners()
        assert all(axes.bbox.contains(*corner) for corner in corners)


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
def test_names_neither_overlap_nor_leave_the_axes(spread, tmp_path, drawn):
    names = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
    rng = np.random.default_rng(1)
    emotions = np.repeat(np.arange(7), 20)
    ratings = rng.uniform(1.5, 4.5, (7, 3))[emotions] + 0.3 * rng.normal(size=(140, 3))
    stages = {"early": 3 + spread * (ratings - 3), "best": ratings}
    rating_clouds(stages, ratings, emotions, names, VAD, tmp_path / "v.png", "")
    drawn[0].draw_without_rendering()  # saving has left positions in the resolution of the SVG
    colours = set()
    for axes in drawn[0].axes:
        written = [a for a in axes.texts if isinstance(a, Annotation)]
        assert sorted(name.get_text() for name in written) == sorted(names)
        assert not overlaps(written)
        means = {line.get_label(): line for line in axes.lines if line.get_marker() == "o"}
        marks = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines]
        for i, name in enumerate(written):
            np.testing.assert_array_equal(name.xy, means[name.get_text()].get_xydata()[0])
            box = Text.get_window_extent(name)
            assert all(axes.bbox.contains(*corner) for corner in box.corners())
            assert not any(box.contains(*mark) for mark in marks)
            # No line runs across a name that was there before, unless a ring of names around
            # one common mean leaves no way out.
            mean, centre = axes.transData.transform(name.xy), (box.p0 + box.p1) / 2
            line = [mean + share * (centre - mean) for share in np.linspace(0, 1, 200)]
            others = [Text.get_window_extent(other) for other in written[:i]]
            crossed = any(other.contains(*point) for other in others for point in line)
            assert not (spread and crossed)
        colours |= {(line.get_label(), line.get_color()) for line in axes.lines}
    assert len({colour for _, colour in colours}) == len(colours) == 7


def test_many_emotions_and_rare_ones(tmp_path, drawn):
    """Same colours differ in their lines; what is said once has a mean, and no spread."""
    names = [f"emotion {i}" for i in range(9)]
    emotions = np.array([0, 0, 6, 6, 8])
    points = np.random.default_rng(0).normal(size=(5, 2))
    rating_clouds({"": points}, points, emotions, names, ["x", "y"], tmp_path / "v.png", "")
    (axes,) = drawn[0].axes
    first, second = cloud(axes, names[0]), cloud(axes, names[6])
    assert first.get_edgecolor() == second.get_edgecolor()
    assert first.get_linestyle() != second.get_linestyle()
    assert not artists(axes, Ellipse, names[8])
    assert {t.get_text() for t in axes.texts} == {names[0], names[6], names[8]}


def test_without_early_predictions(rated, drawn):
    (rated / "seeds" / "1" / "early_validation.jsonl").unlink()
    files = run_figures(rated)
    assert "early_and_best.png" not in [file.name for file in files]
    figure = drawn_as(drawn, "vad", files)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["chosen checkpoint (epoch 9)", ""]


def test_a_plane_of_two_dimensions(rated, drawn):
    learn(rated, ["dominance", "arousal"])
    for kind in ("early", "predictions"):
        path = rated / "seeds" / "1" / f"{kind}_validation.jsonl"
        save_predictions(path, dimensions=("dominance", "arousal"))
    figure = drawn_as(drawn, "vad", run_figures(rated))
    early, best = figure.axes
    assert best.get_xlabel() == "arousal (scale 1 to 5)"
    assert early.get_ylabel() == "dominance (scale 1 to 5)"
    (points,) = artists(best, PathCollection, "fear")
    np.testing.assert_allclose(points.get_offsets(), [[3.5, 2.5], [4.5, 1.5]])


@pytest.mark.parametrize("dimensions", [("arousal",), ()])
def test_no_plane(dimensions, rated, capsys):
    learn(rated, list(dimensions))
    for kind in ("early", "predictions"):
        path = rated / "seeds" / "1" / f"{kind}_validation.jsonl"
        save_predictions(path, dimensions=dimensions)
    names = [file.name for file in run_figures(rated)]
    assert "early_and_best.png" in names
    assert "vad.png" not in names
    said = capsys.readouterr().out
    assert ("the run learned arousal alone" in said) == bool(dimensions)


def test_a_corpus_without_ratings(rated):
    """FMERL then learns none, whatever its config says."""
    for kind in ("early", "predictions"):
        save_predictions(rated / "seeds" / "1" / f"{kind}_validation.jsonl", dimensions=())
    names = [file.name for file in run_figures(rated)]
    assert "early_and_best.png" in names
    assert "vad.png" not in names


def test_an_unlabelled_split(rated):
    said = [[(None, None, "joy", [3, 3, 3])]]
    for kind in ("early", "predictions"):
        save_predictions(rated / "seeds" / "1" / f"{kind}_validation.jsonl", said)
    assert [file.name for file in run_figures(rated)][-1] == "labels.svg"


def cut_off(text):
    return text[:-20]


def unknown_emotion(text):
    return text.replace('"fear"', '"bliss"')


def unrated(text):
    first, second = text.splitlines()
    return first + "\n" + second.replace('"arousal"', '"rousal"')


def unrated_utterance(text):
    record, second = text.splitlines()
    record = json.loads(record)
    del record["utterances"][0]["vad"]
    return json.dumps(record) + "\n" + second


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"_validation\.jsonl:2: not a JSON object"),
        (lambda text: text + "[]", r"_validation\.jsonl:3: damaged"),
        (unknown_emotion, r"_validation\.jsonl:2: damaged .*'bliss'"),
        (unrated, r"_validation\.jsonl:2: damaged .*of the first utterance it is of .*arousal"),
        (unrated_utterance, r"_validation\.jsonl:1: damaged .*of nothing"),
        (lambda text: text.splitlines()[0], "not of the same utterances"),
        (lambda text: "", "not of the same utterances"),
    ],
)
@pytest.mark.parametrize("kind", ["early", "predictions"])
def test_predictions_that_are_damaged(damage, message, kind, rated):
    path = rated / "seeds" / "1" / f"{kind}_validation.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        run_figures(rated)
    assert str(path) in str(caught.value)
    assert not (rated / "figures").exists()


def test_early_predictions_alone(rated):
    (rated / "seeds" / "1" / "predictions_validation.jsonl").unlink()
    with pytest.raises(UserError, match=f"--workdir {rated} --mode evaluate --split validation"):
        run_figures(rated)


def test_ratings_that_do_not_fit(tmp_path):
    points = np.zeros((2, 2))
    for stage, ratings in ((points[:1], points), (points, points[:, :1])):
        with pytest.raises(ValueError, match=r"\(2, 2\)"):
            rating_clouds(
                {"": stage}, ratings, np.zeros(2, int), NAMES, ["x", "y"], tmp_path / "v.png", ""
            )
    with pytest.raises(ValueError, match="two dimensions"):
        rating_clouds(
            {"": points[:, :1]}, points[:, :1], np.zeros(2, int), NAMES, ["x"], tmp_path / "v", ""
        )
