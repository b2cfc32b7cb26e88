"""The fields that every experiment has: what they mean, and their values where nothing is said."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from erc_jax.errors import UserError


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
    # Runs of fine_tuning and response have fields of their own instead.
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
    # How replies are searched for; the values are those of erc_jax.decoding.Decoding.
    response.beams = 5  # hypotheses that are kept while a reply is written; 1 is greedy
    response.length_penalty = 1.0  # a hypothesis' score is its log-likelihood / length^this
    response.no_repeat_ngram = 3  # so many words do not come twice in a reply; 0 allows it
    response.min_length = 0  # tokens before a reply may end
    response.dtype = "float32"  # of the computation; "bfloat16" is faster on accelerators
    response.remat = False  # computes layers again in the backward pass instead of keeping them
    response.scratch = scratch = ConfigDict()  # a model without published weights (encoder = "")
    scratch.vocabulary = 4000  # tokens; the tokenizer is made from the training dialogues
    scratch.width = 192  # d
    scratch.layers = 2  # of the encoder, and as many of the decoder
    scratch.heads = 4  # of each attention
    scratch.ffn = 768  # width of the feed-forward networks

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
    # With adam decoupled, as in AdamW; with sgd a part of the gradient, and so of the momentum.
    train.weight_decay = 0.0
    train.clip_norm = 0.0  # largest global norm of the gradient; 0 does not clip
    train.patience = 0  # epochs without a better validation score before stopping; 0 never stops
    train.select_metric = "weighted_f1"  # the score that chooses the checkpoint
    # The split that chooses it. "test" exists only to redo tables of papers that chose so.
    train.select_on = "validation"
    return config.lock()  # a mistyped field in a config file is an error, not a new field


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("train.epochs", 100) for every field."""
    for key in config:
        value = config.get(key)
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(config: ConfigDict, field: str) -> Any:
    """The value of "train.epochs".

    Raises:
      UserError: there is no such field; the nearest is named.
    """
    values = dict(flatten(config))
    if field not in values:
        meant = did_you_mean(field, values, "--config.")
        raise UserError(f"--config.{field}: there is no such field; {meant}")
    return values[field]


def config_of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of one of the runs that ``seeds`` asks for."""
    alone = config.copy_and_resolve_references()
    alone.seed, alone.seeds = seed, 1
    return alone


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """What to say of a name that is not known: the nearest one that is, or all of them."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"known are {', '.join(known)}"
