"""A training step in bfloat16: what is computed in it, and what stays as it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.config import base_config
from erc_jax.errors import UserError
from erc_jax.experiment import prepare
from erc_jax.steps import lowered, make_optimizers
from erc_jax.systems import REFERENCE, Objective
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


@pytest.mark.parametrize("system", ["fine_tuning", "response"])
def test_systems_with_a_field_of_their_own_refuse_the_general_one(place, system):
    config = tiny_config(place, system=system, model__dtype="bfloat16")
    with pytest.raises(UserError, match=f"model.dtype is bfloat16; .*: {system}.dtype"):
        prepare(config)


def test_an_objective_after_others_decays_to_0_where_the_run_ends():
    config = base_config()
    config.train.update({"epochs": 5, "steps": 150, "decay": "linear", "optimizer": "sgd"})
    objectives = [Objective(None, epochs=(0, 1)), Objective(None, epochs=(1, None))]
    _, optimizer = make_optimizers(config, objectives, steps_per_epoch=100)
    params = {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    updates = []
    for _ in range(51):
        update, state = optimizer.update({"w": jnp.ones(1)}, state, params)
        updates.append(float(update["w"][0]))
    assert all(updates[:50])
    assert updates[50] == 0
    config.train.steps = 80  # the first epoch's alone
    with pytest.raises(UserError, match="there are 0 steps in all"):
        make_optimizers(config, objectives, steps_per_epoch=100)


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
