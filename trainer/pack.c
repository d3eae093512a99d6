/* Owns the index tables of a pack. */
#include "trainer/pack.h"

static Segments segments(Graph *g, int n) {
    return (Segments){n, graph_alloc(g, (size_t)(n + 1) * sizeof(int64_t))};
}

static void set_bound(Segments s, int i, int64_t length) {
    ((int64_t *)s.cu)[i + 1] = s.cu[i] + length;
}

static Tensor *index_table(Graph *g, const char *name, int64_t n, int32_t **contents) {
    Tensor *t = graph_tensor(g, name, SHAPE(n), DT_I32, ROLE_CONST);
    t->host = *contents = graph_alloc(g, tensor_bytes(t));
    return t;
}

static void set_bounds(Graph *g, PackTables *p, const DitConfig *c, const Pack *pack) {
    int n = pack->samples;
    int64_t(*latents)[3] = graph_alloc(g, (size_t)n * sizeof *latents);
    int64_t(*grid)[3] = graph_alloc(g, (size_t)n * sizeof *grid);
    p->latents = (LatentSizes){n, (const int64_t(*)[3])latents};
    p->grid = (LatentSizes){n, (const int64_t(*)[3])grid};
    p->rows = segments(g, n);
    p->text = segments(g, n);
    p->video = segments(g, n);
    p->samples = segments(g, n);
    p->elements = segments(g, n);
    for (int b = 0; b < n; b++) {
        int64_t f = pack->fhw[b][0], h = pack->fhw[b][1], w = pack->fhw[b][2];
        int64_t rows = dit_video_rows(c, f, h, w);
        latents[b][0] = f, latents[b][1] = h, latents[b][2] = w;
        grid[b][0] = f / c->patch_t, grid[b][1] = h / c->patch, grid[b][2] = w / c->patch;
        set_bound(p->rows, b, pack->text_rows[b] + rows);
        set_bound(p->text, b, pack->text_rows[b]);
        set_bound(p->video, b, rows);
        set_bound(p->samples, b, 1);
        set_bound(p->elements, b, f * c->out_channels * h * w);
    }
}

PackTables pack_tables(Graph *g, const DitConfig *c, const Pack *pack) {
    PackTables p = {0};
    set_bounds(g, &p, c, pack);
    int64_t all = p.rows.cu[p.rows.n], video = p.video.cu[p.video.n];
    int32_t *source, *mod_row, *mod_row_video, *sample, *index, *row;
    p.source = index_table(g, "source", all, &source);
    p.mod_row = index_table(g, "mod_row", all, &mod_row);
    p.mod_row_video = index_table(g, "mod_row_video", video, &mod_row_video);
    p.sample_of_video = index_table(g, "sample_of_video", video, &sample);
    p.video_index = index_table(g, "video_index", video, &index);
    p.row_in_sample = index_table(g, "row_in_sample", all, &row);
    for (int b = 0; b < pack->samples; b++) {
        int64_t first = p.rows.cu[b], text = p.text.cu[b], v = p.video.cu[b];
        for (int64_t i = first; i < p.rows.cu[b + 1]; i++) {
            bool is_text = i - first < pack->text_rows[b];
            row[i] = (int32_t)(i - first);
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
