// What a choice among a row's ids is made of: the row, the weights of a draw, and the draw.
//
// Ids are looked at in groups of `WORD`, and sums over them are taken in one order, however wide the vectors are: a
// row's token is the same in every variant whose fma rounds once.
#pragma once

#include "vector.h"

#include <algorithm>
#include <vector>

constexpr long WORD = 32;            // ids that one word of a mask is about
constexpr long PIECE = 256;          // ids whose weights are added up before they are told apart
constexpr int PARTS = WORD / LANES;  // vectors of a group

struct Group {
    Floats part[PARTS];
};

static inline float sum(Group x) {
    for (int half = PARTS / 2; half; half /= 2)
        for (int number = 0; number < half; number++) x.part[number] = x.part[number] + x.part[number + half];
    return sum(x.part[0]);
}

// A row of logits, and what is allowed of it.
struct Row {
    const float* logits;
    long count;
    const uint32_t* words;  // null: everything is
    long size;              // of words; nothing is allowed behind them

    // Of the ids from `at` on, to the end of their word: a bit for each that is there and allowed.
    uint32_t word(long at) const {
        uint32_t bits = words ? at / WORD < size ? words[at / WORD] : 0 : ~0u;
        return count - at >= WORD ? bits : bits & ((1u << (count - at)) - 1);
    }
};

// x where the lane's bit is set, the others -INFINITE.
static inline Floats allowed(Floats x, uint32_t bits) {
#if LANES == 16
    return (Floats)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITE), (__mmask16)bits, (__m512)x);
#else
    const Words flags = (all(bits) >> lane_numbers()) & 1u;
    return flags != 0u ? x : all(-INFINITE);
#endif
}

static inline Group group_at(const float* values) {
    Group x;
    for (int part = 0; part < PARTS; part++) x.part[part] = load<Floats>(values + part * LANES);
    return x;
}

// Of the ids from `at` on, with the bits of their word; -INFINITE is what is not allowed or not there.
static inline Group group_of(const Row& row, long at, uint32_t bits) {
    if (bits == ~0u) return group_at(row.logits + at);
    Group x;
    for (int part = 0; part < PARTS; part++) {
        const long first = at + part * LANES;
        x.part[part] = first < row.count ? widen_some(row.logits + first, row.count - first) : all(-INFINITE);
        x.part[part] = allowed(x.part[part], bits >> part * LANES);
    }
    return x;
}

// A bit for each lane of a that is at least b's.
static inline uint32_t at_least(Floats a, Floats b) {
#if LANES == 16
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif LANES == 8
    return _mm256_movemask_ps((__m256)(a >= b));
#else
    const Words bits = (Words)(a >= b) & (all(1u) << lane_numbers());
    return bits[0] | bits[1] | bits[2] | bits[3];
#endif
}

static inline uint32_t lanes_at_least(const Group& x, float least) {
    uint32_t lanes = 0;
    for (int part = 0; part < PARTS; part++) lanes |= at_least(x.part[part], all(least)) << part * LANES;
    return lanes;
}

// `function` is called with groups of logits and the id of their first; those are passed over of which nothing is
// allowed.
template <class Function>
static inline void by_groups(const Row& row, long begin, long end, Function&& function) {
    for (long at = begin; at < end; at += WORD)
        if (const uint32_t bits = row.word(at)) function(group_of(row, at, bits), at);
}

// In proportion to exp(x / temperature): 1 for the largest logit, and 0 where it is less than that by 87 temperatures.
struct Weights {
    Floats peak, scale, least;

    Weights(float peak, float temperature) : peak(all(peak)) {
        const float inverse = 1.44269504088896341f / temperature;
        scale = all(inverse);
        least = all(std::max(-125 / inverse, -std::numeric_limits<float>::max()));
    }
    Group operator()(Group x) const {
        for (Floats& part : x.part) part = power_of_two_down(part - peak, scale, least);
        return x;
    }
};

// The first place whose cumulative weight exceeds uniform times the total; never one of weight 0. `sums` are the
// weights of each PIECE, `group(at)` gives those of WORD places. Some place has a weight.
template <class Function>
static inline long inverse(const std::vector<double>& sums, long pieces, long count, double uniform, Function&& group) {
    double total = 0, before = 0;
    for (long piece = 0; piece < pieces; piece++) total += sums[piece];
    const double target = uniform * total;
    long piece = 0;
    while (piece + 1 < pieces && before + sums[piece] <= target) before += sums[piece++];
    while (piece > 0 && sums[piece] == 0) before -= sums[--piece];  // rounding went past the last that weighs anything
    const long end = std::min(count, (piece + 1) * PIECE);
    long place = piece * PIECE;
    double added = 0;
    for (long at = place; at < end && before + added <= target; at += WORD) {
        const double next = sum(group(at));
        if (next == 0) continue;
        before += added;
        place = at, added = next;
    }
    float weights[WORD];
    store(weights, group(place));
    long last = place;
    for (long lane = 0; lane < WORD && before <= target; lane++) {
        before += weights[lane];
        if (weights[lane] != 0) last = place + lane;
    }
    return last;
}
