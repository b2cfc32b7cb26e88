import json

import jax
import numpy as np
import pytest

from erc_jax.benchmarks.__main__ import main
from erc_jax.benchmarks.mtl_erc_es import batches, flops_per_utterance, sample
from erc_jax.errors import UserError

WIDTH = 8


def test_sample_has_the_lengths_and_speakers_of_meld():
    examples = sample(WIDTH)
    lengths = np.diff(examples.starts)
    assert len(lengths) == 320
    assert lengths.max() == 24
    assert lengths.mean() == pytest.approx(9.62, abs=0.05)
    assert len(np.unique(examples.speaker_sequence)) / 320 == pytest.approx(2.71, abs=0.05)


def test_flops_are_those_of_the_products():
    # Two levels and two directions of: D x 4H and H x 4H, twice, with D = 8 and H = 4; the heads.
    first, rest, heads = 4 * 8 * 16, 4 * (4 * 16 + 12 * 16), 16 * (7 + 3)
    assert flops_per_utterance("context", WIDTH, training=False) == 2 * (first + rest + heads)
    assert flops_per_utterance("context", WIDTH, training=True) == 4 * first + 6 * (rest + heads)


def our_model(model):
    """Our parameters, and our logits of a batch."""
    from erc_jax.benchmarks.mtl_erc_es_jax import make_system

    system = make_system(model)
    examples = sample(WIDTH)
    dialogues = batches(examples, 1)[0]
    batch = examples.batch(dialogues)
    params = system.init(jax.random.key(0), batch)
    n = len(examples.rows(dialogues))
    probabilities = jax.jit(system.predict)(params, batch)
    return params, {task: np.asarray(p[0, :n]) for task, p in probabilities.items()}


def copy_weights(torch, params, module):
    """Our parameters into the peer's module; every parameter of both is used once."""
    flat = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    for level in ("global", "speaker"):
        for layer in (1, 2):
            lstm = module.lstms[f"{level}_{layer}"]
            for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
                prefix = f"lstm_{level}_{layer}/{direction}"
                getattr(lstm, f"weight_ih_{suffix}").data = _t(
                    torch, flat, f"{prefix}_input_kernel"
                )
                getattr(lstm, f"weight_hh_{suffix}").data = _t(
                    torch, flat, f"{prefix}_hidden_kernel"
                )
                getattr(lstm, f"bias_ih_{suffix}").data = _t(torch, flat, f"{prefix}_bias")
                getattr(lstm, f"bias_hh_{suffix}").data.zero_()
    for name, unit in module.units.items():
        ours = f"shift_{name}"
        unit.query.weight.data = _t(torch, flat, f"{ours}/query/kernel")
        unit.key_value.weight.data = torch.cat(
            [_t(torch, flat, f"{ours}/{part}/kernel") for part in ("key", "value")]
        )
        for part in ("ffn_in", "ffn_out"):
            getattr(unit, part).weight.data = _t(torch, flat, f"{ours}/{part}/kernel")
            getattr(unit, part).bias.data = _t(torch, flat, f"{ours}/{part}/bias")
        for part in ("norm_attention", "norm_ffn"):
            getattr(unit, part).weight.data = _t(torch, flat, f"{ours}/{part}/scale")
            getattr(unit, part).bias.data = _t(torch, flat, f"{ours}/{part}/bias")
    for task, head in module.heads.items():
        head.weight.data = _t(torch, flat, f"head_{task}/kernel")
        head.bias.data = _t(torch, flat, f"head_{task}/bias")
    assert not flat, "parameters that the peer does not have"


def _t(torch, flat, name):
    return torch.tensor(flat.pop(name).T)


@pytest.mark.parity
@pytest.mark.parametrize("model", ["context", "whole"])
def test_the_peer_is_the_same_model(model):
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks import mtl_erc_es_torch

    params, ours = our_model(model)
    examples = sample(WIDTH)
    module = mtl_erc_es_torch.Model(model, WIDTH)
    copy_weights(torch, params, module)
    module.eval()
    with torch.inference_mode():
        logits = module(mtl_erc_es_torch.arrange(examples, batches(examples, 1)[0]))
    assert set(logits) == set(ours)
    for task, expected in logits.items():
        assert np.abs(ours[task] - expected.softmax(-1).numpy()).max() < 1e-5


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "whole"])
def test_the_benchmark_runs(model, tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "figures.json"
    arguments = f"--model {model} --width {WIDTH} --pairs 2 --batches 1 --threads 1 --json {path}"
    main(["mtl_erc_es", *arguments.split()])
    assert '"ratio"' in path.read_text()
    assert "utterances/s" in capsys.readouterr().out


@pytest.mark.slow
def test_ours_alone_in_bfloat16(tmp_path):
    path = tmp_path / "figures.json"
    arguments = f"--model context --width {WIDTH} --pairs 1 --batches 1 --dtype bfloat16"
    main(["mtl_erc_es", *arguments.split(), "--json", str(path)])
    record = json.loads(path.read_text())
    assert record["dtype"] == "bfloat16"
    assert record["counts"] is None
    assert all("torch" not in case for case in record["cases"].values())


def test_speakers_are_not_measured_in_bfloat16():
    with pytest.raises(UserError, match="float32 alone"):
        main(["mtl_erc_es", "--model", "speakers", "--dtype", "bfloat16"])


@pytest.mark.slow
def test_the_speakers_benchmark_runs(capsys):
    main(["mtl_erc_es", *f"--model speakers --width {WIDTH} --pairs 2 --batches 1".split()])
    assert "times the cost" in capsys.readouterr().out
