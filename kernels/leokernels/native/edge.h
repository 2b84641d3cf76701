// Where a goal is reached by values from the largest down, without sorting them: what is in question is halved, and the
// last few are ranked.
#pragma once

#include "choice.h"

constexpr float LOWEST = -std::numeric_limits<float>::max();
constexpr int MEANS = 16;  // times that values are halved by their mean; then by their bits, of which there are 32

typedef double Doubles __attribute__((vector_size(LANES * 4)));
typedef float HalfFloats __attribute__((vector_size(LANES * 2)));

static inline Doubles widened(HalfFloats x) {
#if LANES == 16  // the compiler would take four instructions
    return (Doubles)_mm512_cvtps_pd((__m256)x);
#elif LANES == 8
    return (Doubles)_mm256_cvtps_pd((__m128)x);
#else
    return __builtin_convertvector(x, Doubles);
#endif
}

// Sums of float32 in float64: exact, or nearly.
struct Sum {
    Doubles part[2 * PARTS] = {};

    void add(const Group& x) {
        HalfFloats half[2 * PARTS];
        std::memcpy(half, &x, sizeof half);
        for (int number = 0; number < 2 * PARTS; number++) part[number] += widened(half[number]);
    }
    double total() const {
        double lanes[WORD];
        std::memcpy(lanes, part, sizeof lanes);
        for (long half = WORD / 2; half; half /= 2)
            for (long lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
        return lanes[0];
    }
};

// The lanes whose bits are set, one after the other; LANES of `out` may be written. Returns how many they are.
template <class T, class Vector>
static inline long press(T* out, Vector x, uint32_t bits) {
    static_assert(sizeof(T) * LANES == sizeof(Vector));
#if LANES == 16
    store(out, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)x));
    return __builtin_popcount(bits);
#else
    T lanes[LANES];
    store(lanes, x);
    long count = 0;
    for (; bits; bits &= bits - 1) out[count++] = lanes[__builtin_ctz(bits)];
    return count;
#endif
}

// Makes the last group of an array whole.
static inline void fill_up(float* end, float filler) {
    for (int part = 0; part < PARTS; part++) store(end + part * LANES, all(filler));
}

// The goal is reached at the first `equals` of those that have this value.
struct Edge {
    float value;
    long equals;
};

// How many of weight `unit` bring `above` to the goal, of `count`: one at least. The quotient is rounded, sums decide.
static inline long needed(double above, double unit, long count, double goal) {
    double number = std::ceil((goal - above) / unit);
    if (!(number > 1)) return 1;
    if (above + (number - 1) * unit >= goal) number--;
    if (above + number * unit < goal) number++;
    return (long)std::min(number, (double)count);
}

// The edge among values that are in question, each with its weight, or with one; those of -INFINITE are not.
template <bool WEIGHTED>
struct Question {
    float *some, *some_weights;  // room for as many, and a group more
    const float* values;         // these and their weights are read, to the end of a group
    const float* weights;
    long count;
    float low, high;   // nothing is less, or larger
    double above = 0;  // the weight of those that are larger: less than the goal

    // Keep what is at least the pivot, or what is less.
    void keep(float pivot, bool upper) {
        Floats least = all(INFINITE), most = all(-INFINITE);
        long kept = 0;
        for (long at = 0; at < count; at += LANES) {
            const Floats x = load<Floats>(values + at);
            const uint32_t larger = at_least(x, all(pivot));
            const uint32_t lanes = upper ? larger : at_least(x, all(LOWEST)) & ~larger;
            most = greater(allowed(x, lanes), most);
            least = smaller(-allowed(-x, lanes), least);
            if (WEIGHTED) press(some_weights + kept, load<Floats>(weights + at), lanes);
            kept += press(some + kept, x, lanes);
        }
        fill_up(some + kept, -INFINITE);
        if (WEIGHTED) fill_up(some_weights + kept, 0);
        values = some, weights = some_weights, count = kept;
        low = -largest(-least), high = largest(most);
    }

    double from(float pivot) const {
        Sum added;
        long number = 0;
        for (long at = 0; at < count; at += WORD) {
            const Group x = group_at(values + at);
            if (WEIGHTED) {
                Group weight = group_at(weights + at);
                for (int part = 0; part < PARTS; part++)
                    weight.part[part] = x.part[part] >= pivot ? weight.part[part] : all(0.0f);
                added.add(weight);
            } else {
                number += __builtin_popcount(lanes_at_least(x, pivot));
            }
        }
        return WEIGHTED ? added.total() : (double)number;
    }

    // Less than half of them are on one side as a rule; some on each side always.
    float pivot(int round) const {
        float middle = 0.5f * low + 0.5f * high;
        if (round >= MEANS) {
            const auto key = [](int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); };  // sorts like the float
            const int64_t first = key(same_bits<int32_t>(low)), last = key(same_bits<int32_t>(high));
            middle = same_bits<float>(key((int32_t)(first + (last - first) / 2)));
        }
        return middle > low ? middle : high;
    }

    // The goal is not above what all of them weigh together.
    Edge edge(double goal) {
        for (int round = 0; count > WORD; round++) {
            if (low == high) return {high, needed(above, WEIGHTED ? weights[0] : 1, count, goal)};
            const float middle = pivot(round);
            const double upper = from(middle);
            const bool reached = above + upper >= goal;
            if (!reached) above += upper;
            keep(middle, reached);
        }
        return ranked(goal);
    }

    // Of a group at most: each one's rank is how many are larger.
    Edge ranked(double goal) const {
        Words ranks[PARTS] = {};
        const Group x = group_at(values);
        for (long other = 0; other < count; other++)
            for (int part = 0; part < PARTS; part++) ranks[part] -= (Words)(all(values[other]) > x.part[part]);
        uint32_t rank[WORD];
        std::memcpy(rank, ranks, sizeof rank);
        long equals[WORD] = {}, place[WORD];
        for (long number = 0; number < count; number++) equals[rank[number]]++, place[rank[number]] = number;
        double before = above;
        for (long at = 0;; at += equals[at]) {
            const double unit = WEIGHTED ? weights[place[at]] : 1;
            if (before + equals[at] * unit >= goal || at + equals[at] >= count)
                return {values[place[at]], needed(before, unit, equals[at], goal)};
            before += equals[at] * unit;
        }
    }
};
