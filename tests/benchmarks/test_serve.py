import asyncio
import re
import sys

import pytest

from erc_jax.benchmarks import __main__ as benchmarks
from erc_jax.benchmarks import serve
from erc_jax.benchmarks.meld_talk import conversations
from erc_jax.errors import UserError

STAND_IN = [sys.executable, "-m", "tests.stand_in"]  # half a second an answer


def test_conversations_are_as_long_as_melds():
    talks = conversations()
    lengths = [len(talk["utterances"]) for talk in talks]
    assert sum(lengths) / len(lengths) == pytest.approx(9.6, abs=0.2)
    assert (min(lengths), max(lengths)) == (1, 24)
    assert len({talk["id"] for talk in talks}) == len(talks)
    assert conversations(["AB"])[0]["utterances"][1]["speaker"] == "B"
    assert talks == conversations()


def test_load_is_counted():
    with serve.serving(STAND_IN, threads=1) as url:
        serve._wait_until_ready(url)
        result = asyncio.run(serve.load(url, clients=3, seconds=1.5))
    assert result.errors == {}
    # Each has asked, and one again; three calls of half a second answer nine at most.
    assert 4 <= len(result.latencies) <= 12
    assert all(seconds > 0.4 for seconds in result.latencies)
    lengths = [len(talk["utterances"]) for talk in conversations()]
    assert result.utterances == sum(lengths[: len(result.latencies)])
    figures = result.figures()
    assert figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["requests_per_second"] == pytest.approx(
        len(result.latencies) / result.seconds, abs=0.01
    )


def test_errors_are_counted_by_what_they_are():
    with serve.serving(STAND_IN, threads=1) as url:
        serve._wait_until_ready(url)
        refused = asyncio.run(serve.load(f"{url}/nowhere", clients=2, seconds=0.2))
    gone = asyncio.run(serve.load(url, clients=1, seconds=0.05))
    assert set(refused.errors) == {"404"}
    assert refused.figures()["p50_ms"] is None
    assert gone.errors == {"ConnectError": 1}


def test_a_server_that_does_not_start():
    command = [sys.executable, "-c", "print('Loading …'); raise SystemExit(3)"]
    with pytest.raises(UserError, match="ended with 3: Loading"), serve.serving(command, 1):
        pass


def test_the_command_prints_a_table(monkeypatch, capsys, tmp_path):
    def serving(command, threads):
        assert command[1:5] == ["-m", "erc_jax.serve", "--workdir", "runs/x"]
        return start(STAND_IN, threads)

    start = serve.serving
    monkeypatch.setattr(serve, "serving", serving)
    arguments = ["--workdir", "runs/x", "--clients", "1", "2", "--seconds", "0.1"]
    benchmarks.main(["serve", *arguments, "--threads", "1", "--json", str(tmp_path / "f.json")])
    out = capsys.readouterr().out
    assert re.search(
        r"clients +requests/s +utterances/s +p50 +p95 +p99 +errors\n1 .*ms +0\n2 ", out
    )
    assert re.search(r"1 threads of \d+ cores, load .*; jax 0", out)
    assert '"p95_ms"' in (tmp_path / "f.json").read_text()
