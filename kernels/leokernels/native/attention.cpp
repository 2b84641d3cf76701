// Attention over paged keys and values that are read where they lie.
//
// A tile is a few queries that share a KV head: the heads of a group, and consecutive tokens. It walks its row's keys
// in pieces of at most 64 that begin at fixed positions, with the softmax kept up from piece to piece (Milakov and
// Gimelshein, 2018). What a query gets of a piece depends on nothing but the two, and a piece that it does not see
// changes nothing: its sums have the same bits in any tile, chunk or batch.
//
// Keys lie transposed in their blocks, [head_dim, block_size], so that the lanes of a vector are keys; values as
// [block_size, head_dim], so that there they are dimensions.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int PIECE = 64;                          // keys
constexpr int MOST_VECTORS = LANES == 16 ? 4 : 2;  // of sums for each query at a time
constexpr int MOST_QUERIES = LANES == 16 ? 6 : 4;  // times so many sums, and what they need, fit into the registers

// The queries of a task: of row `row`, from pair `first` on; pair i is head i % group of token i / group.
struct Tile {
    int row, kv_head, first, count;
};

template <class T>
struct Walk {
    const LeoAttention& job;
    const Tile& tile;
    long start, tokens, context, group;

    Walk(const LeoAttention& job, const Tile& tile) : job(job), tile(tile) {
        start = job.query_start[tile.row];
        tokens = job.query_start[tile.row + 1] - start;
        context = job.context_len[tile.row];
        group = job.heads / job.kv_heads;
    }
    long position(int query) const { return context - tokens + (tile.first + query) / group; }
    long first_seen(int query) const { return job.window ? std::max(0L, position(query) + 1 - job.window) : 0; }
    long element(int query) const {  // of a query's head in [T, heads, head_dim]
        const long pair = tile.first + query;
        return ((start + pair / group) * job.heads + tile.kv_head * group + pair % group) * job.head_dim;
    }
};

// VECTORS vectors of consecutive elements; see Pair for which of them is where.
template <class T, int VECTORS>
static inline void widen_all(const T* from, Floats* to) {
    if constexpr (VECTORS == 1) {
        to[0] = Stored<T>::widen(from);
    } else {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v += 2) Pair<T>::widen(from + v * LANES, to[v], to[v + 1]);
    }
}

// Memory that is read next, in rows of VECTORS vectors, so many bytes apart. The processor itself does not look past a
// page, and pieces lie in pages anywhere.
struct Next {
    const char* at;
    long apart;
};

// sums [QUERIES][VECTORS] += for each of `count` steps the step's factor for each query, STRIDE apart, times VECTORS
// vectors of `from`, `apart` elements on with each step. Each step asks for a row of what is next.
template <class T, int QUERIES, int VECTORS, int STRIDE>
static inline void add_up(const float* factors, const T* from, long apart, long count, Next next,
                          Floats (*sums)[VECTORS]) {
    for (long step = 0; step < count; step++) {
        for (long line = 0; line < (long)(VECTORS * LANES * sizeof(T)); line += 64)
            __builtin_prefetch(next.at + step * next.apart + line, 0, 3);
        Floats x[VECTORS];
        widen_all<T, VECTORS>(from + step * apart, x);
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) {
            const Floats one = all(factors[q * STRIDE + step]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sums[q][v] = fma(one, x[v], sums[q][v]);
        }
    }
}

// The scores of VECTORS vectors of keys, to `scores` [QUERIES][PIECE].
template <class T, int QUERIES, int VECTORS>
void score_some(const float* query, const T* keys, long size, long dim, Next next, float* scores) {
    Floats sums[QUERIES][VECTORS] = {};
    add_up<T, QUERIES, VECTORS, LEO_MOST_HEAD_DIM>(query, keys, size, dim, next, sums);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++) {
        float* to = scores + q * PIECE;
        if constexpr (VECTORS == 1) {
            store(to, sums[q][0]);
        } else {
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v += 2) Pair<T>::in_order(to + v * LANES, sums[q][v], sums[q][v + 1]);
        }
    }
}

