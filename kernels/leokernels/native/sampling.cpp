// Choosing tokens: the largest logit of a row, or a draw by one uniform number and the inverse of the cumulative
// distribution in the order of ids; of all ids, of those that a bit for each allows, or of the most likely of them.
#include "leonative.h"
#include "pool.h"
#include "truncation.h"

namespace {

// The largest value and the lowest id that has it; NaN if there is one. Leaves the row's maxima in `maxima`.
Peak peak_of(const Row& row, std::vector<float>& maxima) {
    Group most;
    Words not_a_number = all(0u);
    for (Floats& part : most.part) part = all(-INFINITE);
    for (long piece = 0; piece * PIECE < row.count; piece++) {
        Group top;
        for (Floats& part : top.part) part = all(-INFINITE);
        by_groups(row, piece * PIECE, std::min(row.count, (piece + 1) * PIECE), [&](const Group& x, long) {
            for (int part = 0; part < PARTS; part++) {
                not_a_number |= (Words)(x.part[part] != x.part[part]);
                top.part[part] = greater(x.part[part], top.part[part]);
            }
        });
        store(&maxima[piece * WORD], top);
        for (int part = 0; part < PARTS; part++) most.part[part] = greater(top.part[part], most.part[part]);
    }
    float value = -INFINITE;
    for (int part = 0; part < PARTS; part++) value = std::max(value, largest(most.part[part]));
    for (int lane = 0; lane < LANES; lane++)
        if (not_a_number[lane]) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (value == -INFINITE) return {value, 0};
    long piece = 0;
    while (!lanes_at_least(group_at(&maxima[piece * WORD]), value)) piece++;
    for (long at = piece * PIECE;; at += WORD)
        if (const uint32_t lanes = lanes_at_least(group_of(row, at, row.word(at)), value))
            return {value, at + __builtin_ctz(lanes)};
}

// In proportion to exp(value / temperature): the first id whose cumulative weight exceeds uniform times all.
int64_t draw(const Row& row, float peak, float temperature, double uniform, std::vector<double>& sums) {
    const Weights weights(peak, temperature);
    add_up(row, weights, sums);
    return inverse(sums, (row.count + PIECE - 1) / PIECE, row.count, uniform,
                   [&](long at) { return weights(group_of(row, at, row.word(at))); });
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
        static thread_local Scratch scratch;
        scratch.hold(job->columns);
        const int64_t slot = job->slots ? job->slots[number] : -1;
        const Row row{job->logits + number * job->columns, job->columns,
                      slot < 0 ? nullptr : job->words + slot * job->size, job->size};
        const Peak peak = peak_of(row, scratch.maxima);
        const float temperature = job->temperatures[number];
        const double uniform = job->uniforms[number];
        int64_t id = peak.id;
        if (temperature != 0 && std::isfinite(peak.value)) {
            Limits limits{job->columns, 1, 0};
            if (job->top_k) limits = {job->top_k[number], job->top_p[number], job->min_p[number]};
            id = limits.any(job->columns) ? draw_within(row, peak, temperature, limits, uniform, scratch)
                                          : draw(row, peak.value, temperature, uniform, scratch.sums);
        }
        job->peaks[number] = peak.value;
        job->ids[number] = id;
    });
}

}
