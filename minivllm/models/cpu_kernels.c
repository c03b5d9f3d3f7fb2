/* A decoder layer's operators for a CPU, in float32; matrices may have 16 or 8 bits a weight.
 *
 * A decode step has few rows, so its time is the time to read: every weight once, every key and
 * value once. BLAS libraries are made for the other case, many rows, and read at a third of what
 * memory can give. `linear` and `paged_attention` read in order, ask for what comes next while they
 * compute, and copy nothing; the small operators between them pass over their data once.
 * `minivllm/models/cpu_kernels.py` compiles them on first use and calls them.
 *
 * Arrays are row-major; where rows do not lie one after the other, a stride says how far apart they
 * begin. Widths are multiples of LANES, those of `linear`'s results of PANEL. Each result is summed in
 * one fixed order, whatever the number of rows or threads: the same row gives the same bits in any batch.
 *
 * One source for all processors: LANES is the number of floats in a vector register, and the tile of
 * `linear` is as large as there are registers. -DMAX_LANES=8 leaves half of an AVX-512 register unused.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef MAX_LANES
#define MAX_LANES 16
#endif
#ifdef LANES /* chosen by a test: the compiler takes wider vectors apart */
#elif defined __AVX512F__ && MAX_LANES >= 16
#define LANES 16
#elif defined __AVX2__ && defined __FMA__
#define LANES 8
#elif (defined __ARM_NEON && defined __aarch64__) || defined __wasm_simd128__
#define LANES 4
#else
#error "this processor has none of AVX2 with FMA, AVX-512, NEON, WebAssembly's SIMD"
#endif
#define LINE 16 /* floats that come from memory together: 64 bytes */
#ifdef __clang__ /* for WebAssembly; the two compilers have other names for the same */
#define UNROLL _Pragma("unroll")
#define SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
/* Loads stay below this line. Left free, GCC loads all rows first, has no registers for the sums
 * then, and keeps some in memory: a quarter of the speed is lost. */
#define IN_ORDER __asm__ volatile("" ::: "memory")
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec4 __attribute__((vector_size(16)));

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec value) { *(vec *)to = value; }

static inline vec broadcast(float x) { return x - (vec){0}; }

/* The quarters of a register of 16 floats, the halves of one of 8: added up. */
static inline vec4 sum_quads(vec v) {
    union { vec whole; vec4 quads[LANES / 4]; } parts = {v};
    vec4 total = parts.quads[0];
    UNROLL for (int quad = 1; quad < LANES / 4; quad++) total += parts.quads[quad];
    return total;
}

static inline float sum(vec v) {
    vec4 quad = sum_quads(v);
    return (quad[0] + quad[1]) + (quad[2] + quad[3]);
}

#if LANES == 4
#define IN_QUADS(a, b, c, d) a, b, c, d
#elif LANES == 8
#define IN_QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#else
#define IN_QUADS(a, b, c, d) \
    a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#endif

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* --- linear: y = x Wᵀ ------------------------------------------------------------------- */

/* A panel is outputs whose weights lie side by side, column by column. A tile takes a panel by rows of
 * x: 6 rows and 2 vectors are 12 running sums, for AVX2's 16 registers. AVX-512 and NEON have 32, for
 * 24 sums: of twice the rows, or of twice the vectors. */
#if LANES == 16
#define PANEL 32
#define TILE_ROWS 12
#define TILE_COLUMNS 192 /* so much of a panel (and a tile's rows of x) stays in L1 */
#elif defined __wasm_simd128__ /* which runs on processors with 16 registers too */
#define PANEL 8
#define TILE_ROWS 6
#define TILE_COLUMNS 576
#else
#define PANEL 16
#define TILE_ROWS 6
#define TILE_COLUMNS 288
#endif
#define PANEL_VECS (PANEL / LANES)
#define BLOCK_FLOATS 65536 /* so much of x stays in a core's L2, while all weights pass by: 256 KiB */
#define AHEAD (20 * PANEL) /* how far memory is asked for weights before they are wanted */

const int64_t lanes = LANES, panel_width = PANEL; /* for cpu_kernels.py */

/* w [out, in] -> packed [out / PANEL, in, PANEL]: in the order in which `linear` reads. */
void pack(float *packed, const float *w, int64_t out_features, int64_t in_features, int num_threads) {
    #pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t panel = 0; panel < out_features; panel += PANEL) {
        float *to = packed + panel * in_features;
        const float *from = w + panel * in_features;
        for (int64_t k = 0; k < in_features; k++)
            for (int64_t o = 0; o < PANEL; o++) to[k * PANEL + o] = from[o * in_features + k];
    }
}

