// Selection without sorting: those ids are collected that can matter, since a bound on the logits is known for each limit,
// and what is kept of them ends at an edge.
#include "truncation.h"

#include "edge.h"

namespace {

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
        Question<WEIGHTED> question{scratch.some.data(),   scratch.some_weights.data(), scratch.values.data(),
                                    scratch.weights.data(), count, least, peak};
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
        const auto group = [&](long at) { return group_at(weights + at); };
        return scratch.ids[inverse(scratch.sums, pieces, count, uniform, group)];
    }
};

// The least float32 that is not below it; LOWEST where it is beyond.
float rounded_up(double x) {
    const float near = (float)std::max(x, (double)LOWEST);
    return near < x ? std::nextafter(near, INFINITE) : near;
}

// A value that the top_k largest of a row are not below: it is the top_k-th of maxima of parts of the row.
float bound_of_top_k(const Row& row, int64_t top_k, Scratch& scratch) {
    const long maxima = (row.count + PIECE - 1) / PIECE * WORD;
    if (top_k > maxima) return LOWEST;
    Question<false> asked{scratch.some.data(), nullptr, scratch.maxima.data(), nullptr, maxima, LOWEST, INFINITE};
    asked.keep(LOWEST, true);
    return asked.count < top_k ? LOWEST : asked.edge((double)top_k).value;
}

// The ids below it have less than 1 - top_p of the mass together, however many they are: the others reach top_p.
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
        if (near.weigh(weights) < goal) {  // as top_p comes near to 1, the sums' rounding counts
            near.collect(row, LOWEST);
            goal = std::min(goal, near.weigh(weights));
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
