"""Flags of the commands that ask a chat model: where it is, and how fast it may be asked."""

from __future__ import annotations

from absl import flags

flags.DEFINE_string("endpoint", None, "Address of a chat model's server, up to and with /v1.")
flags.DEFINE_string("model", None, "The server's name of the model.")
flags.DEFINE_float("requests_per_minute", 60.0, "To the server, at most.", lower_bound=0.01)
flags.DEFINE_integer("concurrency", 4, "Requests under way at a time.", lower_bound=1)
flags.DEFINE_float("timeout", 60.0, "Seconds to wait for a silent server.", lower_bound=0.01)
flags.DEFINE_integer("max_tokens", None, "Of an answer; 0 leaves it to the server.", lower_bound=0)
