"""A training step in bfloat16: what is computed in it, and what stays as it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.experiment import prepare
from erc_jax.steps import lowered
from erc_jax.systems import REFERENCE
from erc_jax.train import Trainer, train
from tests.systems import test_sent_emo_context
from tests.systems.test_fmerl_runs import FIELDS as FMERL
from tests.tiny import tiny_config


def test_what_is_lowered():
    params = {"dense": {"kernel": jnp.ones((2, 2))}, REFERENCE: {"means": jnp.ones(2)}}
    batch = {"features": jnp.ones(2), "ids": jnp.arange(2), "labels": {"vad": jnp.ones(2)}}
    low_params, low_batch = lowered(params, batch, "bfloat16")
    assert low_params["dense"]["kernel"].dtype == low_batch["features"].dtype == jnp.bfloat16
    assert low_params[REFERENCE]["means"].dtype == low_batch["labels"]["vad"].dtype == jnp.float32
    assert low_batch["ids"].dtype == jnp.int32
    assert lowered(params, batch, "float32") == (params, batch)


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["mtl_erc_es", "sent_emo_context", "fmerl"])
def test_bfloat16_learns_about_the_same_and_keeps_float32_parameters(place, tmp_path, system):
    fields = {
        "mtl_erc_es": {},
        "sent_emo_context": test_sent_emo_context.FIELDS,
        "fmerl": FMERL
        | {"fmerl__description_encoder": str(place / "encoder"), "tasks__shift": False},
    }[system]
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(
            place, **fields | {"model__dtype": dtype, "log_every": 1, "train__epochs": 2}
        )
        train(config, tmp_path / dtype)
        found[dtype] = losses_of(tmp_path / dtype)
    np.testing.assert_allclose(found["bfloat16"], found["float32"], rtol=0.05)
    assert found["bfloat16"] != found["float32"]
    # Parameters, moments and losses are of full precision.
    trainer = Trainer(config, prepare(config))
    state = jax.eval_shape(trainer.new_state, trainer.fresh_params(jax.random.key(0)))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert kinds <= {np.dtype("float32"), np.dtype("int32"), np.dtype("uint32")}
