"""A GPU's step by its roofline (Williams et al., 2009): each kernel takes as long as its bytes or its operations do.

And each takes at least what starting one takes, which is what counts in small steps. Everything that is not a ceiling
stands in `Efficiencies`; none was fitted to a whole step but `plan` and `launch`, which only a whole step shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from leobench.simulate.hardware import Gpu
from leobench.simulate.work import Cost, Work, prefill_pairs
from leoserve.model.capacity import Placement


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """By kind of kernel: shares of the measured ceilings, and seconds. All measured on an H200
    (bench/results/gpu-h200.json, stage in brackets) and assumed of other GPUs."""

    product_start: float = 5.5e-6  # seconds of a product beside its bytes (1: 7B's at 1 row, all within 10%)
    product_bytes: float = 1.0  # (1: 7B's head at 1 row, less the start)
    product_operations: float = 0.93  # (1: the four of a layer of 7B at 8192 rows, together)
    decode_start: float = 11.4e-6  # seconds of decode attention: two kernels (3: B1, less its bytes)
    decode_bytes: float = 0.95  # (3: B64 and B224, 1024 and 4096 keys, less the start)
    decode_bytes_fp8: float = 0.52  # scales and widening bound it, not bytes (3: B64 in fp8)
    decode_bytes_int8: float = 0.455  # (3: B64 in int8)
    prefill_start: float = 11.4e-6
    prefill_operations: float = 0.35  # (3: the median of 7B's; 0.21 for 16 × 512, 0.40 for 1 × 8192)
    between_start: float = 2.1e-6  # seconds of each of four kernels of norms, rotary positions, gates (3: 1 row)
    between_bytes: float = 0.93  # (3: 8192 rows)
    sampling_start: float = 25e-6  # (3: choosing 1 token with a temperature)
    plan: float = 0.34e-3  # seconds of the host between steps (5: decode without overlap, less with)
    launch_layer: float = 0.375e-3  # seconds to launch a layer's kernels one by one (5: B1 without graphs)


class Roofline:
    """Steps on one replica of `placement.parallel` equal GPUs. Steps of decode rows alone are replayed from graphs."""

    def __init__(
        self, gpu: Gpu, placement: Placement, *, kv_dtype: str = "auto", efficiencies: Efficiencies | None = None
    ) -> None:
        self.gpu = gpu
        self.placement = placement
        self.efficiencies = own = efficiencies or Efficiencies()
        config, parallel = placement.config, placement.parallel
        kv_efficiency = {"fp8": own.decode_bytes_fp8, "int8": own.decode_bytes_int8}.get(kv_dtype, own.decode_bytes)
        key_bytes = 2 * config.num_kv_heads * config.head_dim * placement.kv_itemsize / parallel
        key_bytes += 2 * config.num_kv_heads * 4 / parallel if placement.kv_itemsize == 1 else 0
        self._key_seconds = key_bytes / (gpu.bandwidth * kv_efficiency)
        pair_operations = 4 * config.num_heads * config.head_dim / parallel
        self._pair_seconds = pair_operations / (gpu.operations * own.prefill_operations)
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self._products = [  # columns and rows of a layer's weights on each GPU
            (hidden, (query + 2 * key_value) // parallel),
            (query // parallel, hidden),
            (hidden, 2 * inner // parallel),
            (inner // parallel, hidden),
        ]
        self._head = (hidden, config.vocab_size // parallel)
        numbers = 8 * hidden + 3 * inner / parallel + 2 * (query + 2 * key_value) / parallel
        self._between_seconds = numbers * placement.itemsize / (gpu.bandwidth * own.between_bytes)
        self._layers: dict[int, float] = {}  # by tokens: a layer without its attention
        self._heads: dict[int, float] = {}  # by rows that are sampled

    def cost(self, work: Work) -> Cost:
        own, config = self.efficiencies, self.placement.config
        layer = self._layer(work.tokens)
        if work.decode_rows:
            layer += own.decode_start + work.decode_keys * self._key_seconds
        if work.prefills:
            pairs = sum(prefill_pairs(count, start, config.sliding_window) for count, start in work.prefills)
            layer += own.prefill_start + pairs * self._pair_seconds
        device = config.num_layers * layer
        if work.sampled:
            device += self._sampling(work.sampled)
        launch = own.launch_layer * config.num_layers if work.prefills else 0.0
        return Cost(own.plan, launch, device)

    def _layer(self, tokens: int) -> float:
        """Seconds of a layer's products, of what lies between them, and of its two all-reduces."""
        found = self._layers.get(tokens)
        if found is None:
            own = self.efficiencies
            found = sum(self._product(tokens, columns, rows) for columns, rows in self._products)
            found += 4 * own.between_start + tokens * self._between_seconds
            found += 2 * self._all_reduce(tokens)
            self._layers[tokens] = found
        return found

    def _sampling(self, rows: int) -> float:
        """Seconds of the head's product, and of choosing a token for each row."""
        found = self._heads.get(rows)
        if found is None:
            own = self.efficiencies
            logits = rows * self.placement.config.vocab_size * 4
            found = self._product(rows, *self._head)
            found += own.sampling_start + 2 * logits / (self.gpu.bandwidth * own.between_bytes)
            self._heads[rows] = found
        return found

    def _product(self, tokens: int, columns: int, rows: int) -> float:
        own, itemsize = self.efficiencies, self.placement.itemsize
        moved = (columns * rows + tokens * (columns + rows)) * itemsize
        operations = 2 * tokens * columns * rows
        in_bytes = moved / (self.gpu.bandwidth * own.product_bytes)
        in_operations = operations / (self.gpu.operations * own.product_operations)
        return own.product_start + max(in_bytes, in_operations)

    def _all_reduce(self, tokens: int) -> float:
        """A ring: every GPU sends and takes 2(p-1)/p of the activations. Not measured."""
        parallel = self.placement.parallel
        if parallel == 1:
            return 0.0
        moved = tokens * self.placement.config.hidden_size * self.placement.itemsize
        return self.gpu.link_latency + 2 * (parallel - 1) / parallel * moved / self.gpu.link
