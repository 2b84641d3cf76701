// The layers of a network one after the other, with nothing in between: the other threads find the next job at once.
#include "leonative.h"

#include <cstring>

namespace {

int64_t size_of(int kind) { return kind == LEO_BFLOAT16 ? 2 : 4; }

// What lies between the kernels, in one piece of memory.
struct Work {
    char* end;
    void *x, *residual, *normed, *qkv, *query, *mixed, *gate_up, *inner;
    float* angles;

    Work(int kind, const LeoNetwork& network, int64_t tokens, void* begin) : end((char*)begin) {
        const int64_t element = size_of(kind), query_size = network.heads * network.head_dim;
        auto take = [&](int64_t columns, int64_t bytes) {
            void* here = end;
            end += (tokens * columns * bytes + 63) / 64 * 64;
            return here;
        };
        x = take(network.hidden, element);
        residual = take(network.hidden, element);
        normed = take(network.hidden, element);
        qkv = take(query_size + 2 * network.kv_heads * network.head_dim, element);
        query = take(query_size, element);
        mixed = take(query_size, element);
        gate_up = take(2 * network.inner, element);
        inner = take(network.inner, element);
        angles = (float*)take(network.head_dim, sizeof(float));
    }
};

// Rows of a table, `bytes` long, by their numbers.
void gather(const void* table, const int64_t* numbers, int64_t count, int64_t bytes, void* to) {
    for (int64_t row = 0; row < count; row++)
        std::memmove((char*)to + row * bytes, (const char*)table + numbers[row] * bytes, bytes);
}

bool all_below(const int64_t* numbers, int64_t count, int64_t end) {
    for (int64_t at = 0; at < count; at++)
        if (numbers[at] < 0 || numbers[at] >= end) return false;
    return true;
}

struct Weight {
    const void* packed = nullptr;
    int64_t columns = 0, depth = 0;
};

struct Forward {
    void* pool;
    int kind;
    const LeoNetwork& network;
    const LeoForward& job;
    Work work;
    int64_t rows;  // that are still computed

    // `next`: the product after this one.
    void multiply(const void* x, const Weight& weight, void* y, const Weight& next) {
        if (next.packed) leo_expect(pool, kind, next.packed, rows, next.columns, next.depth);
        leo_multiply(pool, kind, 0, x, weight.packed, y, rows, weight.columns, weight.depth);
    }

    Weight qkv(const LeoLayer& layer) const {
        const LeoNetwork& n = network;
        return {layer.qkv, (n.heads + 2 * n.kv_heads) * n.head_dim, n.hidden};
    }
    Weight output(const LeoLayer& layer) const {
        return {layer.output, network.hidden, network.heads * network.head_dim};
    }
    Weight gate_up(const LeoLayer& layer) const { return {layer.gate_up, 2 * network.inner, network.hidden}; }
    Weight down(const LeoLayer& layer) const { return {layer.down, network.hidden, network.inner}; }

    // The sum of x and the residual, unless there is none yet, becomes the residual; its norm goes to `normed`.
    void norm(const void* weight, bool first, void* normed) {
        const LeoNorm norm{work.x,        first ? nullptr : work.residual, weight, normed,
                           work.residual, rows, network.hidden, network.eps};
        leo_norm(pool, kind, &norm);
    }

    void attend(const LeoLayer& layer) {
        const LeoNetwork& n = network;
        multiply(work.normed, qkv(layer), work.qkv, output(layer));
        const LeoRope rope{work.qkv, work.angles, job.slots, work.query, layer.keys, layer.values, rows,
                           rows, n.heads, n.kv_heads, n.head_dim, n.block_size};
        leo_rope(pool, kind, &rope);
        const LeoAttention attention{work.query, layer.keys, layer.values, work.mixed, job.query_start, job.context_len,
                                     job.block_table, job.rows, job.table_width, n.heads, n.kv_heads, n.head_dim,
                                     n.block_size, n.window, n.scale};
        leo_attention(pool, kind, &attention);
    }

    // From here on only what is wanted. The numbers rise, so that no row is overwritten before it has moved.
    void keep_wanted() {
        gather(work.mixed, job.wanted, job.outputs, network.heads * network.head_dim * size_of(kind), work.mixed);
        gather(work.residual, job.wanted, job.outputs, network.hidden * size_of(kind), work.residual);
        rows = job.outputs;
    }

    void run() {
        const LeoNetwork& n = network;
        gather(n.embedding, job.tokens, rows, n.hidden * size_of(kind), work.x);
        gather(n.angles, job.positions, rows, n.head_dim * (int64_t)sizeof(float), work.angles);
        for (int64_t number = 0; number < n.count; number++) {
            const LeoLayer& layer = n.layers[number];
            norm(layer.attention_norm, number == 0, work.normed);
            attend(layer);
            if (number == n.count - 1 && job.outputs < rows) keep_wanted();
            multiply(work.mixed, output(layer), work.x, gate_up(layer));
            norm(layer.mlp_norm, false, work.normed);
            multiply(work.normed, gate_up(layer), work.gate_up, down(layer));
            const LeoGate gate{work.gate_up, work.inner, rows, n.inner};
            leo_gate(pool, kind, &gate);
            const bool more = number < n.count - 1;
            multiply(work.inner, down(layer), work.x, more ? qkv(n.layers[number + 1]) : Weight{});
        }
        norm(n.norm, false, job.out);
    }
};

}  // namespace

extern "C" {

int64_t leo_forward_bytes(int kind, const LeoNetwork* network, int64_t tokens) {
    return (int64_t)(intptr_t)Work(kind, *network, tokens, nullptr).end;
}

int leo_forward(void* pool, int kind, const LeoNetwork* network, const LeoForward* job) {
    if (!all_below(job->tokens, job->count, network->vocabulary)) return -1;
    if (!all_below(job->positions, job->count, network->positions)) return -1;
    Forward{pool, kind, *network, *job, Work(kind, *network, job->count, job->work), job->count}.run();
    return 0;
}

}
