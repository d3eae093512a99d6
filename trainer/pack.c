/* Owns the index tables of a pack. */
#include "trainer/pack.h"

static Segments segments(Graph *g, int n) {
    return (Segments){.n = n,
                      .cu = graph_alloc(g, (size_t)(n + 1) * sizeof(int64_t)),
                      .first = graph_alloc(g, (size_t)n * sizeof(int64_t)),
                      .sample = graph_alloc(g, (size_t)n * sizeof(int32_t))};
}

static void set_run(Segments s, int i, int64_t length, int64_t first, int sample) {
    ((int64_t *)s.cu)[i + 1] = s.cu[i] + length;
    ((int64_t *)s.first)[i] = first;
    ((int32_t *)s.sample)[i] = sample;
}

static void set_bound(Segments s, int b, int64_t length) { set_run(s, b, length, 0, b); }

static Tensor *index_table(Graph *g, const char *name, int64_t n, int32_t **contents) {
    Tensor *t = graph_tensor(g, name, SHAPE(n), DT_I32, ROLE_CONST);
    t->host = *contents = graph_alloc(g, tensor_bytes(t));
    return t;
}

static void set_sizes(Graph *g, PackTables *p, const DitConfig *c, const Pack *pack) {
    int n = pack->samples;
    int64_t(*latents)[3] = graph_alloc(g, (size_t)n * sizeof *latents);
    int64_t(*grid)[3] = graph_alloc(g, (size_t)n * sizeof *grid);
    p->latents = (LatentSizes){n, (const int64_t(*)[3])latents};
    p->grid = (LatentSizes){n, (const int64_t(*)[3])grid};
    p->samples = segments(g, n);
    p->samples.single = true;
    p->elements = segments(g, n);
    for (int b = 0; b < n; b++) {
        int64_t f = pack->fhw[b][0], h = pack->fhw[b][1], w = pack->fhw[b][2];
        latents[b][0] = f, latents[b][1] = h, latents[b][2] = w;
        grid[b][0] = f / c->patch_t, grid[b][1] = h / c->patch, grid[b][2] = w / c->patch;
        set_bound(p->samples, b, 1);
        set_bound(p->elements, b, f * c->out_channels * h * w);
    }
}

static void set_rows(Graph *g, PackTables *p, const DitConfig *c, const Pack *pack) {
    int n = pack->samples;
    p->rows = segments(g, 2 * n);
    p->runs = segments(g, 2 * n);
    p->text = segments(g, n);
    p->video = segments(g, n);
    p->video_runs = segments(g, n);
    p->whole = segments(g, n);
    for (int b = 0; b < n; b++) {
        int64_t text = pack->text_rows[b];
        int64_t video = dit_video_rows(c, pack->fhw[b][0], pack->fhw[b][1], pack->fhw[b][2]);
        Range t = graph_part(g, text), v = graph_part(g, video);
        set_bound(p->whole, b, text + video);
        set_bound(p->video_runs, b, video);
        set_run(p->runs, 2 * b, text, 0, b);
        set_run(p->runs, 2 * b + 1, video, text, b);
        set_run(p->text, b, t.count, t.from, b);
        set_run(p->video, b, v.count, v.from, b);
        set_run(p->rows, 2 * b, t.count, t.from, b);
        set_run(p->rows, 2 * b + 1, v.count, text + v.from, b);
    }
}

/* Where this rank's rows lie among all rows of their kind. */
static Tensor *here(Graph *g, const char *name, Segments mine, const int64_t *all) {
    if (!g->sequence || g->sequence->size == 1) return NULL;
    int32_t *index;
    Tensor *t = index_table(g, name, mine.cu[mine.n], &index);
    int64_t begin = 0;
    for (int b = 0; b < mine.n; begin += all[b++])
        for (int64_t i = mine.cu[b]; i < mine.cu[b + 1]; i++)
            index[i] = (int32_t)(begin + mine.first[b] + i - mine.cu[b]);
    return t;
}

static void set_here(Graph *g, PackTables *p, const Pack *pack) {
    int64_t *video = graph_alloc(g, (size_t)pack->samples * sizeof *video);
    for (int b = 0; b < pack->samples; b++)
        video[b] = p->video_runs.cu[b + 1] - p->video_runs.cu[b];
    p->text_here = here(g, "text_here", p->text, pack->text_rows);
    p->video_here = here(g, "video_here", p->video, video);
}

PackTables pack_tables(Graph *g, const DitConfig *c, const Pack *pack) {
    PackTables p = {0};
    set_sizes(g, &p, c, pack);
    set_rows(g, &p, c, pack);
    set_here(g, &p, pack);
    int64_t all = p.rows.cu[p.rows.n], video = p.video.cu[p.video.n];
    int32_t *source, *mod_row, *mod_row_video, *sample, *index, *row;
    p.source = index_table(g, "source", all, &source);
    p.mod_row = index_table(g, "mod_row", all, &mod_row);
    p.mod_row_video = index_table(g, "mod_row_video", video, &mod_row_video);
    p.sample_of_video = index_table(g, "sample_of_video", video, &sample);
    p.video_index = index_table(g, "video_index", video, &index);
    p.row_in_sample = index_table(g, "row_in_sample", all, &row);
    int64_t text = 0, v = 0;
    for (int run = 0; run < p.rows.n; run++) {
        bool is_text = run % 2 == 0;
        int b = p.rows.sample[run];
        for (int64_t i = p.rows.cu[run]; i < p.rows.cu[run + 1]; i++) {
            row[i] = (int32_t)(p.rows.first[run] + i - p.rows.cu[run]);
            mod_row[i] = 2 * b + is_text;
            source[i] = (int32_t)(is_text ? text++ : -1 - v);
            if (is_text) continue;
            mod_row_video[v] = 2 * b;
            sample[v] = b;
            index[v++] = (int32_t)i;
        }
    }
    return p;
}
