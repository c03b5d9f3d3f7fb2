/* A decoder layer's operators for a CPU, in float32.
 *
 * A decode step has few rows, so its time is the time to read: every weight once, every key and
 * value once. BLAS libraries are made for the other case, many rows, and read at a third of what
 * memory can give. `linear` and `paged_attention` read in order, ask for what comes next while they
 * compute, and copy nothing; the small operators between them pass over their data once.
 * `minivllm/models/cpu_kernels.py` compiles them on first use and calls them.
 *
 * Arrays are row-major; where rows do not lie one after the other, a stride says how far apart they
 * begin. Widths are multiples of 8. Each result is summed in one fixed order, whatever the number of
 * rows or threads: the same row gives the same bits in any batch.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define UNROLL _Pragma("GCC unroll 16")
/* Loads stay below this line. Left free, GCC loads all rows first, has no registers for the sums
 * then, and keeps some in memory: a quarter of the speed is lost. */
#define IN_ORDER __asm__ volatile("" ::: "memory")
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec value) { *(vec *)to = value; }

static inline float sum(vec v) {
    float total = 0;
    UNROLL for (int lane = 0; lane < LANES; lane++) total += v[lane];
    return total;
}

/* Sums of four vectors, by halves: a tree of shuffles and adds instead of 28 adds. */
static inline vec4 sum_four(vec a, vec b, vec c, vec d) {
    ivec even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
    vec ab = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    vec cd = __builtin_shuffle(c, d, even) + __builtin_shuffle(c, d, odd);
    vec all = __builtin_shuffle(ab, cd, (ivec){0, 1, 8, 9, 4, 5, 12, 13})
            + __builtin_shuffle(ab, cd, (ivec){2, 3, 10, 11, 6, 7, 14, 15});
    union { vec whole; vec4 half[2]; } halves = {all};
    return halves.half[0] + halves.half[1];
}

/* --- tiles of products ------------------------------------------------------------------- */

#define TILE_OUT 4 /* rows of w at a time ... */
#define TILE_ROWS 3 /* ... by rows of x: 12 running sums fit a core's 16 vector registers */

/* Rows of some array: where the first begins, and how far it is to the next. */
typedef struct { const float *at; int64_t stride; } rows_of;

/* y[r][o] = x[r] · w[o] (or +=, to accumulate), for a few rows of each. While it computes it asks
 * memory for two rows at `next`, which will be wanted soon: a few at a time, or it would wait. */
static inline __attribute__((always_inline)) void
tile(int num_out, int num_rows, float *y, int64_t y_stride, rows_of x, rows_of w, rows_of next,
     int64_t columns, int accumulate) {
    vec sums[TILE_OUT][TILE_ROWS];
    UNROLL for (int o = 0; o < num_out; o++)
        UNROLL for (int r = 0; r < num_rows; r++) sums[o][r] = (vec){0};
    _Pragma("GCC unroll 2") for (int64_t k = 0; k < columns; k += LANES) {
        if (next.at) {
            __builtin_prefetch(next.at + k);
            __builtin_prefetch(next.at + next.stride + k);
        }
        vec xs[TILE_ROWS];
        UNROLL for (int r = 0; r < num_rows; r++) xs[r] = load(x.at + r * x.stride + k);
        UNROLL for (int o = 0; o < num_out; o++) {
            vec ws = load(w.at + o * w.stride + k);
            UNROLL for (int r = 0; r < num_rows; r++) sums[o][r] += ws * xs[r];
            IN_ORDER;
        }
    }
    UNROLL for (int r = 0; r < num_rows; r++) {
        vec more[3] = {0}; /* num_out is 4 or 1 */
        if (num_out > 1) more[0] = sums[1][r], more[1] = sums[2][r], more[2] = sums[3][r];
        vec4 results = sum_four(sums[0][r], more[0], more[1], more[2]);
        float *to = y + r * y_stride;
        if (num_out > 1)
            *(vec4 *)to = results + (accumulate ? *(vec4 *)to : (vec4){0});
        else
            to[0] = results[0] + (accumulate ? to[0] : 0);
    }
}

/* The same for any number of rows up to a tile's. Not inlined: among a caller's variables a sum
 * would be left without a register. */