/* bfloat16 is the upper half of a float. Two of a matrix's columns share the place of one float, the
 * first in the lower half: w [out, in] -> packed [out / PANEL, in / 2, PANEL]. */
void pack_bfloat16(uint32_t *packed, const uint16_t *w, int64_t out_features, int64_t in_features,
                   int num_threads) {
    int64_t pairs = in_features / 2;
    #pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t first = 0; first < out_features; first += PANEL)
        for (int64_t k = 0; k < pairs; k++)
            for (int64_t o = 0; o < PANEL; o++)
                memcpy(packed + first * pairs + k * PANEL + o, w + (first + o) * in_features + 2 * k, 4);
}

/* A GGUF's weights are small numbers, and BLOCK columns of an output share what makes floats of them:
 * scale * number + least. Kept so, less than a third is read; a weight becomes the same float when it is
 * wanted. Four columns share the place of one float, the first in the lowest byte. A block of a panel: */
#define BLOCK 32
typedef struct { float scale[PANEL], least[PANEL]; uint32_t numbers[BLOCK / 4][PANEL]; } byte_block;

/* numbers [out, in], scale and least [out, in / BLOCK] -> packed [out / PANEL, in / BLOCK]. */
void pack_bytes(byte_block *packed, const int8_t *numbers, const float *scale, const float *least,
                int64_t out_features, int64_t in_features, int num_threads) {
    int64_t blocks = in_features / BLOCK;
    #pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t first = 0; first < out_features; first += PANEL)
        for (int64_t block = 0; block < blocks; block++) {
            byte_block *to = packed + first / PANEL * blocks + block;
            for (int64_t o = 0; o < PANEL; o++) {
                int64_t from = (first + o) * blocks + block;
                to->scale[o] = scale[from], to->least[o] = least[from];
                for (int64_t k = 0; k < BLOCK / 4; k++) memcpy(&to->numbers[k][o], numbers + from * BLOCK + 4 * k, 4);
            }
        }
}

/* The product is exact, so that the sum is rounded once, fused or not: as who wrote the floats has them. */
static inline vec weights_of(ivec numbers, int byte, vec scale, vec least) {
    ivec number = numbers << (24 - 8 * byte) >> 24; /* with its sign */
    return __builtin_convertvector(number, vec) * scale + least;
}

static inline ivec load_numbers(const byte_block *block, int64_t four, int v) {
    return (ivec)load((const float *)block->numbers[four] + v);
}

#if LANES == 16 && defined __AVX512BF16__
#include <immintrin.h>
#define X_STEP 1 /* x is rounded to bfloat16 too, in pairs: one instruction takes 32 products */

static inline vec add_pairs(vec sums, const float *x, vec weights) {
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)broadcast(*x), (__m512bh)weights);
}

/* Rows of x as pairs of bfloat16, [rows, in / 2]; the next call overwrites them. */
static const float *as_pairs(const float *x, int64_t x_stride, int64_t rows, int64_t in_features,
                             int num_threads) {
    static _Thread_local uint16_t *rounded;
    static _Thread_local int64_t room;
    if (room < rows * in_features) {
        free(rounded);
        room = rows * in_features;
        if (!(rounded = malloc(room * sizeof *rounded))) abort(); /* there is nobody to tell */
    }
    uint16_t *to = rounded; /* this thread's, for the others */
    #pragma omp parallel for schedule(static) num_threads(num_threads) if (rows > 4)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < in_features; k += 16) {
            __mmask16 there = in_features - k >= 16 ? 0xffff : (1 << (in_features - k)) - 1;
            __m512 floats = _mm512_maskz_loadu_ps(there, x + row * x_stride + k);
            _mm256_mask_storeu_epi16(to + row * in_features + k, there, (__m256i)_mm512_cvtneps_pbh(floats));
        }
    return (const float *)to;
}
#else
#define X_STEP 2 /* x stays as it is; a weight becomes a float again */

static inline vec add_pairs(vec sums, const float *x, vec weights) {
    vec first = (vec)((ivec)weights << 16), second = (vec)((ivec)weights & (int32_t)0xffff0000);
    return sums + broadcast(x[0]) * first + broadcast(x[1]) * second;
}

/* Columns of a panel as floats: for many rows it is done once. The sums are the same to the bit. */
static void widen(float *to, const float *panel, int64_t columns) {
    for (int64_t i = 0; i < columns * PANEL; i += PANEL, panel += PANEL, to += 2 * PANEL)
        UNROLL for (int v = 0; v < PANEL; v += LANES) {
            ivec weights = (ivec)load(panel + v);
            store(to + v, (vec)(weights << 16));
            store(to + PANEL + v, (vec)(weights & (int32_t)0xffff0000));
        }
}
#endif

