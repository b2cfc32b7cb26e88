"""The model card of a run: what a model is, what it scores, and what it is not for.

It is laid out as on the Hugging Face hub, with YAML in front, and says nothing that the files of
the run do not: what is not known is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from erc_jax.data.corpora import corpus_card
from erc_jax.data.dialogue import write_whole
from erc_jax.encoders.hub import PUBLISHED
from erc_jax.finished import FinishedRun, damaged, read_run, value_at
from erc_jax.pages import environment
from erc_jax.progress import duration
from erc_jax.report_scores import class_parts, score_name, score_rows
from erc_jax.system_names import FINE_TUNING, FMERL, RESPONSE, SENT_EMO_CONTEXT

FILE = "model_card.md"
# What a system is, and the paper that it is from; of plugins' systems nothing is known.
SYSTEMS: Mapping[str, tuple[str, str]] = {
    "mtl_erc_es": (
        "Mtl-ERC-ES: LSTMs over the dialogue and over each speaker's own utterances; emotion, "
        "sentiment and emotion shift are learned together",
        'Wang and Mine, "Multi-Task Learning for Emotion Recognition in Conversation with Emotion '
        'Shift" (PACLIC 2023)',
    ),
    FINE_TUNING: ("a text encoder that was fine-tuned on the emotions of utterances", ""),
    SENT_EMO_CONTEXT: (
        "SentEmoContext: a Transformer over frozen sentence embeddings, trained on triplets",
        'Gendron and Guibon, "SEC: Context-Aware Metric Learning for Efficient Emotion '
        'Recognition in Conversation"',
    ),
    FMERL: (
        "FMERL: modalities are fused by a Transformer and matched with described emotions",
        '"Emotion Recognition in Conversation Based on the Fine-grained Multidimensional Emotion '
        'Representation Learning"',
    ),
    RESPONSE: (
        "an encoder-decoder (BART) that replies to an utterance and reads its emotions",
        'Ide and Kawahara, "Multi-Task Learning of Generation and Classification for '
        'Emotion-Aware Dialogue Response Generation" (NAACL SRW 2021)',
    ),
}
# The scores that the hub is told of, and its name of their kind.
KINDS = {
    "weighted_f1": "f1",
    "macro_f1": "f1",
    "micro_f1_no_neutral": "f1",
    "macro_f1_no_neutral": "f1",
    "accuracy": "accuracy",
    "mcc": "matthews_correlation",
}


def write_model_card(workdir: Path) -> None:
    """Writes WORKDIR/model_card.md.

    Raises:
      UserError: the folder is no finished run, or one of its files is damaged.
    """
    write_whole(workdir / FILE, model_card(workdir))


def has_ended(workdir: Path) -> bool:
    """Whether training has ended there, of which the card is the last file."""
    return (workdir / FILE).is_file()


def model_card(workdir: Path, *, exported: bool = False) -> str:
    """The card's text.

    Args:
      workdir: of a finished run; of several seeds, their common one.
      exported: for the folder that ``--mode export`` writes.

    Raises:
      UserError: as ``write_model_card``.
    """
    run = read_run(workdir)
    templates = environment(autoescape=False)  # Markdown, where ``cell`` escapes
    templates.filters["cell"] = _cell
    with damaged(str(workdir / "metrics.json")):
        corpora = [corpus_card(name) for name in _corpora(run)]
        system, paper = SYSTEMS.get(run.facts["system"], (f"the system {run.facts['system']}", ""))
        return templates.get_template("model_card.md.j2").render(
            front=_front_matter(run, corpora),
            title=_title(run),
            folder=workdir.resolve().name,
            exported=exported,
            replies=run.replies,
            synthetic=bool(run.facts["corpus"].get("synthetic")),
            system=system,
            paper=paper,
            encoder=_encoder(run),
            reads=_reads(run),
            files=_files(run),
            emotions=run.emotions,
            corpora=corpora,
            splits=list(run.blocks),
            protocol=list(_protocol(run)),
            scores=score_rows(run),
            classes=[part for split in run.blocks for part in class_parts(run, split)],
            cost=list(_cost(run)),
            n_seeds=len(run.folders),
        )


def _title(run: FinishedRun) -> str:
    return f"{run.facts['system']} on {run.facts['corpus']['name']}"


def _corpora(run: FinishedRun) -> list[str]:
    """Names of the corpora; the tasks of a run that replies have one each."""
    corpus = run.facts["corpus"]
    tasks = corpus.get("tasks", {})
    return list(dict.fromkeys(of["corpus"] for of in tasks.values())) or [corpus["name"]]


def _front_matter(run: FinishedRun, corpora: Sequence[Mapping[str, Any]]) -> str:
    """The YAML that the hub reads, with the scores on test."""
    name, block = run.facts["corpus"]["name"], run.blocks.get("test", {})
    averaged = f", mean of {len(run.folders)} seeds" if len(run.folders) > 1 else ""
    languages = list(dict.fromkeys(corpus["language"] for corpus in corpora))
    data = ModelCardData(
        language=languages if all(languages) else None,
        library_name="erc-jax",
        pipeline_tag=None if run.replies else "text-classification",
        tags=["emotion-recognition-in-conversation", run.facts["system"], "jax"],
        base_model=_published_as(_started_from(run)),
        model_name=_title(run),
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Emotion recognition in conversation",
                dataset_type=name,
                dataset_name=name,
                dataset_split="test",
                metric_type=kind,
                metric_name=score_name(score) + averaged,
                metric_value=round(block[score], 4),
            )
            for score, kind in KINDS.items()
            if score in block
        ]
        or None,
    )
    return data.to_yaml()


def _started_from(run: FinishedRun) -> Mapping[str, str] | None:
    """Name and SHA-256 of the model that reads the texts; None where there was none before."""
    if "modalities" in run.facts:  # the encoder's SHA-256 is that of feature files, too
        text = run.facts["modalities"].get("text", {})
        if "sha256" not in text:
            return None
        return {"name": text["extractor"], "sha256": text["sha256"]}
    if run.replies and run.config.get("encoder") == "":  # from scratch
        return None
    return run.facts.get("encoder")


def _published_as(encoder: Mapping[str, str] | None) -> str | None:
    """The hub's name of an encoder; of others a name does not tell whether it is a folder's."""
    sha256 = encoder and encoder["sha256"]
    return next((name for name, known in PUBLISHED.items() if known.sha256 == sha256), None)


def _encoder(run: FinishedRun) -> str:
    """Name and sum of what reads the texts; of a folder, its own name alone."""
    encoder = _started_from(run)
    return f"{Path(encoder['name']).name} (SHA-256 {encoder['sha256'][:16]}…)" if encoder else ""


def _reads(run: FinishedRun) -> str:
    """What decides a label: "conversation", "utterance" (alone), or "" where it is unknown."""
    system = run.facts["system"]
    if system not in SYSTEMS or run.replies:
        return ""
    if system == FINE_TUNING and value_at(run.config, "fine_tuning.context") == "none":
        return "utterance"
    if system == SENT_EMO_CONTEXT:
        how = run.config["sent_emo_context"]
        if how["network"] != "transformer":
            return "utterance"
        if how["context"] == "none":
            # Another encoder may have learned to read an utterance in its dialogue.
            return "utterance" if _published_as(_started_from(run)) else ""
    return "conversation"


def _files(run: FinishedRun) -> list[str]:
    """The modalities without which nothing is predicted: of a run that reads no texts."""
    modalities = run.facts.get("modalities", {})
    return [] if _started_from(run) else list(modalities)


def _protocol(run: FinishedRun) -> Iterator[tuple[str, str]]:
    facts, corpus = run.facts, run.facts["corpus"]
    for split, of in corpus.get("splits", {}).items():
        yield split, f"{of['dialogues']:,} dialogues, {of['utterances']:,} utterances"
    for task, of in corpus.get("tasks", {}).items():
        sizes = ", ".join(f"{split} {size:,}" for split, size in of["splits"].items())
        yield f"task {task}", f"{of['corpus']}: {sizes}"
    split, metric = run.selected_on
    if split:
        yield "checkpoint chosen by", f"{score_name(metric)} on {split}"
    yield "seeds", ", ".join(str(seed) for seed in facts.get("seeds", []))
    if len(run.folders) > 1:
        yield "the model in this folder", f"seed {run.predicting}"
    has_shift = any("shift_global" in block for block in run.blocks.values())
    if has_shift and (first_shift := corpus.get("first_shift")):
        yield "shift of first utterances", first_shift.replace("_", " ")
    if "sha256" in corpus:
        yield "corpus, SHA-256", corpus["sha256"]
    versions = {name: v for name, v in facts.get("versions", {}).items() if v}
    if versions:
        yield "versions", ", ".join(f"{name} {v}" for name, v in versions.items())
    if commit := facts.get("commit"):
        yield "commit", commit


def _cost(run: FinishedRun) -> Iterator[tuple[str, str]]:
    facts = run.facts
    if parameters := facts.get("parameters"):
        yield "parameters trained", f"{parameters['trained']:,}"
        if parameters["frozen"]:
            yield "parameters of the frozen encoder", f"{parameters['frozen']:,}"
    if seconds := facts.get("seconds"):
        yield "time of training, all seeds", duration(seconds)
    if devices := facts.get("devices"):
        yield "devices", ", ".join(devices)


def _cell(text: str) -> str:
    """A text as a table's cell, or within a line, has it: nothing in it is taken for Markdown."""
    shown = " ".join(str(text).split())
    for mark in "\\`*_[]<>|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
