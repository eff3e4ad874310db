/* The tail of a block in one pass over pixels: norm, 1x1, GELU, 1x1, residual; and its gradients.
 *
 * Hidden activations of a few dozen pixels stay in the caches. The way back
 * computes them again, one product in five, where that is cheaper than to
 * write and read them: where channels are few.
 */
#include "gelu.h"
#include "layer_norm.h"
#include "matmul.h"

#define CHUNK 128       /* hidden channels at a time */
#define WIDEST_TILE 96 /* pixels at a time, at most: whole vectors of them, and whole cells */
#define TILE_BYTES (1 << 20)

typedef struct {
    const float *x;        /* (pixels, channels) */
    const float *residual; /* added to the output, or null */
    const float *keep;     /* a factor of the branch for each image, or null */
    const float *w1, *b1;  /* (hidden, channels), (hidden) */
    const float *w2, *b2;  /* (outputs, hidden), (outputs) */
    float *out;            /* (pixels, outputs) */
    float *hidden_kept;    /* (pixels, hidden) before GELU: kept for the way back, or null */
    const float *g;        /* gradient of out; what follows is written on the way back */
    float *gx, *gw1, *gb1, *gw2, *gb2; /* gw1 and gw2 are (channels, hidden), (outputs, hidden) */
    int64_t images, pixels, channels, hidden, outputs; /* pixels of all images */
    int64_t splits; /* of the pixels on the way back, each with sums of its own */
    float eps;
    int32_t norm;
} mlp;

/* Floats from row to row of so many columns: no power of two, which the caches would not like. */
INLINE int64_t pitch_of(int64_t columns) { return rounded_up(columns, LANES) + LANES; }

INLINE int64_t tile_of(const mlp *m) {
    int64_t row = 2 * pitch_of(m->channels) + pitch_of(m->outputs);
    int64_t step = 3 * LANES; /* a multiple of TALL too */
    return most(step, least(TILE_BYTES / 4 / row / step * step, WIDEST_TILE));
}

/* Rows of `channels` floats to rows of `pitch`. */
INLINE void spread_rows(float *to, int64_t pitch, const float *from, int64_t channels, int64_t rows) {
    for (int64_t p = 0; p < rows; p++) memcpy(to + p * pitch, from + p * channels, 4 * (size_t)channels);
}

INLINE float kept(const mlp *m, int64_t pixel) {
    return m->keep ? m->keep[pixel / (m->pixels / m->images)] : 1.0f;
}

typedef struct {
    const mlp *m;
    float *weights; /* panels and padded biases, below */
    right_matrix in, out, out_back, in_back;
    const float *b1, *b2;
    float *sums; /* of each split, on the way back */
    int failed;
} mlp_run;

static int64_t weight_floats(const mlp *m, int back) {
    int64_t one_way = panel_floats(m->channels, m->hidden) + panel_floats(m->hidden, m->outputs);
    int64_t return_way = panel_floats(m->outputs, m->hidden) + panel_floats(m->hidden, m->channels);
    int64_t biases = rounded_up(m->hidden, PANEL) + rounded_up(m->outputs, PANEL);
    return one_way + biases + (back ? return_way : 0);
}

static int prepare(mlp_run *run, const mlp *m, int back) {
    *run = (mlp_run){.m = m, .weights = zeros(weight_floats(m, back))};
    float *at = run->weights;
    if (!at) return 1;
    run->b1 = memcpy(at, m->b1, 4 * (size_t)m->hidden);
    at += rounded_up(m->hidden, PANEL);
    run->b2 = memcpy(at, m->b2, 4 * (size_t)m->outputs);
    at += rounded_up(m->outputs, PANEL);
    run->in = panels(at, m->w1, m->channels, m->hidden, 1, m->channels);
    at += panel_floats(m->channels, m->hidden);
    run->out = panels(at, m->w2, m->hidden, m->outputs, 1, m->hidden);
    at += panel_floats(m->hidden, m->outputs);
    if (!back) return 0;
    run->out_back = panels(at, m->w2, m->outputs, m->hidden, m->hidden, 1);
    at += panel_floats(m->outputs, m->hidden);
    run->in_back = panels(at, m->w1, m->hidden, m->channels, m->channels, 1);
    return 0;
}

/* ---------------------------------------------------------------- one way */

