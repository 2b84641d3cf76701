// Choosing tokens: the largest logit of a row, or a draw by one uniform number and the inverse of the cumulative
// distribution in the order of ids; of all ids, or of those that a bit for each allows.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <vector>

namespace {

constexpr long PIECE = 512;  // ids whose weights are added up before they are told apart
constexpr long WORD = 32;    // ids that one word of a mask is about

// A row of logits, and what is allowed of it.
struct Row {
    const float* logits;
    long count;
    const uint32_t* words;  // null: everything is
    long size;              // of words; nothing is allowed behind them

    uint32_t word(long at) const { return at / WORD < size ? words[at / WORD] : 0; }

    // Whether nothing is allowed of the ids from `at` on, to the end of their word.
    bool none(long at) const { return words && word(at) == 0; }

    // LANES logits from `at` on, a multiple of LANES; -INFINITE what is past the end or not allowed.
    Floats values(long at) const {
        const long left = count - at;
        Floats x = widen_some(logits + at, left);
        for (long lane = left; lane < LANES; lane++) x[lane] = -INFINITE;
        if (words) {
            const Words bits = (all(word(at)) >> (lane_numbers() + (uint32_t)(at % WORD))) & 1u;
            x = bits != 0u ? x : all(-INFINITE);
        }
        return x;
    }
};

struct Peak {
    float value;
    int64_t id;
};

// The largest value and the lowest id that has it; NaN if there is one.
Peak peak_of(const Row& row) {
    Floats top = all(-INFINITE);
    Words where = all(0u), not_a_number = all(0u);
    const Words lanes = lane_numbers();
    for (long at = 0; at < row.count; at += LANES) {
        if (row.none(at)) continue;
        const Floats x = row.values(at);
        not_a_number |= (Words)(x != x);
        where = x > top ? lanes + (uint32_t)at : where;
        top = greater(x, top);
    }
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
    auto weights = [&](long at) { return exponential_down((row.values(at) - peak) * inverse); };
    const long pieces = (row.count + PIECE - 1) / PIECE;
    sums.resize(pieces);
    double total = 0;
    for (long piece = 0; piece < pieces; piece++) {
        Floats added{};
        for (long at = piece * PIECE; at < std::min(row.count, (piece + 1) * PIECE); at += LANES)
            if (!row.none(at)) added = added + weights(at);
        total += sums[piece] = sum(added);
    }
    const double target = uniform * total;
    double before = 0;
    long piece = 0;
    while (piece + 1 < pieces && before + sums[piece] <= target) before += sums[piece++];
    while (piece > 0 && sums[piece] == 0) before -= sums[--piece];  // rounding went past the last that weighs anything
    int64_t last = 0;
    for (long at = piece * PIECE; at < std::min(row.count, (piece + 1) * PIECE); at += LANES) {
        float part[LANES];
        store(part, weights(at));
        for (int lane = 0; lane < LANES; lane++) {
            if (part[lane] == 0) continue;
            before += part[lane];
            last = at + lane;
            if (before > target) return last;
        }
    }
    return last;
}

}  // namespace

extern "C" {

void leo_mask(void* pool, float* logits, int64_t columns, const int64_t* rows, const int64_t* slots, int64_t count,
              const uint32_t* words, int64_t size) {
    parallel(*(Pool*)pool, (int)count, [&](int number, int) {
        float* here = logits + rows[number] * columns;
        const Row row{here, columns, words + slots[number] * size, size};
        for (long at = 0; at < columns; at += LANES) narrow_some(here + at, row.values(at), columns - at);
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