typedef struct { float *at; int64_t stride; } strided; /* rows that begin so far from each other */

static inline __attribute__((always_inline)) void
store_tile(int num_rows, strided y, strided so_far, vec sums[TILE_ROWS][PANEL_VECS]) {
    UNROLL for (int r = 0; r < num_rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECS; v++) {
            vec before = so_far.at ? load(so_far.at + r * so_far.stride + v * LANES) : (vec){0};
            store(y.at + r * y.stride + v * LANES, sums[r][v] + before);
        }
}

/* y[r][o] = x[r] · panel[o] + so_far[r][o], if there is any, for a few rows of x. */
static inline __attribute__((always_inline)) void
tile(int num_rows, strided y, strided so_far, const float *x, int64_t x_stride, const float *panel,
     int64_t columns, int ask_ahead) {
    vec sums[TILE_ROWS][PANEL_VECS] = {{{0}}}, weights[PANEL_VECS];
    _Pragma("GCC unroll 4") for (int64_t k = 0; k < columns; k++, panel += PANEL) {
        if (ask_ahead)
            UNROLL for (int o = 0; o < PANEL; o += LINE) __builtin_prefetch(panel + AHEAD + o);
        UNROLL for (int v = 0; v < PANEL_VECS; v++) weights[v] = load(panel + v * LANES);
        UNROLL for (int r = 0; r < num_rows; r++) {
            vec of_row = broadcast(x[r * x_stride + k]);
            UNROLL for (int v = 0; v < PANEL_VECS; v++) sums[r][v] += of_row * weights[v];
        }
        IN_ORDER;
    }
    store_tile(num_rows, y, so_far, sums);
}

/* The same for bfloat16: a column of the panel is two of the matrix. */
static inline __attribute__((always_inline)) void
tile_in_pairs(int num_rows, strided y, strided so_far, const float *x, int64_t x_stride,
              const float *panel, int64_t columns, int ask_ahead) {
    vec sums[TILE_ROWS][PANEL_VECS] = {{{0}}}, weights[PANEL_VECS];
    _Pragma("GCC unroll 4") for (int64_t pair = 0; pair < columns; pair++, panel += PANEL) {
        if (ask_ahead)
            UNROLL for (int o = 0; o < PANEL; o += LINE) __builtin_prefetch(panel + AHEAD + o);
        UNROLL for (int v = 0; v < PANEL_VECS; v++) weights[v] = load(panel + v * LANES);
        UNROLL for (int r = 0; r < num_rows; r++)
            UNROLL for (int v = 0; v < PANEL_VECS; v++)
                sums[r][v] = add_pairs(sums[r][v], x + r * x_stride + pair * X_STEP, weights[v]);
        IN_ORDER;
    }
    store_tile(num_rows, y, so_far, sums);
}

/* The same for blocks of bytes. Their floats are left in `wide`, if there is one, for the next tiles. */
static inline __attribute__((always_inline)) void
tile_in_bytes(int num_rows, strided y, strided so_far, const float *x, int64_t x_stride,
              const float *panel, int64_t columns, int ask_ahead, float *wide) {
    vec sums[TILE_ROWS][PANEL_VECS] = {{{0}}}, weights[PANEL_VECS];
    const byte_block *block = (const byte_block *)panel;
    for (int64_t start = 0; start < columns; start += BLOCK, block++) {
        vec scale[PANEL_VECS], least[PANEL_VECS];
        UNROLL for (int v = 0; v < PANEL_VECS; v++)
            scale[v] = load(block->scale + v * LANES), least[v] = load(block->least + v * LANES);
        for (int64_t four = 0; four < BLOCK / 4; four++) {
            if (ask_ahead)
                UNROLL for (int o = 0; o < PANEL; o += LINE) __builtin_prefetch(block->numbers[four] + AHEAD + o);
            UNROLL for (int byte = 0; byte < 4; byte++) {
                UNROLL for (int v = 0; v < PANEL_VECS; v++)
                    weights[v] = weights_of(load_numbers(block, four, v * LANES), byte, scale[v], least[v]);
                if (wide) {
                    UNROLL for (int v = 0; v < PANEL_VECS; v++) store(wide + v * LANES, weights[v]);
                    wide += PANEL;
                }
                UNROLL for (int r = 0; r < num_rows; r++) {
                    vec of_row = broadcast(x[r * x_stride + start + four * 4 + byte]);
                    UNROLL for (int v = 0; v < PANEL_VECS; v++) sums[r][v] += of_row * weights[v];
                }
                IN_ORDER;
            }
        }
    }
    store_tile(num_rows, y, so_far, sums);
}