static __attribute__((noinline)) void
tile_of(int64_t num_out, int64_t num_rows, float *y, int64_t y_stride, rows_of x, rows_of w,
        rows_of next, int64_t columns, int accumulate) {
    if (num_out == TILE_OUT && num_rows == 3)
        tile(TILE_OUT, 3, y, y_stride, x, w, next, columns, accumulate);
    else if (num_out == TILE_OUT && num_rows == 2)
        tile(TILE_OUT, 2, y, y_stride, x, w, next, columns, accumulate);
    else if (num_out == TILE_OUT)
        tile(TILE_OUT, 1, y, y_stride, x, w, next, columns, accumulate);
    else
        for (int64_t o = 0; o < num_out; o++)
            for (int64_t r = 0; r < num_rows; r++)
                tile(1, 1, y + r * y_stride + o, 0, (rows_of){x.at + r * x.stride, 0},
                     (rows_of){w.at + o * w.stride, 0}, (rows_of){0}, columns, accumulate);
}

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* --- linear: y = x Wᵀ ------------------------------------------------------------------- */

#define TILE_COLUMNS 576 /* so many of four weight rows (and three rows of x) stay in L1 */
#define BLOCK_FLOATS 65536 /* so much of x stays in a core's L2, while all weights pass by: 256 KiB */

/* x [rows, in], w [out, in] -> y [rows, out], or y + that, to `accumulate`. */
void linear(float *y, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t out_features, int64_t in_features, int accumulate, int num_threads) {
    int64_t num_groups = (out_features + TILE_OUT - 1) / TILE_OUT;
    int64_t num_blocks = (rows * in_features + BLOCK_FLOATS - 1) / BLOCK_FLOATS;
    int64_t block = (rows / max(num_blocks, 1) / TILE_ROWS + 1) * TILE_ROWS;
    for (int64_t first = 0; first < rows; first += block, x += block * x_stride, y += block * out_features) {
        int64_t block_rows = min(rows - first, block);
        #pragma omp parallel for schedule(static) num_threads(num_threads)
        for (int64_t group = 0; group < num_groups; group++) {
            int64_t out = group * TILE_OUT, num_out = min(out_features - out, TILE_OUT);
            for (int64_t k = 0; k < in_features; k += TILE_COLUMNS) {
                int64_t columns = min(in_features - k, TILE_COLUMNS);
                rows_of weights = {w + out * in_features + k, in_features};
                /* What this thread reads next: more columns of these rows, or the rows below. */
                const float *next = k + columns < in_features ? weights.at + columns
                                  : w + (out + TILE_OUT) * in_features;
                int more = out + 2 * TILE_OUT <= out_features && block_rows > TILE_ROWS;
                for (int64_t row = 0; row < block_rows; row += TILE_ROWS) {
                    int64_t ahead = row / TILE_ROWS * 2; /* each tile asks for two of them */
                    rows_of coming = {more && ahead < TILE_OUT ? next + ahead * in_features : 0,
                                      in_features};
                    tile_of(num_out, min(block_rows - row, TILE_ROWS), y + row * out_features + out,
                            out_features, (rows_of){x + row * x_stride + k, x_stride}, weights,
                            coming, columns, accumulate || k > 0);
                }
            }
        }
    }
}

/* --- between the products ------------------------------------------------------------------------ */

#define FEW_ROWS 4 /* not worth waking other threads for */

/* y = x / rms(x) * weight, row by row (Zhang & Sennrich 2019). */
void rms_norm(float *y, const float *x, const float *weight, int64_t rows, int64_t width, float eps,
              int num_threads) {
    #pragma omp parallel for schedule(static) num_threads(num_threads) if (rows > FEW_ROWS)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        vec squares[2] = {0}; /* two sums: an add need not wait for the one before it */
        for (int64_t i = 0; i < width; i += LANES)
            squares[i / LANES % 2] += load(from + i) * load(from + i);
        float scale = 1 / sqrtf(sum(squares[0] + squares[1]) / width + eps);
        for (int64_t i = 0; i < width; i += LANES)
            store(y + row * width + i, load(from + i) * scale * load(weight + i));
    }
}

/* e^x for x <= 0: 2^n times a polynomial (Cephes' expf), eight at a time. Below -87 it is 0. */
static inline vec exp_vec(vec x) {
    ivec i = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec); /* log2(e) */
    vec n = __builtin_convertvector(i, vec);
    vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = ((((1.9875691500e-4f * f + 1.3981999507e-3f) * f + 8.3334519073e-3f) * f
              + 4.1665795894e-2f) * f + 1.6666665459e-1f) * f + 5.0000001201e-1f;
    ivec result = (ivec)(p * f * f + f + 1.0f) + (i << 23);
    return (vec)(result & (x > -87.0f));
}

