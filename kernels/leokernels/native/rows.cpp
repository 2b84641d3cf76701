// What a layer does between its matrix products, row by row, with the roundings of plain torch.
#include "leonative.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>

namespace {

constexpr long TASK_ELEMENTS = 16384;

// Rows in tasks of about so many elements.
template <class Function>
void by_rows(Pool& pool, long rows, long elements, Function&& function) {
    const long together = std::max(1L, TASK_ELEMENTS / std::max(1L, elements));
    parallel(pool, (int)((rows + together - 1) / together), [&](int task, int) {
        const long end = std::min(rows, (task + 1) * together);
        for (long row = task * together; row < end; row++) function(row);
    });
}

template <class T>
void norm_row(const T* x, const T* residual, const T* weight, float eps, long hidden, T* normed, T* summed) {
    Floats squares{};
    for (long at = 0; at < hidden; at += LANES) {
        const long left = hidden - at;
        Floats value = widen_some(x + at, left);
        if (residual) value = Stored<T>::round(widen_some(residual + at, left) + value);
        narrow_some(summed + at, value, left);
        squares = fma(value, value, squares);
    }
    const Floats factor = all(1.0f / std::sqrt(sum(squares) / (float)hidden + eps));
    for (long at = 0; at < hidden; at += LANES) {
        const long left = hidden - at;
        const Floats value = Stored<T>::round(widen_some(summed + at, left) * factor);
        narrow_some(normed + at, widen_some(weight + at, left) * value, left);
    }
}

template <class T>
void norm(Pool& pool, const LeoNorm& job) {
    by_rows(pool, job.rows, job.hidden, [&](long row) {
        const long at = row * job.hidden;
        const T* residual = job.residual ? (const T*)job.residual + at : nullptr;
        norm_row((const T*)job.x + at, residual, (const T*)job.weight, job.eps, job.hidden, (T*)job.normed + at,
                 (T*)job.summed + at);
    });
}

template <class T>
void gate(Pool& pool, const LeoGate& job) {
    by_rows(pool, job.rows, job.inner, [&](long row) {
        const T* gates = (const T*)job.gate_up + row * 2 * job.inner;
        const T* ups = gates + job.inner;
        T* out = (T*)job.out + row * job.inner;
        for (long at = 0; at < job.inner; at += LANES) {
            const long left = job.inner - at;
            const Floats x = widen_some(gates + at, left);
            const Floats silu = Stored<T>::round(x / (1.0f + exponential(-x)));
            narrow_some(out + at, silu * widen_some(ups + at, left), left);
        }
    });
}

// One head, rotated: element i is paired with i + head_dim / 2.
template <class T>
void rotate(const T* from, const float* cos, const float* sin, long half, T* to) {
    for (long at = 0; at < half; at += LANES) {
        const Floats first = Stored<T>::widen(from + at), second = Stored<T>::widen(from + half + at);
        const Floats c = load<Floats>(cos + at), s = load<Floats>(sin + at);
        Stored<T>::narrow(to + at, first * c - second * s);
        Stored<T>::narrow(to + half + at, second * c + first * s);
    }
}

template <class T>
void rope(Pool& pool, const LeoRope& job) {
    const long dim = job.head_dim, size = job.block_size, width = (job.heads + 2 * job.kv_heads) * dim;
    by_rows(pool, job.rows, width, [&](long row) {
        const T* from = (const T*)job.qkv + row * width;
        const float* cos = job.angles + row * dim;
        const float* sin = cos + dim / 2;
        T* query = (T*)job.query + row * job.heads * dim;
        for (long head = 0; head < job.heads; head++) rotate(from + head * dim, cos, sin, dim / 2, query + head * dim);
        if (row >= job.cached_rows || job.slots[row] < 0) return;
        const long block = job.slots[row] / size, offset = job.slots[row] % size;
        T turned[LEO_MOST_HEAD_DIM];
        for (long head = 0; head < job.kv_heads; head++) {
            const long page = (block * job.kv_heads + head) * dim * size;
            rotate(from + (job.heads + head) * dim, cos, sin, dim / 2, turned);
            T* keys = (T*)job.keys + page + offset;
            for (long at = 0; at < dim; at++) keys[at * size] = turned[at];
            std::memcpy((T*)job.values + page + offset * dim, from + (job.heads + job.kv_heads + head) * dim,
                        dim * sizeof(T));
        }
    });
}

}  // namespace

extern "C" {

void leo_norm(void* pool, int kind, const LeoNorm* job) {
    kind == LEO_BFLOAT16 ? norm<BFloat16>(*(Pool*)pool, *job) : norm<float>(*(Pool*)pool, *job);
}

void leo_gate(void* pool, int kind, const LeoGate* job) {
    kind == LEO_BFLOAT16 ? gate<BFloat16>(*(Pool*)pool, *job) : gate<float>(*(Pool*)pool, *job);
}

void leo_rope(void* pool, int kind, const LeoRope* job) {
    kind == LEO_BFLOAT16 ? rope<BFloat16>(*(Pool*)pool, *job) : rope<float>(*(Pool*)pool, *job);
}

}
