"""Mtl-ERC-ES on conversations of one's own.

    python -m erc_jax.main --config configs/own.py --config.data.source=DIR --workdir runs/own

DIR holds train.jsonl, validation.jsonl and test.jsonl, one conversation a line. The emotions are
those of the training file. Sentiment and shift need to know each emotion's polarity:

    --config.data.polarity.negative="('angry','sad')" --config.data.polarity.neutral="('calm',)"
    --config.data.polarity.positive="('happy',)" --config.data.neutral=calm

With few conversations, start from a model trained on a larger corpus:

    --config.init_from=runs/meld

With many, fine-tune the sentence encoder first:

    python -m erc_jax.main --config configs/own.py:encoder --config.data.source=DIR --workdir runs/e
    python -m erc_jax.main --config configs/own.py --config.encoder=runs/e ...
"""

from ml_collections import ConfigDict

from erc_jax.config import base_config, check_variant, fine_tune, fmerl, response, sent_emo_context


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    The variant ``encoder`` fine-tunes the encoder on your emotions; ``sent_emo_context`` is another
    system, which can name new emotions from a few examples, ``fmerl`` one that can from phrases.
    """
    check_variant(variant, ("encoder", "sent_emo_context", "fmerl", "response"))
    config = base_config()
    config.data.name = "own"
    if variant.startswith("response"):
        config.response.tasks = "R+E"
        return response(config, variant)
    if variant == "fmerl":
        return fmerl(config)
    if variant == "encoder":
        return fine_tune(config)
    if variant == "sent_emo_context":
        return sent_emo_context(config)
    config.train.epochs = 50
    config.train.patience = 8
    config.model.dropout = 0.4
    return config