// scores [QUERIES][PIECE]: of `count` keys, a multiple of LANES, lying `size` apart from dimension to dimension.
template <class T, int QUERIES>
void score(const float* query, const T* keys, long size, long dim, long count, const T* values,
           float (*scores)[PIECE]) {
    const Next next{(const char*)values, (long)(PIECE * sizeof(T))};  // as many bytes of them as there are of keys
    long at = 0;
    for (; at + MOST_VECTORS * LANES <= count; at += MOST_VECTORS * LANES)
        score_some<T, QUERIES, MOST_VECTORS>(query, keys + at, size, dim, next, scores[0] + at);
    for (; at + 2 * LANES <= count; at += 2 * LANES)
        score_some<T, QUERIES, 2>(query, keys + at, size, dim, next, scores[0] + at);
    if (at < count) score_some<T, QUERIES, 1>(query, keys + at, size, dim, next, scores[0] + at);
}

// VECTORS vectors of dimensions of `mixed` [QUERIES][dim], which keeps them as Pair reads them.
template <class T, int QUERIES, int VECTORS>
void mix_some(const float* shares, const float* kept, const T* values, long dim, long count, Next next,
              float* mixed) {
    Floats sums[QUERIES][VECTORS];
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sums[q][v] = load<Floats>(mixed + q * dim + v * LANES) * kept[q];
    add_up<T, QUERIES, VECTORS, PIECE>(shares, values, dim, count, next, sums);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) store(mixed + q * dim + v * LANES, sums[q][v]);
}

// mixed [QUERIES][dim] = mixed * kept + shares × values: of `count` values, [dim] each. dim is a multiple of 2 LANES.
template <class T, int QUERIES>
void mix(const float* shares, const float* kept, const T* values, long dim, long count, Next next, float* mixed) {
    long at = 0;
    for (; at + MOST_VECTORS * LANES <= dim; at += MOST_VECTORS * LANES) {
        mix_some<T, QUERIES, MOST_VECTORS>(shares, kept, values + at, dim, count, next, mixed + at);
        next.at += MOST_VECTORS * LANES * next.apart;
    }
    for (; at < dim; at += 2 * LANES) mix_some<T, QUERIES, 2>(shares, kept, values + at, dim, count, next, mixed + at);
}

// Scores into shares: exponentials of what is seen, with the largest score and their sum kept up. `keys` keys from
// position `begin` on. Returns by what everything before has to be multiplied.
template <class T>
float soften(float* scores, long begin, long keys, long first, long last, float& peak, float& total) {
    const bool all_seen = first <= begin && begin + keys - 1 <= last;
    Floats top = all(-INFINITE);
    for (long at = 0; at < keys; at += LANES) {
        Floats value = load<Floats>(scores + at);
        if (!all_seen) {
            const Words place = lane_numbers() + (uint32_t)(begin + at);
            value = place >= (uint32_t)first && place <= (uint32_t)last ? value : all(-INFINITE);
            store(scores + at, value);
        }
        top = greater(value, top);
    }
    const float higher = std::max(peak, largest(top));
    if (higher == -INFINITE) {
        for (long at = 0; at < keys; at++) scores[at] = 0;
        return 1.0f;
    }
    Floats added{};
    for (long at = 0; at < keys; at += LANES) {
        const Floats share = exponential_down(load<Floats>(scores + at) - higher);
        store(scores + at, share);
        added = added + share;
    }
    float kept = 1;
    if (higher > peak) kept = peak == -INFINITE ? 0.0f : exponential_down(all(peak - higher))[0];
    total = total * kept + sum(added);
    peak = higher;
    return kept;
}

