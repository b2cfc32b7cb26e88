"""FMERL against its PyTorch transcription (``erc_jax.benchmarks.fmerl_torch``), weights shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from erc_jax.config import base_config
from erc_jax.data.batching import Examples, make_examples
from erc_jax.data.dialogue import MODALITIES, VAD, Dialogue, Utterance
from erc_jax.data.labels import LabelSpace
from erc_jax.data.modalities import Modalities
from erc_jax.layers.fusion import Fusion
from erc_jax.systems.fmerl import Fmerl
from tests.tiny import drawn_parameters

pytestmark = pytest.mark.parity

# Ragged, with one to four speakers.
SPEAKERS_OF = ("A", "ABCABBDA", "BA", "AABBABABABABAAB", "ABC")
ORDER = np.array([3, 0, 4, 1, 2])  # of the dialogues in the batch
EMBEDDINGS = 3  # of speakers: the fourth shares the third's
WIDTHS = {"text": 20, "audio": 12, "visual": 7}
D, HEADS, FFN = 32, 4, 24
C = 6


def split(widths: Mapping[str, int]) -> Examples:
    """Dialogues that lack no modality, some without emotion or rating."""
    rng = np.random.default_rng(0)
    dialogues = [
        Dialogue(str(number), tuple(Utterance(speaker, "") for speaker in word))
        for number, word in enumerate(SPEAKERS_OF)
    ]
    n = sum(map(len, SPEAKERS_OF))
    # The last class is nowhere, and neither are labels of every fifth utterance.
    emotions = np.where(np.arange(n) % 5 == 0, -1, rng.integers(C - 1, size=n)).astype(np.int32)
    vad = rng.random((n, 3), np.float32)
    vad[1::4] = -1
    return make_examples(
        dialogues,
        Modalities(
            {name: rng.standard_normal((n, width), np.float32) for name, width in widths.items()},
            {name: np.ones(n, bool) for name in widths},
        ),
        {"emotion": emotions, "vad": vad},
    )


def fusion_state(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our fusion's parameters, or their gradients, by the transcription's names."""
    parts = {
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "output": "attention.output",
        "norm_ffn": "feed_forward.layer_norm",
        "ffn_in": "feed_forward.w_1",
        "ffn_out": "feed_forward.w_2",
    }
    groups = {"input": "inputs", "gate": "gates", "reduce": "reduce"}
    state = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        *names, kind = (key.key for key in path)
        group, _, member = names[0].partition("_")
        if len(names) == 2:
            name = f"encoders.{names[0]}.{parts[names[1]]}"
        else:
            name = f"{groups[group]}.{member}" if member else group
        value = np.asarray(leaf).T if kind == "kernel" else np.asarray(leaf)
        if group == "input":
            value = value[..., None]  # a convolution's
        state[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = value
    return state


def model_state(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same of the whole model."""
    state = {f"fusion.{name}": value for name, value in fusion_state(tree["fusion"]).items()}
    if "projection" in tree:
        state["projection.weight"] = np.asarray(tree["projection"]["kernel"]).T
    for dimension in VAD:
        for number, layer in enumerate(("hidden_1", "hidden_2", "output")):
            leaf = tree[dimension][layer]
            name = f"vad.{dimension}.{2 * number}"
            state[f"{name}.weight"] = np.asarray(leaf["kernel"]).T
            state[f"{name}.bias"] = np.asarray(leaf["bias"])
    return state


def theirs_of(fusion: Fusion, widths: Mapping[str, int]) -> Any:
    from erc_jax.benchmarks import fmerl_torch

    return fmerl_torch.Fusion(
        widths,
        fusion.width,
        fusion.heads,
        fusion.ffn,
        fusion.speakers,
        fusion.dropout,
        fusion.learned_gates,
    )


def load(module: Any, state: Mapping[str, np.ndarray]) -> None:
    """All of ours into all of theirs: a name that only one side has is an error."""
    import torch

    module.load_state_dict({name: torch.tensor(value) for name, value in state.items()})


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("text",), {}),
        (("audio", "visual"), {}),
        (MODALITIES, {}),
        (MODALITIES, {"speakers": 0, "learned_gates": False}),
    ],
    ids=["text", "two", "three", "three-meld"],
)
def test_fused_vectors(names, options):
    pytest.importorskip("torch")
    compare_fused({name: WIDTHS[name] for name in names}, D, options)


@pytest.mark.slow
def test_fused_vectors_of_the_papers_size():
    pytest.importorskip("torch")
    widths = {"text": 1024, "audio": 1582, "visual": 342}
    compare_fused(widths, 1024, {"heads": 8, "ffn": 1024})


def compare_fused(widths, width, options):
    import torch

    from erc_jax.benchmarks.fmerl_torch import arrange

    examples = split(widths)
    block = jax.tree.map(lambda array: array[0], examples.batch(ORDER))
    fusion = Fusion(
        tuple(widths),
        width,
        dropout=0.0,
        **{"heads": HEADS, "ffn": FFN, "speakers": EMBEDDINGS, **options},
    )
    variables = drawn_parameters(fusion.init, block.features, block)
    ours = np.asarray(jax.jit(fusion.apply)(variables, block.features, block))

    theirs = theirs_of(fusion, widths)
    load(theirs, fusion_state(variables["params"]))
    batch = arrange(examples, ORDER, packed=False)
    with torch.inference_mode():
        expected = theirs(batch)[batch.seen].numpy()
    assert np.abs(ours[: examples.n_utterances] - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.1


class Described:
    """In place of the text encoder: vectors [C, E] of the emotions, of length 1."""

    def __init__(self, width: int):
        vectors = np.random.default_rng(3).standard_normal((C, width), np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def encode(self, phrases, normalize):
        assert len(phrases) == C
        assert normalize
        return self.vectors


@pytest.mark.parametrize(
    ("names", "described"),
    [
        pytest.param(("visual",), 10, id="visual"),
        pytest.param(("text", "audio"), D, id="two", marks=pytest.mark.slow),
        pytest.param(MODALITIES, 10, id="three", marks=pytest.mark.slow),
    ],
)
def test_outputs_losses_and_gradients(names, described):
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks import fmerl_torch

    widths = {name: WIDTHS[name] for name in names}
    examples = split(widths)
    batch = examples.batch(ORDER)
    encoder = Described(described)
    config = base_config()
    config.fmerl.modalities = names
    config.fmerl.width, config.fmerl.ffn, config.fmerl.heads = D, FFN, HEADS
    config.fmerl.speakers = EMBEDDINGS
    config.fmerl.centred = False
    config.model.dropout = 0.0
    config.model.normalize_input = False
    labels = LabelSpace(tuple("abcdef"), vad_scale=(1.0, 5.0))
    system = Fmerl(config, labels, encoder)
    params = drawn_parameters(system.init, batch)

    @jax.jit
    def run(params, batch):
        loss = jax.value_and_grad(system.loss, has_aux=True)
        return system.predict(params, batch), loss(params, batch, jax.random.key(0))

    predicted, ((total, parts), gradients) = run(params, batch)

    theirs = fmerl_torch.Model(
        theirs_of(system._model.fusion, widths), torch.tensor(encoder.vectors), hidden_layers=2
    )
    load(theirs, {**model_state(params), "descriptions": encoder.vectors})
    of_theirs = fmerl_torch.arrange(examples, ORDER, packed=False)
    ratings, similarities = theirs(of_theirs)
    n = examples.n_utterances
    for ours, expected in ((predicted["vad"], ratings), (predicted["similarity"], similarities)):
        difference = np.asarray(ours)[0, :n] - expected[of_theirs.seen].detach().numpy()
        assert np.abs(difference).max() < 1e-4

    their_parts = fmerl_torch.losses(ratings, similarities, of_theirs)
    their_total = fmerl_torch.total(their_parts)
    found = {
        "mse": sum(float(parts[dimension]) for dimension in VAD),
        "contrast": float(parts["contrast"]),
        "negatives": float(parts["negatives"]),
    }
    assert found == pytest.approx({k: v.item() for k, v in their_parts.items()}, rel=1e-4)
    assert float(total) == pytest.approx(their_total.item(), rel=1e-4)

    their_total.backward()
    of_ours = model_state(gradients)
    their_gradients = {name: np.asarray(p.grad) for name, p in theirs.named_parameters()}
    assert set(of_ours) == set(their_gradients)
    largest = max(np.abs(gradient).max() for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        # Biases of keys have no gradient but rounding errors: a softmax does not see them.
        allowed = 1e-4 * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(of_ours[name] - gradient).max() < allowed, name
