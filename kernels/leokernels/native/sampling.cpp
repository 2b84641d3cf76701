// Drawing tokens: one uniform number a row, and the inverse of the cumulative distribution in the order of ids.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <vector>

namespace {

constexpr long PIECE = 512;  // ids whose weights are added up before they are told apart

struct Softmax {
    const float* logits;
    long count;
    float peak, inverse;  // of the temperature

    // exp((logit - peak) / temperature) of ids from `at` on; past the end 0.
    Floats weights(long at) const {
        const long left = count - at;
        Floats x = exponential((widen_some(logits + at, left) - peak) * inverse);
        for (long lane = left; lane < LANES; lane++) x[lane] = 0;
        return x;
    }
};

float largest_of(const float* logits, long count) {
    Floats top = all(-INFINITE);
    long at = 0;
    for (; at + LANES <= count; at += LANES) top = greater(top, load<Floats>(logits + at));
    float found = largest(top);
    for (; at < count; at++) found = std::max(found, logits[at]);
    return found;
}

int64_t draw(const float* logits, long count, float temperature, double uniform, std::vector<double>& sums) {
    const Softmax softmax{logits, count, largest_of(logits, count), 1.0f / temperature};
    const long pieces = (count + PIECE - 1) / PIECE;
    sums.resize(pieces);
    double total = 0;
    for (long piece = 0; piece < pieces; piece++) {
        Floats added{};
        for (long at = piece * PIECE; at < std::min(count, (piece + 1) * PIECE); at += LANES)
            added = added + softmax.weights(at);
        total += sums[piece] = sum(added);
    }
    const double target = uniform * total;
    double before = 0;
    long piece = 0;
    while (piece + 1 < pieces && before + sums[piece] <= target) before += sums[piece++];
    while (piece > 0 && sums[piece] == 0) before -= sums[--piece];  // rounding went past the last that weighs anything
    int64_t last = 0;
    for (long at = piece * PIECE; at < std::min(count, (piece + 1) * PIECE); at += LANES) {
        float part[LANES];
        store(part, softmax.weights(at));
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

extern "C" void leo_draw(void* pool, const float* logits, int64_t columns, const int64_t* rows, const float* temperatures,
                         const double* uniforms, int64_t* ids, int64_t count) {
    parallel(*(Pool*)pool, (int)count, [&](int number, int) {
        static thread_local std::vector<double> sums;
        ids[number] = draw(logits + rows[number] * columns, columns, temperatures[number], uniforms[number], sums);
    });
}
