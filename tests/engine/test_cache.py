"""The block pool: every block free xor referenced, prefixes findable until evicted, the start of a prefix last."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leoserve.engine.cache import BlockPool, OutOfBlocks, hash_block, hash_salt


def test_allocation_takes_nothing_when_it_cannot_take_all():
    pool = BlockPool(3)
    held = pool.allocate(2)
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.check([held])


def test_a_released_block_is_found_again_by_its_content():
    pool = BlockPool(4)
    parent = hash_block(hash_salt(""), [1, 2])
    child = hash_block(parent, [3, 4])
    blocks = pool.allocate(2)
    pool.index(blocks[0], parent)
    pool.index(blocks[1], child)
    pool.release(reversed(blocks))
    assert pool.find([parent, child]) == blocks
    assert pool.find([child]) == [blocks[1]]
    assert pool.find([hash_block(hash_salt("other"), [1, 2])]) == []


def test_unknown_content_is_given_out_first_and_a_prefix_loses_its_end_first():
    pool = BlockPool(4)
    hashes = [hash_block(bytes([number]), [number]) for number in range(3)]
    blocks = pool.allocate(4)
    for block, block_hash in zip(blocks, hashes, strict=False):
        pool.index(block, block_hash)
    pool.release(reversed(blocks))
    assert pool.allocate(1) == [blocks[3]]  # never indexed
    assert pool.allocate(1) == [blocks[2]]  # the end of the prefix
    assert pool.find(hashes) == blocks[:2]


def test_releasing_too_often_is_an_error():
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="more often"):
        pool.release(blocks)


def test_check_sees_a_leaked_and_a_double_reference():
    pool = BlockPool(2)
    held = pool.allocate(1)
    with pytest.raises(RuntimeError):
        pool.check([])
    with pytest.raises(RuntimeError):
        pool.check([held, held])


class PoolMachine(RuleBasedStateMachine):
    """Random takers and givers on a tiny pool, compared with plain bookkeeping."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7)
        self.tables: list[list[int]] = []
        self.indexed: dict[bytes, int] = {}
        self.numbers = iter(range(10**6))

    @rule(count=st.integers(1, 4))
    def allocate(self, count):
        if count > self.pool.num_free:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
        else:
            blocks = self.pool.allocate(count)
            assert len(set(blocks)) == count
            assert not any(block in table for table in self.tables for block in blocks)
            self.indexed = {key: block for key, block in self.indexed.items() if block not in blocks}
            self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def index_a_block(self, data):
        block = data.draw(st.sampled_from(self.tables))[0]
        key = hash_block(b"", [next(self.numbers)])
        self.pool.index(block, key)
        if block not in self.indexed.values():
            self.indexed[key] = block

    @precondition(lambda self: self.indexed)
    @rule(data=st.data())
    def share_what_is_found(self, data):
        key = data.draw(st.sampled_from(sorted(self.indexed)))
        (block,) = self.pool.find([key])
        assert block == self.indexed[key]
        self.pool.share(block)
        self.tables.append([block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(reversed(table))

    @invariant()
    def counts_agree(self):
        self.pool.check(self.tables)
        for key, block in self.indexed.items():
            assert self.pool.find([key]) == [block]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
