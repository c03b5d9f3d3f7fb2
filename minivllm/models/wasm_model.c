/* A whole model for a page: the operators of `cpu_kernels.c`, and around them what PyTorch does elsewhere:
 * weights out of a GGUF's blocks, the embedding, the logits, and picking tokens from them.
 *
 * Compiled to WebAssembly by `tools/live_model.py`; `minivllm/executor/wasm_executor.py` calls it. Addresses
 * and sizes of exported functions are 32 bits wide, which JavaScript has as plain numbers.
 */
#include "cpu_kernels.c"

#define EXPORT(name) __attribute__((export_name(name)))
#ifdef _OPENMP /* for a page that may have threads */
#include "wasm_threads.c"
#else
EXPORT("num_threads") int num_threads(void) { return 1; }
#endif

/* --- weights --------------------------------------------------------------------------------------- */

enum { F32 = 0, Q4_1 = 3, Q8_0 = 8 }; /* GGUF's numbers of them */

typedef struct { uint16_t scale, least; uint8_t pairs[BLOCK / 2]; } q4_1;
typedef struct { uint16_t scale; int8_t numbers[BLOCK]; } q8_0;

/* A number of 16 bits as one of 32: its exponent counts from 15, not from 127. */
static float from_half(uint16_t half) {
    union { uint32_t bits; float number; } as = {(uint32_t)(half & 0x7fff) << 13};
    as.number *= 0x1p112f;
    return half >> 15 ? -as.number : as.number;
}

/* A block of a file becomes output `o` of a panel's block; where the next one begins. */
static const void *unpack_block(byte_block *to, int o, const void *from, int kind) {
    const q4_1 *nibbles = from;
    const q8_0 *bytes = from;
    int8_t numbers[BLOCK];
    if (kind == Q4_1)
        for (int i = 0; i < BLOCK / 2; i++)
            numbers[i] = nibbles->pairs[i] & 15, numbers[i + BLOCK / 2] = nibbles->pairs[i] >> 4;
    else memcpy(numbers, bytes->numbers, BLOCK);
    to->scale[o] = from_half(nibbles->scale); /* a q8_0 begins with it too */
    to->least[o] = kind == Q4_1 ? from_half(nibbles->least) : 0;
    for (int four = 0; four < BLOCK / 4; four++) memcpy(&to->numbers[four][o], numbers + 4 * four, 4);
    return kind == Q4_1 ? (const void *)(nibbles + 1) : (const void *)(bytes + 1);
}

/* A matrix [rows, width] of a file in the order in which the products read it. */
EXPORT("unpack_matrix") void unpack_matrix(void *packed, const void *from, int kind, int rows, int width) {
    if (kind == F32) pack(packed, from, rows, width, 1);
    else
        for (int row = 0, blocks = width / BLOCK; row < rows; row++)
            for (int block = 0; block < blocks; block++)
                from = unpack_block((byte_block *)packed + row / PANEL * blocks + block, row % PANEL, from, kind);
}

/* How many bytes that is. */
EXPORT("matrix_bytes") int matrix_bytes(int kind, int rows, int width) {
    return kind == F32 ? rows * width * sizeof(float) : rows / PANEL * (width / BLOCK) * sizeof(byte_block);
}

EXPORT("panel_rows") int panel_rows(void) { return PANEL; }

/* cos and sin, [positions, dim], as `rotate_and_store` has them. */
EXPORT("rope_table")
void rope_table(float *cosines, float *sines, const float *frequencies, int positions, int dim) {
    for (int at = 0; at < positions; at++, cosines += dim, sines += dim)
        for (int i = 0, half = dim / 2; i < half; i++) {
            float angle = at * frequencies[i];
            cosines[i] = cosines[half + i] = cos(angle);
            sines[half + i] = sin(angle);
            sines[i] = -sines[half + i];
        }
}

/* --- a step ------------------------------------------------------------------------------------------ */

typedef struct {
    int num_layers, hidden_size, inner, num_heads, num_kv_heads, dim, vocab_size, block_size;
    float eps, scale;
    kind of;               /* all matrices */
    const float *embed, *norm, *lm_head;
    const float *cos, *sin;              /* [positions, dim], as `rotate_and_store` has them */
    const layer_weights *layers;
} model;

/* A token's row of the embedding. */
static void embed(float *hidden, const model *m, int token_id) {
    int o = token_id % PANEL, panel = token_id / PANEL;
    for (int i = 0; i < m->hidden_size; i++)
        if (m->of == FLOATS) hidden[i] = m->embed[panel * PANEL * m->hidden_size + i * PANEL + o];
        else {
            const byte_block *block = (const byte_block *)m->embed + (panel * m->hidden_size + i) / BLOCK;
            int number = ((const int8_t *)&block->numbers[i % BLOCK / 4][o])[i % 4];
            hidden[i] = block->scale[o] * number + block->least[o];
        }
}