/* The first half of each row of gate_up [rows, 2 * width] becomes silu(gate) * up. */
void silu_and_mul(float *gate_up, int64_t rows, int64_t width, int num_threads) {
    #pragma omp parallel for schedule(static) num_threads(num_threads) if (rows > FEW_ROWS)
    for (int64_t row = 0; row < rows; row++) {
        float *gate = gate_up + row * 2 * width;
        for (int64_t i = 0; i < width; i += LANES) {
            vec g = load(gate + i), one = (vec){0} + 1.0f;
            vec e = exp_vec((vec)((ivec)g | INT32_MIN)); /* e^-|g|: it cannot overflow */
            ivec negative = g < 0;
            vec numerator = (vec)(((ivec)e & negative) | ((ivec)one & ~negative));
            store(gate + i, g * numerator / (one + e) * load(gate + width + i));
        }
    }
}

/* Turn the queries and keys in qkv [rows, (heads + 2 * kv_heads) * dim] by their positions (RoPE, Su
 * et al. 2021), in place, and put keys and values into their slots of the cache. cos and sin are
 * [positions, dim], sin negative in the first half. */
void rotate_and_store(float *qkv, const float *cos, const float *sin, const int64_t *positions,
                      const int64_t *slots, float *keys, float *values, int64_t rows,
                      int64_t num_heads, int64_t num_kv_heads, int64_t dim, int num_threads) {
    int64_t half = dim / 2, kv_width = num_kv_heads * dim;
    #pragma omp parallel for schedule(static) num_threads(num_threads) if (rows > FEW_ROWS)
    for (int64_t row = 0; row < rows; row++) {
        float *heads = qkv + row * (num_heads * dim + 2 * kv_width);
        const float *c = cos + positions[row] * dim, *s = sin + positions[row] * dim;
        for (float *head = heads; head < heads + (num_heads + num_kv_heads) * dim; head += dim)
            for (int64_t i = 0; i < half; i += LANES) {
                vec first = load(head + i), second = load(head + half + i);
                store(head + i, first * load(c + i) + second * load(s + i));
                store(head + half + i, second * load(c + half + i) + first * load(s + half + i));
            }
        const float *key = heads + num_heads * dim, *value = key + kv_width;
        for (int64_t i = 0; i < kv_width; i += LANES) {
            store(keys + slots[row] * kv_width + i, load(key + i));
            store(values + slots[row] * kv_width + i, load(value + i));
        }
    }
}

/* --- paged attention ------------------------------------------------------------------------------ */

#define MAX_HEADS 128
#define MAX_GROUP 16 /* query heads that share a key/value head */
#define SLICE 16 /* keys that are looked at in one turn */

/* Where the keys and values of a few tokens lie, of one head; `stride` apart. keys 0: nowhere. */
typedef struct { const float *keys, *values; int64_t stride; } tokens;

/* result[g] = result[g] * shrink[g] + weights[g] · values, for a few heads. While it computes it asks
 * memory for the tokens at `next`. */
static inline __attribute__((always_inline)) void
add_values(int num_heads, float *result, int64_t dim, const float *shrink,
           const float weights[][SLICE], tokens at, tokens next, int64_t count) {
    int64_t d = 0;
    for (; d + 4 * LANES <= dim; d += 4 * LANES) {
        vec sums[TILE_ROWS][4];
        UNROLL for (int g = 0; g < num_heads; g++)
            UNROLL for (int v = 0; v < 4; v++)
                sums[g][v] = load(result + g * dim + d + v * LANES) * shrink[g];
        for (int64_t t = 0; t < count; t++) {
            if (next.keys)
                UNROLL for (int i = 0; i < 4 * LANES; i += 16) {
                    __builtin_prefetch(next.keys + t * next.stride + d + i);
                    __builtin_prefetch(next.values + t * next.stride + d + i);
                }
            vec of[TILE_ROWS];
            UNROLL for (int g = 0; g < num_heads; g++) {
                float w = weights[g][t];
                of[g] = (vec){w, w, w, w, w, w, w, w};
            }
            UNROLL for (int v = 0; v < 4; v++) {
                vec value = load(at.values + t * at.stride + d + v * LANES);
                UNROLL for (int g = 0; g < num_heads; g++) sums[g][v] += of[g] * value;
                IN_ORDER;
            }
        }
        UNROLL for (int g = 0; g < num_heads; g++)
            UNROLL for (int v = 0; v < 4; v++) store(result + g * dim + d + v * LANES, sums[g][v]);
    }
    for (; d < dim; d += LANES)
        for (int g = 0; g < num_heads; g++) {
            vec sums = load(result + g * dim + d) * shrink[g];
            for (int64_t t = 0; t < count; t++)
                sums += weights[g][t] * load(at.values + t * at.stride + d);
            store(result + g * dim + d, sums);
        }
}

