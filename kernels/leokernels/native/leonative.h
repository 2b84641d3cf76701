// The library's functions, in plain C, called through ctypes. Lengths are in elements unless said otherwise; `kind` is
// how numbers are stored. Tensors have no gaps. layer.py, network.py, sampling.py and following.py mirror the structures.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LEO_FLOAT32 = 0, LEO_BFLOAT16 = 1 };
enum { LEO_MOST_HEAD_DIM = 256 };

typedef struct {
    const void *x, *residual, *weight;  // [rows, hidden], the same or null, [hidden]
    void *normed, *summed;              // [rows, hidden]; summed may be residual
    int64_t rows, hidden;
    float eps;
} LeoNorm;

typedef struct {
    const void* gate_up;  // [rows, 2 * inner]
    void* out;            // [rows, inner]
    int64_t rows, inner;
} LeoGate;

typedef struct {
    const void* qkv;       // [rows, heads + 2 * kv_heads, head_dim]
    const float* angles;   // [rows, 2, head_dim / 2]: cosines and sines
    const int64_t* slots;  // [cached_rows]: block * block_size + offset, or -1
    void* query;           // [rows, heads, head_dim]
    void *keys, *values;   // [blocks, kv_heads, head_dim, block_size] and [blocks, kv_heads, block_size, head_dim]
    int64_t rows, cached_rows, heads, kv_heads, head_dim, block_size;  // head_dim: a multiple of 32, 256 at most
} LeoRope;

typedef struct {
    const void* query;         // [tokens, heads, head_dim]
    const void *keys, *values;  // as LeoRope's
    void* out;                 // as query
    const int32_t* query_start;  // [rows + 1]
    const int32_t* context_len;  // [rows]
    const int32_t* block_table;  // [rows, table_width]
    int64_t rows, table_width, heads, kv_heads, head_dim, block_size;  // block_size: a multiple of 16
    int64_t window;                                                     // 0: none
    float scale;
} LeoAttention;

// A network of the Llama family, and one step of it.
typedef struct {
    const void *attention_norm, *mlp_norm;          // [hidden]
    const void *qkv, *output, *gate_up, *down;      // packed: [(heads + 2 * kv_heads) * head_dim, hidden] and so on
    void *keys, *values;                            // as LeoRope's
} LeoLayer;

typedef struct {
    const LeoLayer* layers;
    const void *embedding, *norm;  // [vocabulary, hidden] not packed, [hidden]
    const float* angles;           // [positions, 2, head_dim / 2]
    int64_t vocabulary, positions;
    int64_t count, hidden, inner, heads, kv_heads, head_dim, block_size, window;  // count: of layers
    float eps, scale;
} LeoNetwork;

typedef struct {
    const int64_t *tokens, *positions, *slots;  // [tokens]; slots as LeoRope's
    const int32_t *query_start, *context_len, *block_table;  // as LeoAttention's
    const int64_t* wanted;                      // [outputs], rising: tokens that are wanted; null: all of them
    void* work;                                 // leo_forward_bytes long
    void* out;                                  // [outputs, hidden]: after the last norm
    int64_t count, rows, table_width, outputs;  // count: of tokens
} LeoForward;

// For each row of logits [rows, columns] one id: where its temperature is 0 that of the largest logit, the lowest if
// there are several; else in proportion to exp(logit / temperature) the first whose cumulative weight exceeds uniform,
// from [0, 1), times the total. An id of weight 0 is never drawn. A row whose slot is not -1 has what leo_mask leaves.
// Of a row that is drawn the limits leave, one after the other: what is at least min_p times as likely as the most
// likely; the top_k most likely; the fewest most likely that have at least top_p of the mass that is left by then, and
// always one. More likely is the larger logit, and among equal ones the lower id.
typedef struct {
    const float* logits;        // [rows, columns]
    const float* temperatures;  // [rows]
    const double* uniforms;     // [rows]
    const int64_t* top_k;       // [rows], from 1 on, or null: no row has limits; from `columns` on: no limit
    const double* top_p;        // [rows], where top_k is not null; 1: no limit
    const double* min_p;        // [rows], where top_k is not null, up to 1; 0: no limit
    const int64_t* slots;       // [rows], or null: no row is masked
    const uint32_t* words;      // [.., size]
    float* peaks;               // [rows]: the largest logit that is allowed, NaN where one is
    int64_t* ids;               // [rows]; without meaning where the peak is not finite
    int64_t rows, columns, size;
} LeoChoice;

