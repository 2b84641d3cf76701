// x Wᵀ on vectors of float32, whatever the weight is stored in.
//
// A panel is 2 vectors of columns. A block of rows by a few panels is kept in registers over the whole depth, so that
// each element is one chain of additions in the order of the depth: it has the same bits in a product of any number of
// rows. bfloat16 is widened as it is read, which is exact, and on Intel's processors without AMX faster than their
// products of pairs; PAIRS is for the others.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace {

constexpr int PANEL = 2 * LANES;  // columns
constexpr int WIDEST = 4;         // panels of one block
// Accumulators for so many rows, the weights and one element of x fit into the registers.
constexpr int MOST_ROWS = LANES == 16 ? 12 : 4;
constexpr long CHUNK_BYTES = 768 << 10;  // of rows of x that a thread works on: a part of the second-level cache
constexpr long TASK_NANOSECONDS = 15000;

// The weights of a panel, two steps of the depth at a time. Lanes are columns.
template <class T>
struct Panel;

template <>
struct Panel<float> {
    static constexpr long BYTES = 2 * PANEL * 4;  // of two steps
    static inline Floats even(const char* at, int vector) { return load<Floats>(at + vector * LANES * 4); }
    static inline Floats odd(const char* at, int vector) { return load<Floats>(at + PANEL * 4 + vector * LANES * 4); }
};

template <>
struct Panel<BFloat16> {
    static constexpr long BYTES = 2 * PANEL * 2;
    static inline Floats even(const char* at, int vector) {
        return same_bits<Floats>(load<Words>(at + vector * LANES * 4) << 16);
    }
    static inline Floats odd(const char* at, int vector) {
        return same_bits<Floats>(load<Words>(at + vector * LANES * 4) & 0xFFFF0000u);
    }
};

template <class T, class Out>
struct Job {
    const T* x;
    const char* packed;
    Out* y;
    long rows, columns, depth;
    long steps() const { return (depth + 1) / 2; }
    long panels() const { return (columns + PANEL - 1) / PANEL; }
    long panel_bytes() const { return steps() * Panel<T>::BYTES; }
};

// Rows of x as the kernel wants them, two steps of the depth at a time: one element of float32 after the other, or a
// pair of bfloat16 for processors that multiply pairs at full speed.
#if defined(PAIRS) && defined(__AVX512BF16__)
template <class T>
constexpr bool IN_PAIRS = sizeof(T) == 2;
static inline Floats multiply_pairs(Floats sums, Words x, Words w) {
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)w);
}
#else
template <class T>
constexpr bool IN_PAIRS = false;
static inline Floats multiply_pairs(Floats sums, Words, Words) { return sums; }
#endif
template <class T>
using Taken = std::conditional_t<IN_PAIRS<T>, uint32_t, float>;
template <class T>
constexpr long TAKEN = IN_PAIRS<T> ? 1 : 2;  // of two steps

// How far ahead weights are asked for, in bytes: measured, the nearer for one row, whose turn comes soonest.
constexpr long AHEAD_ONE = 2048, AHEAD = 4096;

template <int ROWS>
static inline void ask_for(const char* weights) {
    constexpr int LEVEL = ROWS == 1 ? 3 : 2;  // of __builtin_prefetch: 3 every cache, 2 all but the first
    __builtin_prefetch(weights, 0, LEVEL);
    if constexpr (LANES == 16) __builtin_prefetch(weights + 64, 0, LEVEL);  // two steps are two lines
}

// ROWS rows of x by PANELS panels from `first` on, over the whole depth. Weights `ahead` bytes on are asked for.
template <class T, class Out, int ROWS, int PANELS>
void block(const Job<T, Out>& job, const Taken<T>* x, long stride, long row, long first, long ahead) {
    constexpr int VECTORS = 2 * PANELS;
    // Every third row has a pointer; the two after it are reached by the stride, which saves registers.
    const Taken<T>* rows[(ROWS + 2) / 3];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r += 3) rows[r / 3] = x + r * stride;
    const char* weights = job.packed + first * job.panel_bytes();
    const long apart = job.panel_bytes();
    Floats sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c++) sums[r][c] = Floats{};
    const long steps = job.steps();
    for (long step = 0; step < steps; step++) {
        const char* at = weights + step * Panel<T>::BYTES;
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c += 2) ask_for<ROWS>(at + c / 2 * apart + ahead);
        if constexpr (IN_PAIRS<T>) {
            Words w[VECTORS];
#pragma GCC unroll 16
            for (int c = 0; c < VECTORS; c++) w[c] = load<Words>(at + c / 2 * apart + c % 2 * LANES * 4);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const Words pair = all(rows[r / 3][r % 3 * stride + step]);
#pragma GCC unroll 16
                for (int c = 0; c < VECTORS; c++) sums[r][c] = multiply_pairs(sums[r][c], pair, w[c]);
            }
        } else {
            Floats w[VECTORS];
#pragma GCC unroll 16
            for (int c = 0; c < VECTORS; c++) w[c] = Panel<T>::even(at + c / 2 * apart, c % 2);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const Floats one = all(rows[r / 3][r % 3 * stride + 2 * step]);
#pragma GCC unroll 16
                for (int c = 0; c < VECTORS; c++) sums[r][c] = fma(one, w[c], sums[r][c]);
            }