/* One step of `rows` tokens, whoever they belong to, into hidden [rows, hidden_size]; 0 without memory.
 * owners, positions, slots and block_tables are `paged_attention`'s. */
EXPORT("forward")
int forward(float *hidden, const model *m, float *kv_cache, int num_blocks, const int *token_ids,
            const int64_t *positions, const int64_t *slots, const int64_t *owners,
            const int64_t *block_tables, int table_width, int rows) {
    int width = m->hidden_size + (m->num_heads + 2 * m->num_kv_heads) * m->dim + 2 * m->inner;
    float *scratch = malloc((size_t)rows * width * sizeof(float));
    if (!scratch) return 0;
    for (int row = 0; row < rows; row++) embed(hidden + row * m->hidden_size, m, token_ids[row]);
    int64_t half = (int64_t)num_blocks * m->block_size * m->num_kv_heads * m->dim;
    decode(hidden, m->layers, m->num_layers, m->of, scratch, kv_cache, half, m->cos, m->sin, positions, slots,
           owners, block_tables, table_width, rows, m->hidden_size, m->inner, m->num_heads,
           m->num_kv_heads, m->dim, m->block_size, m->eps, m->scale, num_threads());
    free(scratch);
    return 1;
}

/* Logits [count, vocab_size] of some rows of hidden; 0 without memory. */
EXPORT("compute_logits")
int compute_logits(float *logits, const model *m, const float *hidden, const int *rows, int count) {
    float *normed = malloc((size_t)count * m->hidden_size * sizeof(float) + 1);
    if (!normed) return 0;
    for (int i = 0; i < count; i++)
        rms_norm(normed + i * m->hidden_size, hidden + rows[i] * m->hidden_size, m->norm, 1,
                 m->hidden_size, m->eps, 1);
    (m->of == BYTES ? linear_bytes : linear)(logits, normed, m->hidden_size, m->lm_head, count, m->vocab_size,
                                             m->hidden_size, 0, num_threads());
    free(normed);
    return 1;
}

/* A block's keys and values of all layers, to or from a place of its own: swapping. */
EXPORT("copy_block")
void copy_block(const model *m, float *kv_cache, int num_blocks, int block, float *aside, int to_aside) {
    size_t size = (size_t)m->block_size * m->num_kv_heads * m->dim;
    for (int half = 0; half < 2 * m->num_layers; half++, aside += size) {
        float *here = kv_cache + ((size_t)half * num_blocks + block) * size;
        if (to_aside) memcpy(aside, here, size * sizeof(float));
        else memcpy(here, aside, size * sizeof(float));
    }
}

/* --- what a request's parameters change about its row of logits ------------------------------------------ */

EXPORT("keep_only") int keep_only(float *row, int size, const int *token_ids, int count) {
    float *kept = malloc(count * sizeof(float) + 1);
    if (!kept) return 0;
    for (int i = 0; i < count; i++) kept[i] = row[token_ids[i]];
    for (int i = 0; i < size; i++) row[i] = -INFINITY;
    for (int i = 0; i < count; i++) row[token_ids[i]] = kept[i];
    free(kept);
    return 1;
}

EXPORT("forbid") void forbid(float *row, const int *token_ids, int count) {
    for (int i = 0; i < count; i++) row[token_ids[i]] = -INFINITY;
}

EXPORT("add_bias") void add_bias(float *row, const int *token_ids, const float *biases, int count) {
    for (int i = 0; i < count; i++) row[token_ids[i]] += biases[i];
}

EXPORT("penalise")
void penalise(float *row, const int *token_ids, const int *counts, int count, float repetition,
              float frequency, float presence) {
    for (int i = 0; i < count; i++) {
        float *logit = row + token_ids[i];
        *logit = *logit > 0 ? *logit / repetition : *logit * repetition;
        *logit -= frequency * counts[i];
        *logit -= presence * (counts[i] > 0);
    }
}

/* --- picking a token -------------------------------------------------------------------------------------- */

