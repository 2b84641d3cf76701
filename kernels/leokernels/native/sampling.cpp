// Choosing tokens: the largest logit of a row, or a draw by one uniform number and the inverse of the cumulative
// distribution in the order of ids; of all ids, or of those that a bit for each allows.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <vector>

namespace {

constexpr long WORD = 32;    // ids that one word of a mask is about
constexpr long PIECE = 512;  // ids whose weights are added up before they are told apart

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
inline Floats allowed(Floats x, uint32_t bits) {
#if LANES == 16
    return (Floats)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITE), (__mmask16)bits, (__m512)x);
#else
    const Words flags = (all(bits) >> lane_numbers()) & 1u;
    return flags != 0u ? x : all(-INFINITE);
#endif
}

// `function` is called with vectors of logits from `begin` on, and the id of the first; those words are passed over of
// which nothing is allowed.
template <class Function>
inline void by_vectors(const Row& row, long begin, long end, Function&& function) {
    for (long at = begin; at < end; at += WORD) {
        const uint32_t bits = row.word(at);
        if (bits == ~0u)
            for (long lane = 0; lane < WORD; lane += LANES) function(load<Floats>(row.logits + at + lane), at + lane);
        else if (bits)
            for (long lane = 0; lane < std::min(WORD, end - at); lane += LANES)
                function(allowed(widen_some(row.logits + at + lane, row.count - at - lane), bits >> lane), at + lane);
    }
}

struct Peak {
    float value;
    int64_t id;
};

// The largest value and the lowest id that has it; NaN if there is one.
Peak peak_of(const Row& row) {
    Floats top = all(-INFINITE);
    Words where = all(0u), not_a_number = all(0u);
    const Words lanes = lane_numbers();
    by_vectors(row, 0, row.count, [&](Floats x, long at) {
        not_a_number |= (Words)(x != x);
        where = x > top ? lanes + (uint32_t)at : where;
        top = greater(x, top);
    });
    Peak found{-INFINITE, 0};
    for (int lane = 0; lane < LANES; lane++) {
        if (not_a_number[lane]) return {std::numeric_limits<float>::quiet_NaN(), 0};
        if (top[lane] > found.value || (top[lane] == found.value && top[lane] > -INFINITE && where[lane] < found.id))
            found = {top[lane], where[lane]};
    }
    return found;
}

// In proportion to exp((value - peak) / temperature): the first id whose cumulative weight exceeds uniform times all.
int64_t draw(const Row& row, float peak, float temperature, double uniform, std::vector<double>& sums) {
    const float inverse = 1.0f / temperature;
    auto weights = [&](Floats x) { return exponential_down((x - peak) * inverse); };
    const long pieces = (row.count + PIECE - 1) / PIECE;
    sums.resize(pieces);
    double total = 0;
    for (long piece = 0; piece < pieces; piece++) {
        Floats added{};
        by_vectors(row, piece * PIECE, std::min(row.count, (piece + 1) * PIECE),
                   [&](Floats x, long) { added = added + weights(x); });
        total += sums[piece] = sum(added);
    }
    const double target = uniform * total;
    double before = 0;
    long piece = 0;
    while (piece + 1 < pieces && before + sums[piece] <= target) before += sums[piece++];
    while (piece > 0 && sums[piece] == 0) before -= sums[--piece];  // rounding went past the last that weighs anything
    int64_t last = 0;
    bool found = false;
    by_vectors(row, piece * PIECE, std::min(row.count, (piece + 1) * PIECE), [&](Floats x, long at) {
        if (found) return;
        float part[LANES];
        store(part, weights(x));
        for (int lane = 0; lane < LANES && !found; lane++) {
            if (part[lane] == 0) continue;
            before += part[lane];
            last = at + lane;
            found = before > target;
        }
    });
    return last;
}

}  // namespace

extern "C" {

void leo_mask(void* pool, float* logits, int64_t columns, const int64_t* rows, const int64_t* slots, int64_t count,
              const uint32_t* words, int64_t size) {
    parallel(*(Pool*)pool, (int)count, [&](int number, int) {
        float* here = logits + rows[number] * columns;
        const Row row{here, columns, words + slots[number] * size, size};
        for (long at = 0; at < columns; at += LANES) {
            const Floats x = widen_some(here + at, columns - at);
            narrow_some(here + at, allowed(x, row.word(at / WORD * WORD) >> at % WORD), columns - at);
        }
    });
}

void leo_choose(void* pool, const LeoChoice* job) {
    parallel(*(Pool*)pool, (int)job->rows, [&](int number, int) {
        static thread_local std::vector<double> sums;
        const int64_t slot = job->slots ? job->slots[number] : -1;
        const Row row{job->logits + number * job->columns, job->columns,
                      slot < 0 ? nullptr : job->words + slot * job->size, job->size};
        const Peak peak = peak_of(row);
        const float temperature = job->temperatures[number];
        const bool draws = temperature != 0 && std::isfinite(peak.value);
        job->peaks[number] = peak.value;
        job->ids[number] = draws ? draw(row, peak.value, temperature, job->uniforms[number], sums) : peak.id;
    });
}

}
