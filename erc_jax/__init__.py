"""Emotion recognition in conversation, and emotion-aware replies, in JAX and Flax."""

__version__ = "0.1.0"