static void mlp_tiles(int64_t begin, int64_t end, void *context) {
    mlp_run *run = context;
    const mlp *m = run->m;
    int64_t tile = tile_of(m), in = pitch_of(m->channels), out = pitch_of(m->outputs);
    int64_t mid = pitch_of(CHUNK);
    float *x = zeros(tile * (in + mid + out)), *hidden = x + tile * in, *y = hidden + tile * mid;
    if (!x) {
        run->failed = 1;
        return;
    }
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t first = unit * tile, rows = least(tile, m->pixels - first);
        spread_rows(x, in, m->x + first * m->channels, m->channels, rows);
        if (m->norm)
            for (int64_t p = 0; p < rows; p += LANES) normalise(x + p * in, in, m->channels, m->eps);
        for (int64_t p = 0; p < rows; p++) memcpy(y + p * out, run->b2, 4 * (size_t)m->outputs);
        for (int64_t h = 0; h < m->hidden; h += CHUNK) {
            int64_t wide = least(CHUNK, m->hidden - h);
            right_matrix weight = columns_from(run->in, h);
            product(hidden, mid, (left_matrix){x, in, 1}, weight, rows, wide, m->channels);
            for (int64_t p = 0; p < rows; p++) {
                if (m->hidden_kept) {
                    float *kept = m->hidden_kept + (first + p) * m->hidden + h;
                    memcpy(kept, hidden + p * mid, 4 * (size_t)wide);
                }
                for (int64_t c = 0; c < wide; c += LANES) {
                    float *at = hidden + p * mid + c;
                    store(at, gelu_of(load(at) + load(run->b1 + h + c)).value);
                }
            }
            add_product(y, out, (left_matrix){hidden, mid, 1}, steps_from(run->out, h), rows, m->outputs, wide);
        }
        for (int64_t p = 0; p < rows; p++) {
            vec keep = splat(kept(m, first + p));
            for (int64_t c = 0; c < m->outputs; c += LANES) {
                int lanes = (int)least(m->outputs - c, LANES);
                int64_t at = (first + p) * m->outputs + c;
                vec sum = load(y + p * out + c) * keep;
                if (m->residual) sum += load_part((const char *)(m->residual + at), lanes, 0);
                store_part((char *)(m->out + at), sum, lanes, 0);
            }
        }
    }
    free(x);
}

int foveate_mlp(const mlp *m, loop run) {
    mlp_run context;
    int64_t tile = tile_of(m);
    int failed = prepare(&context, m, 0) ||
                 run(0, (m->pixels + tile - 1) / tile, 1, mlp_tiles, &context) || context.failed;
    free(context.weights);
    return failed;
}

/* ---------------------------------------------------------------- the way back */

typedef struct {
    float *w1, *w2, *b1, *b2; /* sums; w1 is (channels, hidden), w2 (outputs, hidden) */
} mlp_sums;

INLINE int64_t sum_floats(const mlp *m) {
    int64_t mid = rounded_up(m->hidden, LANES), out = rounded_up(m->outputs, LANES);
    return (m->channels + m->outputs + 1) * mid + out;
}

INLINE mlp_sums sums_at(const mlp *m, float *from) {
    int64_t mid = rounded_up(m->hidden, LANES);
    float *w2 = from + m->channels * mid, *b1 = w2 + m->outputs * mid;
    return (mlp_sums){from, w2, b1, b1 + mid};
}

/* Add one row of gradients to the sums of a bias. */
INLINE void add_row(float *sums, const float *row, int64_t width) {
    for (int64_t c = 0; c < width; c += LANES) store(sums + c, load(sums + c) + load(row + c));
}