static inline vec larger(vec a, vec b) {
    ivec first = a > b;
    return (vec)(((ivec)a & first) | ((ivec)b & ~first));
}

static inline float largest(vec v) {
    v = larger(v, __builtin_shuffle(v, (ivec){4, 5, 6, 7, 0, 1, 2, 3}));
    v = larger(v, __builtin_shuffle(v, (ivec){2, 3, 0, 1, 6, 7, 4, 5}));
    return larger(v, __builtin_shuffle(v, (ivec){1, 0, 3, 2, 5, 4, 7, 6}))[0];
}

/* Scores of up to SLICE keys become weights; `shrink` is what the sums so far must be multiplied by,
 * since there is a new highest score (the running softmax of FlashAttention, Dao et al. 2022). */
static inline void
softmax_slice(int64_t group, float weights[][SLICE], int64_t count, float scale, float *highest,
              float *total, float shrink[MAX_GROUP]) {
    for (int64_t g = 0; g < group; g++) {
        for (int64_t t = count; t < SLICE; t++) weights[g][t] = -INFINITY;
        vec peak = load(weights[g]);
        UNROLL for (int64_t t = LANES; t < SLICE; t += LANES) peak = larger(peak, load(weights[g] + t));
        float before = highest[g], now = largest(peak) * scale;
        highest[g] = now > before ? now : before;
        shrink[g] = before - highest[g];
    }
    for (int64_t g = 0; g < group; g += LANES) store(shrink + g, exp_vec(load(shrink + g)));
    for (int64_t g = 0; g < group; g++) {
        vec sums = {0};
        UNROLL for (int64_t t = 0; t < SLICE; t += LANES) {
            vec weight = exp_vec(load(weights[g] + t) * scale - highest[g]);
            store(weights[g] + t, weight);
            sums += weight;
        }
        total[g] = total[g] * shrink[g] + sum(sums);
    }
}

/* One slice of keys for the heads that share them. */
static inline void
attend(int64_t group, const float *query, int64_t dim, tokens at, tokens next, int64_t count, float scale,
       float *result, float *highest, float *total) {
    float weights[MAX_GROUP][SLICE], shrink[MAX_GROUP];
    for (int64_t t = 0; t < count; t += TILE_OUT)
        for (int64_t g = 0; g < group; g += TILE_ROWS)
            tile_of(min(count - t, TILE_OUT), min(group - g, TILE_ROWS), &weights[g][t], SLICE,
                    (rows_of){query + g * dim, dim}, (rows_of){at.keys + t * at.stride, at.stride},
                    (rows_of){0}, dim, 0);
    softmax_slice(group, weights, count, scale, highest, total, shrink);
    for (int64_t g = 0; g < group; g += TILE_ROWS, next.keys = 0) {
        float *to = result + g * dim;
        if (group - g >= 3) add_values(3, to, dim, shrink + g, weights + g, at, next, count);
        else if (group - g == 2) add_values(2, to, dim, shrink + g, weights + g, at, next, count);
        else add_values(1, to, dim, shrink + g, weights + g, at, next, count);
    }
}

/* heads [rows, num_heads, D] are queries, and become what they attend to; keys, values [blocks,
 * block_size, kv_heads, D]; block_tables [requests, table_width]. A row belongs to request owners[row]
 * and sees its keys up to positions[row]. At most MAX_HEADS heads, of which MAX_GROUP share a kv head. */
