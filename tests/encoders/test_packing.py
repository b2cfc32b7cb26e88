import numpy as np
import pytest

from erc_jax.encoders.packing import NOBODY, TokenSequence, fill_block, make_blocks, pack_rows


@pytest.mark.parametrize("seed", range(5))
def test_every_sentence_has_its_place(seed):
    random = np.random.default_rng(seed)
    tokens = [list(random.integers(1, 99, random.integers(0, 13))) for _ in range(50)]
    sequences = [
        TokenSequence(np.array(ids, int), np.full(len(ids), i)) for i, ids in enumerate(tokens)
    ]
    rows = pack_rows({i: len(ids) for i, ids in enumerate(tokens)}, 12)
    assert sorted(i for row in rows for i in row) == list(range(50))
    seen = {}
    for block in make_blocks(sequences, rows, height=4, width=12):
        for array in (block.ids, block.segments, block.positions, block.slots):
            assert array.shape == (4, 12)
        for r, members in enumerate(block.utterances):
            for slot, sentence in enumerate(members, start=1):
                mine = block.slots[r] == slot
                seen[sentence] = block.ids[r][mine].tolist()
                assert block.positions[r][mine].tolist() == list(range(mine.sum()))
                assert len(set(block.segments[r][mine])) == 1
        assert not block.ids[block.segments == 0].any()
        assert not block.slots[block.segments == 0].any()
    # A sentence without a token has no place; its vector is zero.
    assert [seen.get(i, []) for i in range(50)] == tokens


def test_utterances_of_a_sequence_have_slots_of_their_own():
    ids = np.arange(10, 20)
    owners = np.array([NOBODY, 7, 7, 8, NOBODY, NOBODY, 3, 3, 3, NOBODY])
    other = TokenSequence(np.array([5, 6]), np.array([1, 1]))
    block = fill_block([TokenSequence(ids, owners), other], [[0, 1]], 2, 14)
    assert block.ids[0].tolist() == [*range(10, 20), 5, 6, 0, 0]
    assert block.segments[0].tolist() == [1] * 10 + [2, 2, 0, 0]
    assert block.positions[0].tolist() == [*range(10), 0, 1, 0, 0]
    assert block.slots[0].tolist() == [0, 1, 1, 2, 0, 0, 3, 3, 3, 0, 4, 4, 0, 0]
    assert [row.tolist() for row in block.utterances] == [[7, 8, 3, 1]]
    assert not block.ids[1].any()


def test_rows_are_full_where_lengths_allow():
    assert pack_rows({0: 5, 1: 3, 2: 7, 3: 1}, 8) == [[2], [0, 1], [3]]
    assert len(pack_rows(dict.fromkeys(range(30), 4), 12)) == 10


def test_a_row_holds_at_most_half_as_many_sentences_as_tokens():
    # The pooling product has that many places, whatever a tokenizer makes of the empty string.
    rows = pack_rows(dict.fromkeys(range(100), 0), 12)
    assert max(len(row) for row in rows) == 6


def test_no_sentences_no_blocks():
    assert list(make_blocks([], pack_rows({}, 8), 4, 8)) == []