/* The same for any number of rows up to a tile's. Not inlined: among a caller's variables a sum
 * would be left without a register. */
#if TILE_ROWS == 12
#define MORE_TILES(tile) \
    case 7: TILE(7, tile); break; \
    case 8: TILE(8, tile); break; \
    case 9: TILE(9, tile); break; \
    case 10: TILE(10, tile); break; \
    case 11: TILE(11, tile); break; \
    case 12: TILE(12, tile); break;
#else
#define MORE_TILES(tile)
#endif
#define TILE(rows, tile) tile(rows, y, so_far, x, x_stride, panel, columns, ask_ahead)
#define WIDENING_TILE(...) tile_in_bytes(__VA_ARGS__, wide)
#define TILE_OF(name, tile, ...) \
    static __attribute__((noinline)) void \
    name(int64_t num_rows, strided y, strided so_far, const float *x, int64_t x_stride, \
         const float *panel, int64_t columns, int ask_ahead __VA_ARGS__) { \
        /* Told so, GCC has a register more for the sums. */ \
        if (columns < 1 || columns > TILE_COLUMNS || ask_ahead >> 1) \
            __builtin_unreachable(); \
        switch (num_rows) { \
            case 1: TILE(1, tile); break; \
            case 2: TILE(2, tile); break; \
            case 3: TILE(3, tile); break; \
            case 4: TILE(4, tile); break; \
            case 5: TILE(5, tile); break; \
            case 6: TILE(6, tile); break; \
            MORE_TILES(tile) \
        } \
    }
TILE_OF(tile_of, tile)
TILE_OF(tile_of_pairs, tile_in_pairs)
TILE_OF(tile_of_bytes, WIDENING_TILE, , float *wide)

typedef enum { FLOATS, PAIRS, BYTES } kind; /* cpu_kernels.py has the same */

/* In PAIRS the columns of `packed`, of which there are `in_features`, are two of bfloat16 each. */
static inline __attribute__((always_inline)) void
product(kind of, float *y, const float *x, int64_t x_stride, const float *packed, int64_t rows,
        int64_t out_features, int64_t in_features, int accumulate, int num_threads) {
    int64_t x_step = of == PAIRS ? X_STEP : 1, slice = TILE_COLUMNS / x_step;
    /* Blocks of about equal size, and tiles: 8 rows are twice 4, not 6 and 2. */
    int64_t block = cdiv(rows, max(cdiv(rows * in_features * x_step, BLOCK_FLOATS), 1));
    int64_t num_tiles = max(cdiv(block, TILE_ROWS), 1), tile_rows = max(cdiv(block, num_tiles), 1);
    block = num_tiles * tile_rows;
    int64_t is_cut = in_features > slice;
    for (int64_t first = 0; first < rows; first += block, x += block * x_stride, y += block * out_features) {
        int64_t block_rows = min(rows - first, block);
        #pragma omp parallel for schedule(static) num_threads(num_threads)
        for (int64_t out = 0; out < out_features; out += PANEL) {
            /* Between a panel's slices: y's own lines may all have the same few places in L1. */
            float sums[is_cut ? block_rows * PANEL : 1];
            for (int64_t k = 0; k < in_features; k += slice) {
                int64_t columns = min(in_features - k, slice), is_wide = 0;
                const float *panel = packed + out * in_features + k * PANEL;
                float wide[of != FLOATS ? TILE_COLUMNS * PANEL : 1];
                if (of == BYTES) {
                    const byte_block *blocks = (const byte_block *)packed;
                    panel = (const float *)(blocks + (out / PANEL * in_features + k) / BLOCK);
                }
#if X_STEP == 2
                if (of == PAIRS && block_rows > TILE_ROWS) {
                    widen(wide, panel, columns);
                    panel = wide, columns *= 2, is_wide = 1;
                }
#endif
                /* The first tile waits for memory, the others find the panel in L1. A single row
                 * reads as fast as the processor itself looks ahead. */
                for (int64_t row = 0; row < block_rows; row += tile_rows) {
                    strided between = {sums + row * PANEL, PANEL}, end = {y + row * out_features + out, out_features};
                    if (of == BYTES && row == tile_rows) panel = wide, is_wide = 1;
#define THIS_TILE min(block_rows - row, tile_rows), k + slice < in_features ? between : end, \
                  k > 0 ? between : accumulate ? end : (strided){0}, \
                  x + row * x_stride + k * x_step, x_stride, panel, columns
                    if (of == PAIRS && !is_wide) tile_of_pairs(THIS_TILE, row == 0 && block_rows > 1);
                    else if (of == BYTES && !is_wide)
                        tile_of_bytes(THIS_TILE, row == 0 && block_rows > 1, block_rows > tile_rows ? wide : NULL);
                    else tile_of(THIS_TILE, row == 0 && block_rows > 1 && !is_wide);
                }
            }
        }
    }
}