EXPORT("argmax") int argmax(const float *row, int size) {
    int best = 0;
    for (int i = 1; i < size; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

/* Whether a is less likely than b; of equals the later one is. */
static int below(const float *of, int a, int b) { return of[a] < of[b] || (of[a] == of[b] && a > b); }

static void sink(const float *of, int *heap, int size, int at) {
    for (int child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && below(of, heap[child + 1], heap[child])) child++;
        if (!below(of, heap[child], heap[at])) return;
        int moved = heap[at];
        heap[at] = heap[child], heap[child] = moved;
    }
}

/* The places of the k largest of `size` numbers, the largest first. */
static void likeliest(int *places, const float *of, int size, int k) {
    for (int i = 0; i < k; i++) places[i] = i;
    for (int at = k / 2; at >= 0; at--) sink(of, places, k, at);
    for (int i = k; i < size; i++)
        if (below(of, places[0], i)) places[0] = i, sink(of, places, k, 0);
    for (int last = k - 1; last > 0; last--) {
        int least = places[0];
        places[0] = places[last], places[last] = least;
        sink(of, places, last, 0);
    }
}

/* Zero what is not among the top_k, or not among the fewest whose share reaches top_p. */
#define FEW 1024 /* top_p looks at so many before it sorts all */
static int keep_likeliest(float *probs, int size, int top_k, float top_p) {
    int k = top_k > 0 ? min(top_k, size) : min(FEW, size);
    int *places = malloc(size * sizeof(int));
    float *kept = calloc(size, sizeof(float)), sum = 0;
    if (places && kept) {
        likeliest(places, probs, size, k);
        for (int i = 0; i < k; i++) sum += probs[places[i]];
        if (top_k <= 0 && sum < top_p) likeliest(places, probs, size, k = size);
        float limit = top_p * (top_k > 0 ? sum : 1.0f), before = 0;
        for (int i = 0; i < k && (top_p >= 1.0f || before < limit); before += probs[places[i++]])
            kept[places[i]] = probs[places[i]];
        memcpy(probs, kept, size * sizeof(float));
    }
    int done = places && kept;
    free(places), free(kept);
    return done;
}

/* The first place whose cumulative weight passes *target; what of the target is left in it. */
static int pick(const double *weights, int size, double *target) {
    double before = 0;
    int last = 0, index = 0;
    for (int i = 0; i < size; i++)
        if (weights[i] > 0) last = i; /* rounding may carry the target up to the very end */
    for (; index < last && before + weights[index] <= *target; index++) before += weights[index];
    *target = *target > before ? *target - before : 0;
    return index;
}

/* The first token whose cumulative probability passes the noise in [0, 1), as the sampler with PyTorch
 * picks it: by sums of slices, then within one. -1 without memory. The row is overwritten. */
#define SLICE_OF_VOCABULARY 1024
EXPORT("draw")
int draw(float *row, int size, float temperature, int top_k, float top_p, float min_p, double noise) {
    float top = row[argmax(row, size)];
    if (top_k > 0 || top_p < 1.0f || min_p > 0.0f) {
        float *probs = malloc(size * sizeof(float)), most = 0;
        double sum = 0;
        if (!probs) return -1;
        for (int i = 0; i < size; i++) sum += probs[i] = expf((row[i] - top) / temperature);
        for (int i = 0; i < size; i++) probs[i] /= (float)sum, most = probs[i] > most ? probs[i] : most;
        if (min_p > 0.0f) {
            sum = 0;
            for (int i = 0; i < size; i++) sum += probs[i] = probs[i] < min_p * most ? 0 : probs[i];
            for (int i = 0; i < size; i++) probs[i] /= (float)sum;
        }
        int done = keep_likeliest(probs, size, top_k, top_p);
        for (int i = 0; i < size; i++)
            if (probs[i] == 0) row[i] = -INFINITY;
        free(probs);
        if (!done) return -1;
    }
    int num_slices = cdiv(size, SLICE_OF_VOCABULARY);
    double sums[num_slices], weights[SLICE_OF_VOCABULARY], target = 0;
    for (int slice = 0; slice < num_slices; slice++) {
        int start = slice * SLICE_OF_VOCABULARY, count = min(size - start, SLICE_OF_VOCABULARY);
        float highest = row[start + argmax(row + start, count)];
        sums[slice] = 0;
        if (highest == -INFINITY) continue;
        for (int i = 0; i < count; i++) sums[slice] += expf((row[start + i] - highest) / temperature);
        sums[slice] *= expf((highest - top) / temperature);
        target += sums[slice];
    }
    target *= noise;
    int start = pick(sums, num_slices, &target) * SLICE_OF_VOCABULARY;
    int count = min(size - start, SLICE_OF_VOCABULARY);
    for (int i = 0; i < count; i++) weights[i] = expf((row[start + i] - top) / temperature);
    return start + pick(weights, count, &target);
}

/* Log probabilities of one row: of the token that is there, then of the k likeliest; the rank of the first.
 * -1 without memory. */
EXPORT("tell")
int tell(int *token_ids, float *logprobs, const float *row, int size, int own, int k) {
    int rank = 0, *places = malloc(k * sizeof(int) + 1);
    if (!places) return -1;
    float top = row[argmax(row, size)];
    double sum = 0;
    for (int i = 0; i < size; i++) sum += exp(row[i] - top), rank += row[i] >= row[own];
    likeliest(places, row, size, k);
    for (int i = 0; i <= k; i++) {
        token_ids[i] = i ? places[i - 1] : own;
        logprobs[i] = row[token_ids[i]] - top - (float)log(sum);
    }
    free(places);
    return rank;
}