// What moves parsers on: llguidance's llg_commit_token and llg_compute_mask, and what they tell (LlgCommitResult and
// LlgMaskResult). They may run at the same time for different parsers.
typedef struct {
    const uint32_t* tokens;
    uint32_t count;
    bool stop;
} LeoCommitted;

typedef struct {
    const uint32_t* words;  // the mask, as leo_mask takes it; null where nothing can follow
    float temperature;
    bool stop;  // nothing can follow
} LeoAllowed;

typedef struct {
    int32_t (*commit)(void* parser, uint32_t token, LeoCommitted* told);  // not 0: it cannot go on
    int32_t (*mask)(void* parser, LeoAllowed* told);                      // likewise; before each commit there is one
} LeoParsers;

typedef struct {
    void* parser;
    uint32_t* words;  // the mask: all 0 of one that cannot go on, as it was where nothing can follow
    int64_t bytes;    // of the mask
    uint32_t token;   // that was chosen
    int32_t state;    // at the end 1, or 3 where nothing can follow, or 5 where it cannot go on
} LeoFollow;

#ifdef __cplusplus
extern "C" {
#endif

int leo_version(void);
void* leo_pool_new(int threads);
void leo_pool_delete(void* pool);

int64_t leo_packed_bytes(int kind, int64_t columns, int64_t depth);
// weight [columns, depth] -> packed, leo_packed_bytes long
void leo_pack(void* pool, int kind, const void* weight, int64_t columns, int64_t depth, void* packed);
// x [rows, depth] times the packed weight's transpose -> y [rows, columns], of `kind`, or float32 if `wide`
void leo_multiply(void* pool, int kind, int wide, const void* x, const void* packed, void* y, int64_t rows,
                  int64_t columns, int64_t depth);
// These weights come next: threads that have nothing to do begin to fetch them. Says nothing of what is computed.
void leo_expect(void* pool, int kind, const void* packed, int64_t rows, int64_t columns, int64_t depth);

void leo_norm(void* pool, int kind, const LeoNorm* job);
void leo_gate(void* pool, int kind, const LeoGate* job);
void leo_rope(void* pool, int kind, const LeoRope* job);
void leo_attention(void* pool, int kind, const LeoAttention* job);

// Every layer: writes keys and values, and gives the hidden states that are wanted. Not 0: a token or a position is none
// of the network's, and nothing was done.
int leo_forward(void* pool, int kind, const LeoNetwork* network, const LeoForward* job);
int64_t leo_forward_bytes(int kind, const LeoNetwork* network, int64_t tokens);

// Of logits [.., columns], in each of the `count` rows named, what is not allowed becomes -infinity. words [.., size]: in
// row slots[i], id k of rows[i] is allowed if bit k % 32 of word k / 32 is set.
void leo_mask(void* pool, float* logits, int64_t columns, const int64_t* rows, const int64_t* slots, int64_t count,
              const uint32_t* words, int64_t size);
void leo_choose(void* pool, const LeoChoice* job);

// One that moves parsers on with the threads of a pool; to be used by the thread that runs the pool's jobs.
void* leo_follower_new(void* pool, const LeoParsers* parsers);
void leo_follower_delete(void* follower);
// Begin to give each parser its token and to make the masks. Rows and masks are the follower's until leo_followed.
void leo_follow(void* follower, LeoFollow* rows, int64_t count);
// How many rows have a token that nothing can follow, once all is done; -1: it is not, and the caller was not to wait.
int leo_followed(void* follower, int wait);

// Tokens by id, one after the other; those without a length are not used. `most`: bytes of a text that are spelled.
void* leo_speller_new(const char* bytes, const uint32_t* lengths, int64_t count, int64_t most);
void leo_speller_delete(void* speller);
// The longest token that fits each time, until none does. Writes at most `room`, and gives how many there are. Any
// thread may call it. (llguidance's LlgTokenizeFn.)
size_t leo_spell(const void* speller, const uint8_t* bytes, size_t length, uint32_t* out, size_t room);

#ifdef __cplusplus
}
#endif