/* x [rows, in], packed weights -> y [rows, out], or y + that, to `accumulate`. */
void linear(float *y, const float *x, int64_t x_stride, const float *packed, int64_t rows,
            int64_t out_features, int64_t in_features, int accumulate, int num_threads) {
    product(FLOATS, y, x, x_stride, packed, rows, out_features, in_features, accumulate, num_threads);
}

/* The same with weights from `pack_bytes`, to the bit what `linear` makes of their floats. */
void linear_bytes(float *y, const float *x, int64_t x_stride, const float *packed, int64_t rows,
                  int64_t out_features, int64_t in_features, int accumulate, int num_threads) {
    product(BYTES, y, x, x_stride, packed, rows, out_features, in_features, accumulate, num_threads);
}

/* The same with weights from `pack_bfloat16`; sums are float32. */
void linear_bfloat16(float *y, const float *x, int64_t x_stride, const float *packed, int64_t rows,
                     int64_t out_features, int64_t in_features, int accumulate, int num_threads) {
#if X_STEP == 1
    x = as_pairs(x, x_stride, rows, in_features, num_threads);
    x_stride = in_features / 2;
#endif
    product(PAIRS, y, x, x_stride, packed, rows, out_features, in_features / 2, accumulate, num_threads);
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

/* e^x for x <= 0: 2^n times a polynomial (Cephes' expf), a vector at a time. Below -87 it is 0. */
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
            _Pragma("GCC ivdep") for (int64_t i = 0; i < half; i++) {
                float first = head[i], second = head[half + i];
                head[i] = first * c[i] + second * s[i];
                head[half + i] = second * c[half + i] + first * s[half + i];
            }
        const float *key = heads + num_heads * dim, *value = key + kv_width;
        memcpy(keys + slots[row] * kv_width, key, kv_width * sizeof(float));
        memcpy(values + slots[row] * kv_width, value, kv_width * sizeof(float));
    }
}

/* --- paged attention ------------------------------------------------------------------------------ */

#define SLICE PANEL /* keys that are looked at in one turn: to `tile` they are a panel's columns */
#define ROWS_TOGETHER 16 /* neighbours of a prompt, at most, for which keys are read once */
#define FLOATS_TOGETHER (1 << 16) /* queries that lie on a thread's stack, at most; as many results */

/* Four vectors become the rows of a matrix with their floats side by side. */
static inline void turn_four(float *to, vec a, vec b, vec c, vec d) {
#define EVEN IN_QUADS(0, LANES, 2, LANES + 2)
#define ODD IN_QUADS(1, LANES + 1, 3, LANES + 3)
#define FRONT IN_QUADS(0, 1, LANES, LANES + 1)
#define BACK IN_QUADS(2, 3, LANES + 2, LANES + 3)
    vec even_ab = SHUFFLE(ivec, a, b, EVEN), even_cd = SHUFFLE(ivec, c, d, EVEN);
    vec odd_ab = SHUFFLE(ivec, a, b, ODD), odd_cd = SHUFFLE(ivec, c, d, ODD);
    union { vec whole; vec4 quads[LANES / 4]; } rows[4] = {
        {SHUFFLE(ivec, even_ab, even_cd, FRONT)}, {SHUFFLE(ivec, odd_ab, odd_cd, FRONT)},
        {SHUFFLE(ivec, even_ab, even_cd, BACK)}, {SHUFFLE(ivec, odd_ab, odd_cd, BACK)},
    };
    UNROLL for (int quad = 0; quad < LANES / 4; quad++)
        UNROLL for (int row = 0; row < 4; row++)
            *(vec4 *)(to + (quad * 4 + row) * SLICE) = rows[row].quads[quad];
}

/* Where a slice's keys lie. From positions in the sequence to places in the cache: the block table.
 * Behind the last position it is taken again. */
