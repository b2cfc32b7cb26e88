import time

import numpy as np
import pytest

from erc_jax.data.packing import pack_sequences, round_up, round_up_rows, round_up_slots


def interleaved(lengths, seed=0):
    """Sequence numbers of utterances that come in a random order."""
    sequence_of = np.repeat(np.arange(len(lengths)), lengths)
    return np.random.default_rng(seed).permutation(sequence_of)


def test_the_example_of_the_module():
    layout = pack_sequences(np.array(list("aababca"), object), n_padded=8, n_slots=4, n_rows=2)
    packed = np.array(list("aababca."))
    rows = np.where(layout.segment >= 0, packed[layout.index], ".").T
    assert ["".join(row) for row in rows] == ["aaaa", "bbc."]
    assert layout.segment.T.tolist() == [[0, 0, 0, 0], [1, 1, 2, -1]]
    assert layout.index.T.tolist() == [[0, 1, 3, 6], [2, 4, 5, 0]]
    assert layout.mask.tolist() == [True] * 7 + [False]


@pytest.mark.parametrize("seed", range(20))
def test_every_utterance_has_one_slot_and_sequences_run_on(seed):
    rng = np.random.default_rng(seed)
    sequence_of = interleaved(rng.integers(1, 25, rng.integers(1, 40)), seed)
    n = len(sequence_of)
    layout = pack_sequences(sequence_of, n_padded=round_up(n))
    filled = layout.segment >= 0
    assert sorted(layout.index[filled]) == list(range(n))
    slots = layout.index.reshape(-1)
    assert (slots[layout.inverse[:n]] == np.arange(n)).all()
    assert (layout.index[~filled] == 0).all()
    assert (layout.inverse[n:] == 0).all()
    assert layout.mask.sum() == n
    for number in range(layout.segment.max() + 1):
        slot, row = np.nonzero(layout.segment == number)
        assert len(set(row)) == 1
        assert (np.diff(slot) == 1).all()
        utterances = layout.index[slot, row]
        assert (np.diff(utterances) > 0).all()
        assert len(set(sequence_of[utterances])) == 1
        assert (sequence_of == sequence_of[utterances[0]]).sum() == len(utterances)


def test_names_of_sequences_do_not_matter():
    sequence_of = interleaved([3, 5, 2, 7])
    layout = pack_sequences(sequence_of, n_padded=20)
    renamed = pack_sequences(np.array([90, -4, 17, 3])[sequence_of], n_padded=20)
    for name in ("index", "inverse", "segment", "mask"):
        assert np.array_equal(getattr(layout, name), getattr(renamed, name))


def test_slots_do_not_grow_with_the_number_of_speakers():
    """Ten dialogues of 24 utterances, by 2 speakers in turn or by 9."""
    two, nine = (
        pack_sequences(np.concatenate([100 * d + np.arange(24) % s for d in range(10)]),
                       n_padded=240)
        for s in (2, 9)
    )  # fmt: skip
    assert two.index.size <= 1.15 * 240
    assert nine.index.size <= 1.15 * 240


@pytest.mark.parametrize("seed", range(10))
def test_the_longest_go_first_each_into_the_first_row_with_room(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 25, 60)
    layout = pack_sequences(np.repeat(np.arange(60), lengths), n_padded=sum(lengths), n_slots=24)
    rows = []  # the sequences of each
    for sequence in sorted(range(60), key=lambda number: -lengths[number]):
        room = [row for row in rows if lengths[row].sum() + lengths[sequence] <= 24]
        if room:
            room[0].append(sequence)
        else:
            rows.append([sequence])
    expected = [np.repeat(row, lengths[row]) for row in rows]
    found = [segment[segment >= 0] for segment in layout.segment.T]
    assert [row.tolist() for row in found if len(row)] == [row.tolist() for row in expected]


def test_sequences_that_are_alone():
    """Rows in order of appearance, however much room is left in them."""
    layout = pack_sequences(np.array([7, 7, 3, 7, 9, 3]), n_padded=8, n_slots=4, alone=True)
    assert layout.segment.shape == (4, 3)
    assert layout.segment.T.tolist() == [[0, 0, 0, -1], [1, 1, -1, -1], [2, -1, -1, -1]]
    assert layout.index.T.tolist() == [[0, 1, 3, 0], [2, 5, 0, 0], [4, 0, 0, 0]]
    more = pack_sequences(np.array([7, 3]), n_padded=8, n_slots=4, n_rows=3, alone=True)
    assert more.segment.T.tolist() == [[0, -1, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_padded": 16}, "17 utterances .* N = 16"),
        ({"n_padded": 24, "n_slots": 8}, "sequences of up to 9 .* T = 8"),
        ({"n_padded": 24, "n_slots": 12, "n_rows": 1}, "need 2 rows of 12 slots, R = 1"),
        ({"n_padded": 24, "n_slots": 24, "n_rows": 1, "alone": True}, "need 2 rows of 24 slots"),
    ],
)
def test_sequences_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        pack_sequences(np.repeat([0, 1], [9, 8]), **sizes)


def test_no_utterances():
    layout = pack_sequences(np.zeros(0, int), n_padded=8)
    assert (layout.segment == -1).all()
    assert not layout.mask.any()


def test_ladders():
    assert [round_up(n) for n in (0, 1, 8, 9, 100, 256, 257, 300, 1000)] == [
        8, 8, 8, 16, 104, 256, 272, 304, 1024,
    ]  # fmt: skip
    assert [round_up_slots(n) for n in (1, 8, 9, 13, 17, 25, 33, 65)] == [
        8, 8, 12, 16, 24, 32, 48, 96,
    ]  # fmt: skip
    for n in range(1, 3000):
        assert n <= round_up(n) <= max(n + 7, 17 / 16 * n)
        assert n <= round_up_slots(n) <= max(8, 1.5 * n)
    assert round_up_rows(needed=9, n_padded=240, n_slots=24) == 10
    assert round_up_rows(needed=13, n_padded=240, n_slots=24) == 14


@pytest.mark.slow
def test_packing_a_batch_takes_less_than_a_millisecond():
    sequence_of = interleaved([4, 3, 2] * 32)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        pack_sequences(sequence_of, n_padded=288)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3
