"""The paged key-value cache's bookkeeping: a pool of reference-counted blocks and an index of full ones by content.

Plain Python; no tensor is touched here. The design follows PagedAttention (Kwon et al., 2023, arXiv:2309.06180, section
4) with a prefix index over chained block hashes: equal prefixes of equal salt share blocks.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BlockHash = bytes


class OutOfBlocks(Exception):
    """The pool has fewer free blocks than were asked for."""


def hash_block(parent: BlockHash, tokens: Sequence[int]) -> BlockHash:
    """The identity of a full block: its tokens and everything before them.

    `parent` is the hash of the block before, or of the salt for the first one (`hash_salt`). 128 bits of BLAKE2b: a
    client cannot find a second prefix of the same hash and so read another's cache.
    """
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=16).digest()


def hash_salt(salt: str) -> BlockHash:
    """The parent of a salt's first blocks."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"salt").digest()


class BlockPool:
    """`num_blocks` blocks with reference counts, and the prefix index over those whose content is known.

    A block is free xor referenced. A free block may still be *cached*: it stays findable by its hash until it is given
    out again. Free blocks are given out in least-recently-freed order.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence references, cached ones included."""
        return len(self._free)

    def references(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Give out `count` blocks with one reference each. Raises OutOfBlocks, and then takes none."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks asked for, {len(self._free)} free")
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, block: int) -> None:
        """Add a reference to a block; a cached free one leaves the free list."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each block, in the given order; those that nobody holds become free, last given last.

        Callers pass a sequence's blocks from its end to its start, so that the start of a prefix is evicted last.
        """
        for block in blocks:
            if self._references[block] <= 0:
                raise ValueError(f"block {block} is released more often than it was taken")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:  # nothing to find in it: give it out before any cached one
                    self._free.move_to_end(block, last=False)

    def index(self, block: int, block_hash: BlockHash) -> None:
        """Make a full, computed block findable. The first block of a content stays the one that is found."""
        if block_hash in self._block_of or self._hash_of[block] is not None:
            return
        self._hash_of[block] = block_hash
        self._block_of[block_hash] = block

    def find(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The blocks of the longest indexed beginning of `hashes`. Takes no reference."""
        found = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless the counts agree with `tables`, the block tables of all sequences.

        Every block is free xor referenced, references are exactly those of the tables, and the index is a bijection.
        """
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        for block, (have, want) in enumerate(zip(self._references, counted, strict=True)):
            if have != want:
                raise RuntimeError(f"block {block}: {have} references counted, {want} held")
            if (have == 0) != (block in self._free):
                raise RuntimeError(f"block {block}: {have} references, yet free is {block in self._free}")
        for block_hash, block in self._block_of.items():
            if self._hash_of[block] != block_hash:
                raise RuntimeError(f"block {block}: indexed under a hash it does not have")
        if len(self._block_of) != sum(block_hash is not None for block_hash in self._hash_of):
            raise RuntimeError("a block has a hash that the index does not know")

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            self._hash_of[block] = None
            del self._block_of[block_hash]