void paged_attention(float *heads, int64_t heads_stride, const float *keys, const float *values,
                     const int64_t *block_tables, int64_t table_width, const int64_t *owners,
                     const int64_t *positions, int64_t rows, int64_t num_heads, int64_t num_kv_heads,
                     int64_t dim, int64_t block_size, float scale, int num_threads) {
    int64_t group = num_heads / num_kv_heads, stride = num_kv_heads * dim;
    /* A thread takes a row with all its heads, whose keys lie side by side; if rows are few, a head. */
    int64_t heads_per_task = rows >= 2 * num_threads ? num_kv_heads : 1;
    int64_t tasks_per_row = num_kv_heads / heads_per_task;
    #pragma omp parallel for schedule(dynamic) num_threads(num_threads)
    for (int64_t task = 0; task < rows * tasks_per_row; task++) {
        int64_t row = task / tasks_per_row, first_head = task % tasks_per_row * heads_per_task;
        int64_t num_task_heads = heads_per_task * group, context_len = positions[row] + 1, count;
        const int64_t *table = block_tables + owners[row] * table_width;
        float *result = heads + row * heads_stride + first_head * group * dim;
        float q[num_task_heads * dim];
        memcpy(q, result, sizeof q);
        float highest[MAX_HEADS], total[MAX_HEADS];
        for (int64_t h = 0; h < num_task_heads; h++) highest[h] = -INFINITY, total[h] = 0;
        memset(result, 0, sizeof q);

        for (int64_t start = 0; start < context_len; start += count) {
            count = min(min(block_size - start % block_size, SLICE), context_len - start);
            /* From a position in the sequence to a place in the cache: the block table. */
            int64_t slot = table[start / block_size] * block_size + start % block_size;
            int64_t after = start + count, next_slot = 0;
            if (after < context_len)
                next_slot = table[after / block_size] * block_size + after % block_size;
            for (int64_t head = 0; head < heads_per_task; head++) {
                int64_t here = slot * stride + (first_head + head) * dim;
                int64_t there = next_slot * stride + (first_head + head) * dim;
                tokens at = {keys + here, values + here, stride};
                tokens next = {after < context_len ? keys + there : 0, values + there, stride};
                int64_t h = head * group;
                attend(group, q + h * dim, dim, at, next, count, scale, result + h * dim, highest + h,
                       total + h);
            }
        }
        for (int64_t h = 0; h < num_task_heads; h++)
            for (int64_t d = 0; d < dim; d++) result[h * dim + d] /= total[h];
    }
}

/* --- a decode step in one call ------------------------------------------------------------------------ */

typedef struct {
    const float *input_norm, *qkv, *o, *post_attention_norm, *gate_up, *down;
} layer_weights;

/* All decoder layers for rows of one token each; hidden [rows, hidden_size] is changed in place. The
 * cache is [layers, 2, blocks, block_size, kv_heads, D], `half` floats from keys to values. `scratch`
 * has room for the widest of each row: hidden_size + (heads + 2 kv_heads) * D + 2 * inner floats. */
void decode(float *hidden, const layer_weights *layers, int64_t num_layers, float *scratch,
            float *kv_cache, int64_t half, const float *cos, const float *sin,
            const int64_t *positions, const int64_t *slots, const int64_t *owners,
            const int64_t *block_tables, int64_t table_width, int64_t rows, int64_t hidden_size,
            int64_t inner, int64_t num_heads, int64_t num_kv_heads, int64_t dim, int64_t block_size,
            float eps, float scale, int num_threads) {
    int64_t attended_width = num_heads * dim, qkv_width = attended_width + 2 * num_kv_heads * dim;
    float *normed = scratch, *qkv = normed + rows * hidden_size, *gate_up = qkv + rows * qkv_width;
    for (const layer_weights *layer = layers; layer < layers + num_layers; layer++, kv_cache += 2 * half) {
        float *keys = kv_cache, *values = kv_cache + half;
        rms_norm(normed, hidden, layer->input_norm, rows, hidden_size, eps, num_threads);
        linear(qkv, normed, hidden_size, layer->qkv, rows, qkv_width, hidden_size, 0, num_threads);
        rotate_and_store(qkv, cos, sin, positions, slots, keys, values, rows, num_heads, num_kv_heads,
                         dim, num_threads);
        paged_attention(qkv, qkv_width, keys, values, block_tables, table_width, owners, positions,
                        rows, num_heads, num_kv_heads, dim, block_size, scale, num_threads);
        linear(hidden, qkv, qkv_width, layer->o, rows, hidden_size, attended_width, 1, num_threads);
        rms_norm(normed, hidden, layer->post_attention_norm, rows, hidden_size, eps, num_threads);
        linear(gate_up, normed, hidden_size, layer->gate_up, rows, 2 * inner, hidden_size, 0,
               num_threads);
        silu_and_mul(gate_up, rows, inner, num_threads);
        linear(hidden, gate_up, 2 * inner, layer->down, rows, hidden_size, inner, 1, num_threads);
    }
}
