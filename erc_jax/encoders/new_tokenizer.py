"""A tokenizer of one's own, for sequence-to-sequence models that are made from scratch.

It is BART's in kind: byte-level BPE, so that every text has tokens and comes back as it was, with
the same special tokens under the same numbers. Its words are those of the texts that it learned
from: a small vocabulary suits a small model.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from erc_jax.errors import UserError

# Their places are their numbers. Published BART has <mask> at the end of its vocabulary, but that
# is of no use here.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# tokenizer_config.json: by which transformers' AutoTokenizer knows what tokenizer.json is.
TOKENIZER_CONFIG = {
    "tokenizer_class": "BartTokenizer",
    "add_prefix_space": False,
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE; the same texts give the same tokenizer.

    Args:
      texts: to learn from.
      vocab_size: tokens in the vocabulary, at most, special ones included. Few texts give fewer:
        what occurs only once makes no token.

    Returns:
      A tokenizer that encodes a text as ``<s> words </s>``, of whatever length.

    Raises:
      UserError: the vocabulary would not hold the 256 bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small; expected at least {smallest}, one "
            "for each byte and for each special token"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[
            # A mask stands for a word and the space before it.
            AddedToken(token, special=True, normalized=False, lstrip=token == "<mask>")
            for token in SPECIAL_TOKENS
        ],
        initial_alphabet=sorted(alphabet),
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = ((token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(  # type: ignore[assignment]
        end, begin, trim_offsets=False, add_prefix_space=False
    )
    return tokenizer