static void mlp_back(mlp_run *run, int64_t begin, int64_t end, mlp_sums sums, float *memory) {
    const mlp *m = run->m;
    int64_t tile = tile_of(m), in = pitch_of(m->channels), out = pitch_of(m->outputs);
    int64_t mid = pitch_of(CHUNK), all = rounded_up(m->hidden, LANES);
    float *x = memory, *gx = x + tile * in, *g = gx + tile * in;
    float *hidden = g + tile * out, *slope = hidden + tile * mid;
    vec scale[WIDEST_TILE / LANES];
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t first = unit * tile, rows = least(tile, m->pixels - first);
        spread_rows(x, in, m->x + first * m->channels, m->channels, rows);
        spread_rows(g, out, m->g + first * m->outputs, m->outputs, rows);
        memset(gx, 0, 4 * (size_t)(rows * in));
        if (m->norm)
            for (int64_t p = 0; p < rows; p += LANES)
                scale[p / LANES] = normalise(x + p * in, in, m->channels, m->eps);
        for (int64_t p = 0; p < rows; p++) {
            vec keep = splat(kept(m, first + p));
            for (int64_t c = 0; c < m->outputs; c += LANES)
                store(g + p * out + c, load(g + p * out + c) * keep);
            add_row(sums.b2, g + p * out, m->outputs);
        }
        for (int64_t h = 0; h < m->hidden; h += CHUNK) {
            int64_t wide = least(CHUNK, m->hidden - h);
            left_matrix from_x = {x, in, 1}, from_g = {g, out, 1}, from_slope = {slope, mid, 1};
            if (m->hidden_kept)
                for (int64_t p = 0; p < rows; p++) {
                    const float *kept = m->hidden_kept + (first + p) * m->hidden + h;
                    memcpy(hidden + p * mid, kept, 4 * (size_t)wide);
                }
            else product(hidden, mid, from_x, columns_from(run->in, h), rows, wide, m->channels);
            product(slope, mid, from_g, columns_from(run->out_back, h), rows, wide, m->outputs);
            for (int64_t p = 0; p < rows; p++) {
                for (int64_t c = 0; c < wide; c += LANES) {
                    float *at = hidden + p * mid + c, *back = slope + p * mid + c;
                    gelu_pair act = gelu_of(load(at) + load(run->b1 + h + c));
                    store(at, act.value);
                    store(back, load(back) * act.slope);
                }
                add_row(sums.b1 + h, slope + p * mid, wide);
            }
            right_matrix active = {hidden, PANEL, mid}, gradient = {slope, PANEL, mid};
            left_matrix of_g = {g, 1, out}, of_x = {x, 1, in};
            add_product(sums.w2 + h, all, of_g, active, m->outputs, wide, rows);
            add_product(sums.w1 + h, all, of_x, gradient, m->channels, wide, rows);
            add_product(gx, in, from_slope, steps_from(run->in_back, h), rows, m->channels, wide);
        }
        if (m->norm)
            for (int64_t p = 0; p < rows; p += LANES)
                normalise_back(gx + p * in, x + p * in, in, m->channels, scale[p / LANES]);
        for (int64_t p = 0; p < rows; p++)
            memcpy(m->gx + (first + p) * m->channels, gx + p * in, 4 * (size_t)m->channels);
    }
}

static void mlp_back_splits(int64_t begin, int64_t end, void *context) {
    mlp_run *run = context;
    const mlp *m = run->m;
    int64_t tile = tile_of(m), tiles = (m->pixels + tile - 1) / tile;
    int64_t row = 2 * pitch_of(m->channels) + pitch_of(m->outputs) + 2 * pitch_of(CHUNK);
    float *memory = zeros(tile * row);
    if (!memory) {
        run->failed = 1;
        return;
    }
    for (int64_t s = begin; s < end; s++)
        mlp_back(
            run, tiles * s / m->splits, tiles * (s + 1) / m->splits,
            sums_at(m, run->sums + s * sum_floats(m)), memory);
    free(memory);
}

/* Add up the splits' sums in order, and take the padding away. */
static void collect(const mlp *m, float *sums) {
    int64_t mid = rounded_up(m->hidden, LANES), floats = sum_floats(m);
    for (int64_t s = 1; s < m->splits; s++)
        for (int64_t i = 0; i < floats; i += LANES)
            store(sums + i, load(sums + i) + load(sums + s * floats + i));
    mlp_sums all = sums_at(m, sums);
    size_t row = 4 * (size_t)m->hidden;
    for (int64_t c = 0; c < m->channels; c++) memcpy(m->gw1 + c * m->hidden, all.w1 + c * mid, row);
    for (int64_t c = 0; c < m->outputs; c++) memcpy(m->gw2 + c * m->hidden, all.w2 + c * mid, row);
    memcpy(m->gb1, all.b1, row);
    memcpy(m->gb2, all.b2, 4 * (size_t)m->outputs);
}

int foveate_mlp_back(const mlp *m, loop run) {
    mlp_run context;
    int failed = prepare(&context, m, 1);
    if (!failed) {
        context.sums = zeros(m->splits * sum_floats(m));
        failed = !context.sums || run(0, m->splits, 1, mlp_back_splits, &context) || context.failed;
        if (!failed) collect(m, context.sums);
        free(context.sums);
    }
    free(context.weights);
    return failed;
}