static void find_keys(const float *places[SLICE], const float *keys, const int64_t *table, int64_t start,
                      int64_t last, int64_t block_size, int64_t stride) {
    int64_t position = min(start, last), block = position / block_size, in_block = position % block_size;
    for (int64_t t = 0; t < SLICE; t++) {
        places[t] = keys + (table[block] * block_size + in_block) * stride;
        if (position < last && (position++, ++in_block == block_size)) in_block = 0, block++;
    }
}

/* A head's keys of a slice -> [dim, SLICE]. Memory is asked for their values. */
static void turn_keys(float *to, const float *const keys[SLICE], int64_t of_head, int64_t to_values, int64_t dim) {
    for (int64_t t = 0; t < SLICE; t += 4)
        for (int64_t d = 0; d < dim; d += LANES) {
            const float *four[4];
            UNROLL for (int key = 0; key < 4; key++) {
                four[key] = keys[t + key] + of_head + d;
                if (d % LINE == 0) __builtin_prefetch(four[key] + to_values, 0, 2);
            }
            turn_four(to + d * SLICE + t, load(four[0]), load(four[1]), load(four[2]), load(four[3]));
        }
}

/* scores [queries, SLICE] = queries [queries, dim] · keys [dim, SLICE]. */
static void score(int64_t num_queries, float scores[][SLICE], const float *queries, int64_t dim,
                  const float *keys) {
    for (int64_t d = 0; d < dim; d += TILE_COLUMNS)
        for (int64_t q = 0; q < num_queries; q += TILE_ROWS) {
            strided y = {scores[q], SLICE};
            tile_of(min(num_queries - q, TILE_ROWS), y, d > 0 ? y : (strided){0}, queries + q * dim + d, dim,
                    keys + d * SLICE, min(dim - d, TILE_COLUMNS), 0);
        }
}

/* result[q] += weights[q] · values, for a few queries and vectors; the values are read where they lie.
 * Memory is asked for the next slice's keys. */
static inline __attribute__((always_inline)) void
add_tile(int num_queries, int num_vecs, float *result, int64_t dim, const float weights[][SLICE],
         const float *const keys[SLICE], int64_t offset, int64_t to_values, int64_t count,
         const float *const next[SLICE]) {
    vec sums[TILE_ROWS][PANEL_VECS] = {{{0}}}, value[PANEL_VECS];
    for (int64_t t = 0; t < count; t++) {
        UNROLL for (int v = 0; v < num_vecs; v++) {
            if (next && v * LANES % LINE == 0) __builtin_prefetch(next[t] + offset + v * LANES, 0, 2);
            value[v] = load(keys[t] + offset + to_values + v * LANES);
        }
        UNROLL for (int q = 0; q < num_queries; q++) {
            vec of_query = broadcast(weights[q][t]);
            UNROLL for (int v = 0; v < num_vecs; v++) sums[q][v] += of_query * value[v];
        }
        IN_ORDER;
    }
    UNROLL for (int q = 0; q < num_queries; q++)
        UNROLL for (int v = 0; v < num_vecs; v++)
            store(result + q * dim + v * LANES, load(result + q * dim + v * LANES) + sums[q][v]);
}

/* The same for all queries that share these values. */
static __attribute__((noinline)) void
add_values(int64_t num_queries, float *result, int64_t dim, const float weights[][SLICE],
           const float *const keys[SLICE], int64_t of_head, int64_t to_values, int64_t count,
           const float *const next[SLICE]) {
    for (int64_t d = 0, width; d < dim; d += width) {
        width = dim - d >= PANEL ? PANEL : LANES;
        for (int64_t q = 0, rows; q < num_queries; q += rows) {
            rows = num_queries - q >= TILE_ROWS ? TILE_ROWS : num_queries - q >= 3 ? 3 : 1;
#define ADD(rows, vecs) \
    add_tile(rows, vecs, result + q * dim + d, dim, weights + q, keys, of_head + d, to_values, count, ahead)
            const float *const *ahead = q == 0 ? next : NULL;
            if (rows == TILE_ROWS && width == PANEL) ADD(TILE_ROWS, PANEL_VECS);
            else if (rows == 3 && width == PANEL) ADD(3, PANEL_VECS);
            else if (width == PANEL) ADD(1, PANEL_VECS);
            else if (rows == TILE_ROWS) ADD(TILE_ROWS, 1);
            else if (rows == 3) ADD(3, 1);
            else ADD(1, 1);
        }
    }
}

static inline vec4 larger(vec4 a, vec4 b) {
    ivec4 first = a > b;
    return (vec4)(((ivec4)a & first) | ((ivec4)b & ~first));
}

