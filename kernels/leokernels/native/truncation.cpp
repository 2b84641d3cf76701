// Selection without sorting. Those ids are collected that can matter, a bound on the logits being known for each limit;
// what is left of them is found by halving the values that are in question, and the last few are ranked.
#include "truncation.h"

namespace {

constexpr float LOWEST = -std::numeric_limits<float>::max();
constexpr int MEANS = 16;  // times that values are halved by their mean; then by their bits, which ends soon in any case

typedef double Doubles __attribute__((vector_size(LANES * 4)));
typedef float HalfFloats __attribute__((vector_size(LANES * 2)));

inline Doubles widened(HalfFloats x) {
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
inline long press(T* out, Vector x, uint32_t bits) {
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
inline void fill_up(float* end, float filler) {
    for (int part = 0; part < PARTS; part++) store(end + part * LANES, all(filler));
}

// Where a goal is reached, from the largest value down: at the first `equals` of those that have this value.
struct Edge {
    float value;
    long equals;
};

// How many of weight `unit` bring `above` to the goal, of `count`: one at least. The quotient is rounded, sums decide.
long needed(double above, double unit, long count, double goal) {
    double number = std::ceil((goal - above) / unit);
    if (!(number > 1)) return 1;
    if (above + (number - 1) * unit >= goal) number--;
    if (above + number * unit < goal) number++;
    return (long)std::min(number, (double)count);
}

// The edge among values that are in question, each with its weight, or with one; those of -INFINITE are not.
template <bool WEIGHTED>
struct Question {
    Scratch& scratch;
    const float* values;
    const float* weights;
    long count;
    float low, high;   // nothing is less, or larger
    double above = 0;  // the weight of those that are larger: less than the goal

    // Keep what is at least the pivot, or what is less.
    void keep(float pivot, bool upper) {
        float *to_values = scratch.some.data(), *to_weights = scratch.some_weights.data();
        Floats least = all(INFINITE), most = all(-INFINITE);
        long kept = 0;
        for (long at = 0; at < count; at += LANES) {
            const Floats x = load<Floats>(values + at);
            const uint32_t larger = at_least(x, all(pivot));
            const uint32_t lanes = upper ? larger : at_least(x, all(LOWEST)) & ~larger;
            most = greater(allowed(x, lanes), most);
            least = smaller(-allowed(-x, lanes), least);
            if (WEIGHTED) press(to_weights + kept, load<Floats>(weights + at), lanes);
            kept += press(to_values + kept, x, lanes);
        }
        fill_up(to_values + kept, -INFINITE);
        if (WEIGHTED) fill_up(to_weights + kept, 0);
        values = to_values, weights = to_weights, count = kept;
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

// Those that are near the largest: a thread's scratch, and how many they are.
struct Near {
    Scratch& scratch;
    float peak;
    float least = LOWEST;
    long count = 0;

    // Of a row whose maxima are known, what is at least so large, in the order of ids.
    void collect(const Row& row, float at_least_this) {
        least = at_least_this, count = 0;
        float* values = scratch.values.data();
        int32_t* ids = scratch.ids.data();
        for (long piece = 0; piece * PIECE < row.count; piece++) {
            if (!lanes_at_least(group_at(&scratch.maxima[piece * WORD]), least)) continue;
            by_groups(row, piece * PIECE, std::min(row.count, (piece + 1) * PIECE), [&](const Group& x, long at) {
                for (int part = 0; part < PARTS; part++) {
                    const uint32_t lanes = at_least(x.part[part], all(least));
                    press(ids + count, lane_numbers() + (uint32_t)(at + part * LANES), lanes);
                    count += press(values + count, x.part[part], lanes);
                }
            });
        }
        fill_up(values + count, -INFINITE);
    }

    // Returns their sum.
    double weigh(const Weights& weights) {
        Sum added;
        for (long at = 0; at < count; at += WORD) {
            const Group weight = weights(group_at(&scratch.values[at]));
            store(&scratch.weights[at], weight);
            added.add(weight);
        }
        return added.total();
    }

    template <bool WEIGHTED>
    Edge edge(double goal) const {
        Question<WEIGHTED> question{scratch, scratch.values.data(), scratch.weights.data(), count, least, peak};
        if (least == LOWEST) question.keep(LOWEST, true);
        return question.edge(goal);
    }

    // Keep what is before the edge: with the weights, if they are known, else with the values alone.
    void cut(Edge edge, bool weighed) {
        float *values = scratch.values.data(), *weights = scratch.weights.data();
        int32_t* ids = scratch.ids.data();
        long kept = 0;
        const float above = std::nextafter(edge.value, INFINITE);
        for (long at = 0; at < count; at += LANES) {
            const Floats x = load<Floats>(values + at);
            uint32_t lanes = at_least(x, all(above));
            uint32_t equal = at_least(x, all(edge.value)) & ~lanes;
            while (__builtin_popcount(equal) > edge.equals) equal &= ~(1u << (31 - __builtin_clz(equal)));
            edge.equals -= __builtin_popcount(equal);
            lanes |= equal;
            press(ids + kept, load<Words>(ids + at), lanes);
            if (weighed) press(weights + kept, load<Floats>(weights + at), lanes);
            kept += press(values + kept, x, lanes);
        }
        count = kept;
        fill_up(weighed ? weights + count : values + count, weighed ? 0 : -INFINITE);
    }

    int64_t drawn(double uniform) {
        const float* weights = scratch.weights.data();
        const long pieces = (count + PIECE - 1) / PIECE;
        for (long piece = 0; piece < pieces; piece++) {
            Sum added;
            for (long at = piece * PIECE; at < std::min(count, (piece + 1) * PIECE); at += WORD)
                added.add(group_at(weights + at));
            scratch.sums[piece] = added.total();
        }
        return scratch.ids[inverse(scratch.sums, pieces, count, uniform, [&](long at) { return group_at(weights + at); })];
    }
};

// The least float32 that is not below it; the largest where there is none.
float rounded_up(double x) {
    const float near = (float)std::max(x, (double)LOWEST);
    return near < x ? std::nextafter(near, INFINITE) : near;
}

// A value that the top_k largest of a row are not below: it is the top_k-th of maxima of parts of the row.
float bound_of_top_k(const Row& row, int64_t top_k, Scratch& scratch) {
    const long maxima = (row.count + PIECE - 1) / PIECE * WORD;
    if (top_k > maxima) return LOWEST;
    Question<false> asked{scratch, scratch.maxima.data(), nullptr, maxima, LOWEST, INFINITE};
    asked.keep(LOWEST, true);
    return asked.count < top_k ? LOWEST : asked.edge((double)top_k).value;
}

// The ids below it have less than 1 - top_p of the mass together, however many they are.
float bound_of_top_p(const Row& row, float peak, float temperature, double top_p, double total) {
    const double share = (1 - top_p) * total / (double)row.count;
    return std::max(LOWEST, std::nextafter(rounded_up(peak + temperature * std::log(0.999 * share)), -INFINITE));
}

}  // namespace

void Scratch::hold(long count) {
    const size_t pieces = (count + PIECE - 1) / PIECE, padded = pieces * PIECE + 2 * WORD;
    if (sums.size() >= pieces) return;
    maxima.resize(pieces * WORD);
    sums.resize(pieces);
    for (auto* each : {&values, &weights, &some, &some_weights}) each->resize(padded);
    ids.resize(padded);
}

double add_up(const Row& row, const Weights& weights, std::vector<double>& sums) {
    double total = 0;
    for (long piece = 0; piece * PIECE < row.count; piece++) {
        Group added{};
        by_groups(row, piece * PIECE, std::min(row.count, (piece + 1) * PIECE), [&](const Group& x, long) {
            const Group weight = weights(x);
            for (int part = 0; part < PARTS; part++) added.part[part] = added.part[part] + weight.part[part];
        });
        total += sums[piece] = sum(added);
    }
    return total;
}

int64_t draw_within(const Row& row, Peak peak, float temperature, const Limits& limits, double uniform,
                    Scratch& scratch) {
    const Weights weights(peak.value, temperature);
    const float lowest =
        limits.min_p > 0 ? rounded_up(peak.value + temperature * std::log(std::min(limits.min_p, 1.0))) : LOWEST;
    Near near{scratch, peak.value};
    double goal = 0;
    if (limits.top_k >= row.count && !(limits.min_p > 0)) {
        const double total = add_up(row, weights, scratch.sums);
        goal = limits.top_p * total;
        if (goal <= 1) return peak.id;  // which has a weight of 1
        near.collect(row, bound_of_top_p(row, peak.value, temperature, limits.top_p, total));
        if (near.weigh(weights) < goal) {
            near.collect(row, LOWEST);
            near.weigh(weights);
        }
    } else {
        const float bound = limits.top_k < row.count ? bound_of_top_k(row, limits.top_k, scratch) : LOWEST;
        near.collect(row, std::max(lowest, bound));
        if (near.count > limits.top_k) near.cut(near.edge<false>((double)limits.top_k), false);
        goal = limits.top_p * near.weigh(weights);
    }
    if (limits.top_p < 1) near.cut(near.edge<true>(goal), true);
    return near.drawn(uniform);
}