template <class T, int QUERIES>
void attend(const LeoAttention& job, const Tile& tile) {
    const Walk<T> walk(job, tile);
    const long dim = job.head_dim, size = job.block_size, piece = std::min((long)PIECE, size);
    alignas(64) float query[QUERIES * LEO_MOST_HEAD_DIM], mixed[QUERIES * LEO_MOST_HEAD_DIM];
    alignas(64) float scores[QUERIES][PIECE];
    float peak[QUERIES], total[QUERIES], kept[QUERIES];
    long first = walk.first_seen(0), last = walk.position(QUERIES - 1);
    for (int q = 0; q < QUERIES; q++) {
        const T* from = (const T*)job.query + walk.element(q);
        for (long d = 0; d < dim; d++) query[q * LEO_MOST_HEAD_DIM + d] = Stored<T>::one(from + d) * job.scale;
        std::fill(mixed + q * dim, mixed + (q + 1) * dim, 0.0f);
        peak[q] = -INFINITE;
        total[q] = 0;
    }
    const int32_t* table = job.block_table + (long)tile.row * job.table_width;
    auto page = [&](long position) {
        return ((long)table[position / size] * job.kv_heads + tile.kv_head) * dim * size;
    };
    for (long begin = first / piece * piece; begin <= last; begin += piece) {
        const long here = page(begin), offset = begin % size;
        const T* keys = (const T*)job.keys + here + offset;
        const T* values = (const T*)job.values + here + offset * dim;
        const long then = std::min(begin + piece, last);
        const Next next{(const char*)((const T*)job.keys + page(then) + then % size), (long)(size * sizeof(T))};
        const long seen = std::min(piece, last + 1 - begin), up = (seen + LANES - 1) / LANES * LANES;
        score<T, QUERIES>(query, keys, size, dim, up, values, scores);
        for (int q = 0; q < QUERIES; q++)
            kept[q] = soften<T>(scores[q], begin, up, walk.first_seen(q), walk.position(q), peak[q], total[q]);
        // What nobody sees may be anything, NaN too, and a share of 0 would not keep it out.
        const long from = std::max(0L, first - begin);
        mix<T, QUERIES>(scores[0] + from, kept, values + from * dim, dim, seen - from, next, mixed);
    }
    for (int q = 0; q < QUERIES; q++) {
        T* out = (T*)job.out + walk.element(q);
        const Floats share = all(1.0f / total[q]);
        for (long d = 0; d < dim; d += 2 * LANES) {
            const float* both = mixed + q * dim + d;
            Pair<T>::narrow(out + d, load<Floats>(both) * share, load<Floats>(both + LANES) * share);
        }
    }
}

template <class T, int QUERIES>
void attend_some(const LeoAttention& job, const Tile& tile) {
    if (tile.count == QUERIES)
        attend<T, QUERIES>(job, tile);
    else if constexpr (QUERIES > 1)
        attend_some<T, QUERIES - 1>(job, tile);
}

template <class T>
void attention(Pool& pool, const LeoAttention& job) {
    std::vector<Tile> tiles;
    const int group = job.heads / job.kv_heads;
    for (int row = 0; row < job.rows; row++) {
        const int pairs = (job.query_start[row + 1] - job.query_start[row]) * group;
        if (!pairs || job.context_len[row] <= 0) continue;
        const int parts = (pairs + MOST_QUERIES - 1) / MOST_QUERIES, most = (pairs + parts - 1) / parts;
        for (int kv_head = 0; kv_head < job.kv_heads; kv_head++)
            for (int first = 0; first < pairs; first += most)
                tiles.push_back({row, kv_head, first, std::min(most, pairs - first)});
    }
    parallel(pool, (int)tiles.size(), [&](int task, int) { attend_some<T, MOST_QUERIES>(job, tiles[task]); });
}

}  // namespace

extern "C" void leo_attention(void* pool, int kind, const LeoAttention* job) {
    kind == LEO_BFLOAT16 ? attention<BFloat16>(*(Pool*)pool, *job) : attention<float>(*(Pool*)pool, *job);
}