/* The largest of SLICE floats. */
static inline float largest(const float *of) {
    vec4 v = *(const vec4 *)of;
    UNROLL for (int t = 4; t < SLICE; t += 4) v = larger(v, *(const vec4 *)(of + t));
    v = larger(v, SHUFFLE(ivec4, v, v, 2, 3, 0, 1));
    return larger(v, SHUFFLE(ivec4, v, v, 1, 0, 3, 2))[0];
}

/* Scores of up to SLICE keys become weights; `shrink` is what the sums so far must be multiplied by,
 * since there is a new highest score (the running softmax of FlashAttention, Dao et al. 2022). */
static inline void
softmax_slice(int64_t num_heads, float weights[][SLICE], int64_t count, float scale, float *highest,
              float *total, float shrink[]) {
    for (int64_t h = 0; h < num_heads; h++) {
        for (int64_t t = count; t < SLICE; t++) weights[h][t] = -INFINITY;
        float before = highest[h], now = largest(weights[h]) * scale;
        highest[h] = now > before ? now : before;
        shrink[h] = before - highest[h];
    }
    for (int64_t h = 0; h < num_heads; h += LANES) store(shrink + h, exp_vec(load(shrink + h)));
    for (int64_t h = 0; h < num_heads; h++) {
        vec sums = {0};
        UNROLL for (int64_t t = 0; t < SLICE; t += LANES) {
            vec weight = exp_vec(load(weights[h] + t) * scale - highest[h]);
            store(weights[h] + t, weight);
            sums += weight;
        }
        total[h] = total[h] * shrink[h] + sum(sums);
    }
}

/* heads [rows, num_heads, D] are queries, and become what they attend to; keys, values [blocks,
 * block_size, kv_heads, D]; block_tables [requests, table_width]. A row belongs to request owners[row]
 * and sees its keys up to positions[row]; the rows of a request lie together, by rising position.
 * num_heads * D is at most MAX_ATTENTION_WIDTH in cpu_kernels.py: the arrays here lie on the stack. */
void paged_attention(float *heads, int64_t heads_stride, const float *keys, const float *values,
                     const int64_t *block_tables, int64_t table_width, const int64_t *owners,
                     const int64_t *positions, int64_t rows, int64_t num_heads, int64_t num_kv_heads,
                     int64_t dim, int64_t block_size, float scale, int num_threads) {
    int64_t group = num_heads / num_kv_heads, stride = num_kv_heads * dim, to_values = values - keys;
    int64_t together = min(ROWS_TOGETHER, max(FLOATS_TOGETHER / (num_heads * dim), 1));
    /* A thread takes rows with all their heads, whose keys lie side by side; if rows are few, a head. */
    int64_t heads_per_task = rows >= 2 * num_threads ? num_kv_heads : 1;
    int64_t tasks_per_row = num_kv_heads / heads_per_task;
    #pragma omp parallel for schedule(dynamic) num_threads(num_threads)
    for (int64_t task = 0; task < rows * tasks_per_row; task++) {
        int64_t row = task / tasks_per_row, first_head = task % tasks_per_row * heads_per_task;
        const int64_t *position = positions + row, *owner = owners + row;
        /* The first of neighbours speaks for the others. */
        if (row > 0 && owner[-1] == owner[0] && position[0] % together) continue;
        int64_t num_rows = 1;
        while (row + num_rows < rows && owner[num_rows] == owner[0] && position[num_rows] % together) num_rows++;
        int64_t context_len = position[num_rows - 1] + 1;
        const int64_t *table = block_tables + owner[0] * table_width;
        /* In the order [kv head, row, head that shares it]: who reads the same keys lies together. */
        int64_t sharing = num_rows * group, num_queries = heads_per_task * sharing;
        int64_t padded = cdiv(num_queries, LANES) * LANES;
        float q[num_queries * dim], result[num_queries * dim], weights[num_queries][SLICE];
        float highest[num_queries], total[num_queries], shrink[padded], room[dim * SLICE + LINE];
        float *turned = room + LINE - (uintptr_t)room / sizeof(float) % LINE; /* whole lines of memory */
        float *from = heads + row * heads_stride + first_head * group * dim;
        for (int64_t head = 0; head < heads_per_task; head++)
            for (int64_t r = 0; r < num_rows; r++)
                memcpy(q + (head * num_rows + r) * group * dim, from + r * heads_stride + head * group * dim,
                       group * dim * sizeof(float));
        for (int64_t h = 0; h < num_queries; h++) highest[h] = -INFINITY, total[h] = 0;
        memset(result, 0, sizeof result);

        const float *places[2][SLICE], *const first = keys + first_head * dim;
        find_keys(places[0], first, table, 0, context_len - 1, block_size, stride);
        for (int64_t start = 0; start < context_len; start += SLICE) {
            const float **here = places[start / SLICE % 2], **next = places[(start / SLICE + 1) % 2];
            find_keys(next, first, table, start + SLICE, context_len - 1, block_size, stride);
            int64_t count = min(SLICE, context_len - start);
            for (int64_t head = 0, h = 0; head < heads_per_task; head++, h += sharing) {
                turn_keys(turned, here, head * dim, to_values, dim);
                score(sharing, weights + h, q + h * dim, dim, turned);
                for (int64_t r = 0; r < num_rows; r++) /* no row sees keys behind its own */
                    for (int64_t t = max(position[r] + 1 - start, 0); t < count; t++)
                        for (int64_t g = 0; g < group; g++) weights[h + r * group + g][t] = -INFINITY;
            }
            softmax_slice(num_queries, weights, count, scale, highest, total, shrink);
            for (int64_t h = 0; h < num_queries; h++)
                for (int64_t d = 0; shrink[h] != 1 && d < dim; d += LANES)
                    store(result + h * dim + d, load(result + h * dim + d) * shrink[h]);
            for (int64_t head = 0, h = 0; head < heads_per_task; head++, h += sharing)
                add_values(sharing, result + h * dim, dim, (const float (*)[SLICE])weights + h, here,
                           head * dim, to_values, count, next);
        }
        for (int64_t head = 0, h = 0; head < heads_per_task; head++)
            for (int64_t r = 0; r < num_rows; r++)
                for (int64_t g = 0; g < group; g++, h++)
                    for (int64_t d = 0; d < dim; d++)
                        from[r * heads_stride + (head * group + g) * dim + d] = result[h * dim + d] / total[h];
    }
}

