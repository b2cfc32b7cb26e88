import numpy as np
import pytest

from erc_jax.encoders.packing import make_blocks, pack_rows


@pytest.mark.parametrize("seed", range(5))
def test_every_sentence_has_its_place(seed):
    random = np.random.default_rng(seed)
    tokens = [list(random.integers(1, 99, random.integers(0, 13))) for _ in range(50)]
    rows = pack_rows({i: len(ids) for i, ids in enumerate(tokens)}, 12)
    assert sorted(i for row in rows for i in row) == list(range(50))
    seen = {}
    for block in make_blocks(tokens, rows, height=4, width=12):
        assert block.ids.shape == block.segments.shape == block.positions.shape == (4, 12)
        for r, members in enumerate(block.rows):
            for segment, sentence in enumerate(members, start=1):
                mine = block.segments[r] == segment
                seen[sentence] = block.ids[r][mine].tolist()
                assert block.positions[r][mine].tolist() == list(range(mine.sum()))
        assert not block.ids[block.segments == 0].any()
    assert [seen[i] for i in range(50)] == tokens


def test_rows_are_full_where_lengths_allow():
    assert pack_rows({0: 5, 1: 3, 2: 7, 3: 1}, 8) == [[2], [0, 1], [3]]
    assert len(pack_rows(dict.fromkeys(range(30), 4), 12)) == 10


def test_a_row_holds_at_most_half_as_many_sentences_as_tokens():
    # The pooling product has that many places, whatever a tokenizer makes of the empty string.
    rows = pack_rows(dict.fromkeys(range(100), 0), 12)
    assert max(len(row) for row in rows) == 6


def test_no_sentences_no_blocks():
    assert list(make_blocks([], pack_rows({}, 8), 4, 8)) == []