#pragma GCC unroll 16
            for (int c = 0; c < VECTORS; c++) w[c] = Panel<T>::odd(at + c / 2 * apart, c % 2);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const Floats one = all(rows[r / 3][r % 3 * stride + 2 * step + 1]);
#pragma GCC unroll 16
                for (int c = 0; c < VECTORS; c++) sums[r][c] = fma(one, w[c], sums[r][c]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        Out* out = job.y + (row + r) * job.columns;
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c++) {
            const long column = first * PANEL + c * LANES;
            if (column < job.columns) narrow_some(out + column, Stored<T>::round(sums[r][c]), job.columns - column);
        }
    }
}

template <class T, class Out, int ROWS>
void rows_by(const Job<T, Out>& job, const Taken<T>* x, long stride, long row, long first, long last,
             long ahead) {
    constexpr int WIDE = ROWS == 1 ? WIDEST : ROWS <= 3 ? 2 : 1;
    if (!ahead) ahead = ROWS == 1 ? AHEAD_ONE : AHEAD;
    for (; first + WIDE <= last; first += WIDE) block<T, Out, ROWS, WIDE>(job, x, stride, row, first, ahead);
    for (; first < last; first++) block<T, Out, ROWS, 1>(job, x, stride, row, first, ahead);
}

template <class T, class Out, int ROWS>
void some_rows(const Job<T, Out>& job, long count, const Taken<T>* x, long stride, long row, long first, long last,
             long ahead) {
    if (count == ROWS)
        rows_by<T, Out, ROWS>(job, x, stride, row, first, last, ahead);
    else if constexpr (ROWS > 1)
        some_rows<T, Out, ROWS - 1>(job, count, x, stride, row, first, last, ahead);
}

// A part of the rows as the kernel takes them, `stride` apart, with a depth made even by a zero.
template <class T>
void take_rows(const T* x, long rows, long depth, long stride, Taken<T>* to) {
    for (long row = 0; row < rows; row++) {
        const T* from = x + row * depth;
        Taken<T>* out = to + row * stride;
        if constexpr (IN_PAIRS<T>) {
            out[stride - 1] = 0;
            std::memcpy(out, from, depth * sizeof(T));
        } else {
            for (long at = 0; at < depth; at += LANES) narrow_some(out + at, widen_some(from + at, depth - at), depth - at);
            if (depth < stride) out[depth] = 0;
        }
    }
}

long split_evenly(long total, long most) {
    long parts = (total + most - 1) / most;
    return (total + parts - 1) / parts;
}

// How a product is cut into tasks: rows of x by panels.
struct Cut {
    long chunk, chunks;  // rows of a task, and how many such parts there are
    long group, groups;  // the same of panels

    template <class T, class Out>
    Cut(const Job<T, Out>& job, int threads) {
        const long stride = TAKEN<T> * job.steps();
        const long most = std::clamp(CHUNK_BYTES / (stride * 4), 2L * MOST_ROWS, 8L * MOST_ROWS);
        chunk = split_evenly(job.rows, most);
        chunks = (job.rows + chunk - 1) / chunk;
        // Panels of a task: enough to be worth taking, few enough to share. Reads at 17 bytes, computes at 60
        // operations a ns.
        const long panel_ns = std::max(job.panel_bytes() / 17, chunk * job.steps() * PANEL * 4 / 60) + 1;
        const long fair = std::max(1L, job.panels() * chunks / (4L * threads));
        group = std::max(1L, std::min(fair, TASK_NANOSECONDS / panel_ns) / WIDEST) * WIDEST;
        groups = (job.panels() + group - 1) / group;
    }
};