/* --- a decode step in one call ------------------------------------------------------------------------ */

typedef struct {
    const float *input_norm, *qkv, *o, *post_attention_norm, *gate_up, *down;
} layer_weights;

/* All decoder layers for rows of one token each; hidden [rows, hidden_size] is changed in place. The
 * cache is [layers, 2, blocks, block_size, kv_heads, D], `half` floats from keys to values. `scratch`
 * has room for the widest of each row: hidden_size + (heads + 2 kv_heads) * D + 2 * inner floats. */
void decode(float *hidden, const layer_weights *layers, int64_t num_layers, kind of,
            float *scratch, float *kv_cache, int64_t half, const float *cos, const float *sin,
            const int64_t *positions, const int64_t *slots, const int64_t *owners,
            const int64_t *block_tables, int64_t table_width, int64_t rows, int64_t hidden_size,
            int64_t inner, int64_t num_heads, int64_t num_kv_heads, int64_t dim, int64_t block_size,
            float eps, float scale, int num_threads) {
    typeof(linear) *multiply = of == PAIRS ? linear_bfloat16 : of == BYTES ? linear_bytes : linear;
    int64_t attended_width = num_heads * dim, qkv_width = attended_width + 2 * num_kv_heads * dim;
    float *normed = scratch, *qkv = normed + rows * hidden_size, *gate_up = qkv + rows * qkv_width;
    for (const layer_weights *layer = layers; layer < layers + num_layers; layer++, kv_cache += 2 * half) {
        float *keys = kv_cache, *values = kv_cache + half;
        rms_norm(normed, hidden, layer->input_norm, rows, hidden_size, eps, num_threads);
        multiply(qkv, normed, hidden_size, layer->qkv, rows, qkv_width, hidden_size, 0, num_threads);
        rotate_and_store(qkv, cos, sin, positions, slots, keys, values, rows, num_heads, num_kv_heads,
                         dim, num_threads);
        paged_attention(qkv, qkv_width, keys, values, block_tables, table_width, owners, positions,
                        rows, num_heads, num_kv_heads, dim, block_size, scale, num_threads);
        multiply(hidden, qkv, qkv_width, layer->o, rows, hidden_size, attended_width, 1, num_threads);
        rms_norm(normed, hidden, layer->post_attention_norm, rows, hidden_size, eps, num_threads);
        multiply(gate_up, normed, hidden_size, layer->gate_up, rows, 2 * inner, hidden_size, 0,
               num_threads);
        silu_and_mul(gate_up, rows, inner, num_threads);
        multiply(hidden, gate_up, 2 * inner, layer->down, rows, hidden_size, inner, 1, num_threads);
    }
}
