"""A trained model behind a JSON API, and a page to try it in a browser.

python -m erc_jax.serve --workdir runs/meld --respond runs/reply --port 8080
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erc_jax.allocator import keep_freed_memory
from erc_jax.data.cache import cache_dir
from erc_jax.errors import UserError
from erc_jax.progress import say


def about_run(workdir: Path, recognizer: Any) -> dict[str, Any]:
    """What /health and the page say of a model that labels."""
    from erc_jax.config import load_config
    from erc_jax.facts import commit_of_code
    from erc_jax.workdir import best_meta

    config, labels = load_config(workdir), best_meta(workdir)["labels"]
    return {
        "system": config.system,
        "corpus": config.data.name,
        "labels": list(labels["emotions"]),
        "polarity": labels["polarity"],
        "vad_scale": labels.get("vad_scale"),
        "encoder": Path(recognizer.encoder.name).name,  # where it lies is nobody's business
        # Modalities that come from feature files, which nobody sends to a server.
        "without": list(getattr(recognizer.encoder, "files", ())),
        "commit": commit_of_code(),
    }


def load(workdir: Path, respond: Path | None, encoder: str | None) -> tuple[Any, Any, dict]:
    """The recognizer, the responder or None, and what is to be said of them.

    Each has answered once: what cannot is told before anybody is invited.
    """
    from erc_jax.data.shapes import LEAST_SLOTS
    from erc_jax.encoders.multimodal import MultimodalEncoder
    from erc_jax.predict import Recognizer
    from erc_jax.respond import Responder
    from erc_jax.serve.warm_up import calls

    say(f"Loading {workdir} …")
    recognizer = Recognizer.from_pretrained(workdir, encoder=encoder)
    reads = recognizer.encoder
    if isinstance(reads, MultimodalEncoder) and reads.text is None:
        raise UserError(
            f"{workdir}: this run reads {', '.join(reads.files)} from feature files and no texts, "
            "which are all that is sent to a server; label with python -m erc_jax.main --mode "
            f"predict --features {min(reads.files)}=FILE, or serve a run that reads texts"
        )
    about = about_run(workdir, recognizer)
    responder = None
    if respond is not None:
        say(f"Loading {respond} …")
        responder = Responder.from_pretrained(respond)
        if not responder.system.replies:
            raise UserError(f"{respond}: this run only classifies, it has not learned to reply")
    about["responder"] = {"classes": dict(responder.system.classes)} if responder else None
    first = next(calls(LEAST_SLOTS))
    recognizer.predict(first)
    if responder is not None:
        responder.respond(first)
    return recognizer, responder, about


def main(argv: Sequence[str]) -> None:
    """Runs the command line; a user's mistake becomes one message and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m erc_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a run that names emotions")
    parser.add_argument("--respond", type=Path, help="a run of system response, for replies")
    parser.add_argument("--encoder", help="where the run's encoder is, if it has moved")
    parser.add_argument("--port", type=int, default=8080, help="8080; 0 finds a free one")
    parser.add_argument("--host", help="an address of this machine, for other machines to use it")
    args = parser.parse_args(argv)
    # Compiled programs are kept, as those of the other commands; JAX reads this when imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s: %(message)s")
    logging.getLogger("erc_jax.serve").setLevel(logging.INFO)
    try:
        try:
            from erc_jax.serve.app import LOOPBACK, Limits, make_app
            from erc_jax.serve.http import bind, names_of, serve
            from erc_jax.serve.warm_up import calls
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "pydantic"):
                raise
            raise UserError(
                f"serving needs the package {error.name}: pip install 'erc-jax[serve]'"
            ) from error
        if not 0 <= args.port < 65536:
            raise UserError(f"--port {args.port}: expected a number from 0 to 65535")
        host = args.host or LOOPBACK[0]
        bound = bind(host, args.port)  # before the models: a taken port is told at once
        names = names_of(bound, host)
        limits = Limits()
        app = make_app(
            *load(args.workdir, args.respond, args.encoder),
            limits=limits,
            hosts=names,
            warm_up=calls(limits.warmed_up),
        )
        if names is None:
            say(f"Anyone who can reach {host} on this port can use it: there is no password.")
        serve(app, bound)
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")


if __name__ == "__main__":
    main(sys.argv[1:])
    # A model may still be at work, or be compiled: XLA does not survive the end of Python.
    sys.stdout.flush()
    os._exit(0)