template <class T, class Out>
void multiply(Pool& pool, const Job<T, Out>& job) {
    if (!job.rows) return;
    const long stride = TAKEN<T> * job.steps();
    const Cut cut(job, pool.threads());
    std::vector<long> taken(pool.threads(), -1);
    parallel(pool, (int)(cut.chunks * cut.groups), [&](int task, int thread) {
        static thread_local std::vector<Taken<T>> rows_of_x;
        const long begin = task / cut.groups * cut.chunk, count = std::min(cut.chunk, job.rows - begin);
        const long first = task % cut.groups * cut.group, last = std::min(first + cut.group, job.panels());
        const long rows = split_evenly(count, MOST_ROWS);
        if (taken[thread] != begin) {
            if ((long)rows_of_x.size() < cut.chunk * stride) rows_of_x.resize(cut.chunk * stride);
            take_rows(job.x + begin * job.depth, count, job.depth, stride, rows_of_x.data());
            taken[thread] = begin;
        }
        // A few panels at a time by all rows: they stay in the cache from the first block of rows to the last.
        const long together = count <= 3 ? cut.group : 1;
        for (long panel = first; panel < last; panel += together)
            for (long row = 0; row < count; row += rows) {
                // The last of several blocks finds its panel in the cache: meanwhile the next one can be fetched.
                const long ahead = row && row + rows >= count ? job.panel_bytes() : 0;
                some_rows<T, Out, MOST_ROWS>(job, std::min(rows, count - row), rows_of_x.data() + row * stride, stride,
                                             begin + row, panel, std::min(panel + together, last), ahead);
            }
    });
}

// Each thread is told where its part of the weights begins. Where a weight is read once for many rows, computing is
// what takes the time.
template <class T>
void expect(Pool& pool, const Job<T, T>& job) {
    if (!job.rows || job.rows > MOST_ROWS) return;
    const Cut cut(job, pool.threads());
    for (int thread = 0; thread < pool.threads(); thread++) {
        const long first = pool.part(thread, (int)cut.groups) * cut.group;
        const long last = std::min(pool.part(thread + 1, (int)cut.groups) * cut.group, job.panels());
        pool.expect(thread, job.packed + first * job.panel_bytes(), (last - first) * job.panel_bytes());
    }
}

template <class T>
void pack_weight(Pool& pool, const T* weight, long columns, long depth, char* packed) {
    Job<T, T> job{nullptr, packed, nullptr, 0, columns, depth};
    parallel(pool, (int)job.panels(), [&](int panel, int) {
        for (long step = 0; step < job.steps(); step++) {
            char* to = packed + panel * job.panel_bytes() + step * Panel<T>::BYTES;
            for (int lane = 0; lane < PANEL; lane++) {
                const long column = (long)panel * PANEL + lane;
                for (int odd = 0; odd < 2; odd++) {
                    const long at = 2 * step + odd;
                    const bool inside = column < columns && at < depth;
                    const T value = inside ? weight[column * depth + at] : T{};
                    T* out = (T*)to;
                    if constexpr (sizeof(T) == 2)
                        out[2 * lane + odd] = value;  // the even one is the lower half
                    else
                        out[odd * PANEL + lane] = value;
                }
            }
        }
    });
}

}  // namespace

extern "C" {

int64_t leo_packed_bytes(int kind, int64_t columns, int64_t depth) {
    const long panels = (columns + PANEL - 1) / PANEL, steps = (depth + 1) / 2;
    return panels * steps * (kind == LEO_BFLOAT16 ? Panel<BFloat16>::BYTES : Panel<float>::BYTES);
}

void leo_pack(void* pool, int kind, const void* weight, int64_t columns, int64_t depth, void* packed) {
    if (kind == LEO_BFLOAT16)
        pack_weight(*(Pool*)pool, (const BFloat16*)weight, columns, depth, (char*)packed);
    else
        pack_weight(*(Pool*)pool, (const float*)weight, columns, depth, (char*)packed);
}

void leo_expect(void* pool, int kind, const void* packed, int64_t rows, int64_t columns, int64_t depth) {
    const char* weights = (const char*)packed;
    if (kind == LEO_BFLOAT16)
        expect(*(Pool*)pool, Job<BFloat16, BFloat16>{nullptr, weights, nullptr, rows, columns, depth});
    else
        expect(*(Pool*)pool, Job<float, float>{nullptr, weights, nullptr, rows, columns, depth});
}

void leo_multiply(void* pool, int kind, int wide, const void* x, const void* packed, void* y, int64_t rows,
                  int64_t columns, int64_t depth) {
    const char* weights = (const char*)packed;
    if (kind == LEO_FLOAT32)
        multiply(*(Pool*)pool, Job<float, float>{(const float*)x, weights, (float*)y, rows, columns, depth});
    else if (wide)
        multiply(*(Pool*)pool, Job<BFloat16, float>{(const BFloat16*)x, weights, (float*)y, rows, columns, depth});
    else
        multiply(*(Pool*)pool, Job<BFloat16, BFloat16>{(const BFloat16*)x, weights, (BFloat16*)y, rows, columns, depth});
}

}
